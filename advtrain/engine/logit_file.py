"""A .npy file of logits and FILE.json beside it, which names what the logits belong to.

Both are written once, under temporary names, and take their own when they are complete: the .json first, so that a .npy
under its own name is always whole and described.
"""

import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.lib import format as npy

from advtrain.engine.checkpoints import write_text
from advtrain.types import FileError, SettingError

SETTING = "teacher.logits"
FORMAT = "advtrain-logits-1"


class LogitWriter:
    """Writes a file row by row; nothing of it stays unless `finish` was called.

    Args:
        path: of the .npy file.
        shape: (rows, classes) of the whole.
        dtype: of the numbers.

    Raises:
        SettingError: the disk has no room for it, or the folder cannot be written to.
    """

    def __init__(self, path: Path, shape: tuple[int, int], dtype: np.dtype) -> None:
        self._path, self._shape, self._dtype = path, shape, dtype
        self._unfinished = path.with_name(f"{path.name}.{uuid.uuid4().hex[:8]}.unfinished")  # other runs may write, too
        self._rows = 0
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._check_room()
            self._file = self._unfinished.open("wb")
            header = {"descr": npy.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
            npy.write_array_header_1_0(self._file, header)
        except OSError as error:
            raise SettingError(_unwritable(path, error)) from error

    def append(self, rows: np.ndarray) -> None:
        """Writes the rows that follow those already written.

        Raises:
            FileError: the disk is full or gone.
        """
        try:
            self._file.write(np.ascontiguousarray(rows, self._dtype).data)
        except OSError as error:
            raise FileError(_unwritable(self._path, error)) from error
        self._rows += len(rows)

    def finish(self, description: Mapping[str, Any]) -> None:
        """Gives file and description their names.

        Args:
            description: what the logits belong to, for `described`.
        """
        if self._rows != self._shape[0]:
            raise RuntimeError(f"expected {self._shape[0]} rows of logits, got {self._rows}")
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        ends = _ends(np.load(self._unfinished, mmap_mode="r"))
        content = {"format": FORMAT, **description, "ends": ends}
        write_text(description_path(self._path), json.dumps(content, indent=2, ensure_ascii=False) + "\n")
        os.replace(self._unfinished, self._path)

    def __enter__(self) -> "LogitWriter":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()
        self._unfinished.unlink(missing_ok=True)

    def _check_room(self) -> None:
        needed, free = size(self._shape, self._dtype), shutil.disk_usage(self._path.parent).free
        if needed > free:
            rows, classes = self._shape
            raise SettingError(
                f"{SETTING}: expected {amount(needed)} of free disk for {rows:,} × {classes} logits, got "
                f"{amount(free)} in {self._path.parent}; give a path on a larger disk, or lower trainer.replay_epochs"
            )


def description_path(path: Path) -> Path:
    return path.with_name(path.name + ".json")


def described(path: Path) -> dict[str, Any]:
    """What the file at `path` belongs to.

    Raises:
        SettingError: nothing says so.
    """
    description = description_path(path)
    try:
        content = json.loads(description.read_text())
        if content["format"] != FORMAT:
            raise ValueError(f"format {content['format']}")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise SettingError(
            f"{SETTING}: expected {description.name} beside {path} to say what its logits belong to, got none that can "
            f"be read ({error}); remove the file to have it computed anew"
        ) from error
    return content


def check_belonging(path: Path, description: Mapping[str, Any], facts: Mapping[str, Any]) -> None:
    """Confirms that a file is that of the facts.

    Args:
        path: of the file.
        description: what it belongs to.
        facts: what it should belong to.

    Raises:
        SettingError: a fact differs; the line names it.
    """
    wanted = json.loads(json.dumps(facts))  # tuples are lists there
    differing = [
        f"{key} (there {_short(description.get(key))}, now {_short(value)})"
        for key, value in wanted.items()
        if description.get(key) != value
    ]
    if differing:
        raise SettingError(
            f"{SETTING}: expected logits that belong to this run, got {path} of another {', '.join(differing)}; give "
            "another file name, or remove the file to have it computed anew"
        )


def open_logits(path: Path, description: Mapping[str, Any]) -> np.ndarray:
    """The rows of the file, memory-mapped, shape (rows, classes).

    Raises:
        FileError: they are not those that were described.
    """
    try:
        rows = np.load(path, mmap_mode="r")
        found: Any = [list(rows.shape), str(rows.dtype), _ends(rows)]
    except (OSError, ValueError) as error:
        raise FileError(
            f"{SETTING}: expected the file that {description_path(path).name} describes, got {path} which cannot be "
            f"read ({error}); remove it to have it computed anew"
        ) from error
    if found != [description.get(key) for key in ("shape", "dtype", "ends")]:
        raise FileError(
            f"{SETTING}: expected {description.get('dtype')} {description.get('shape')} as it was written to {path}, "
            f"got {found[1]} {found[0]} or other rows; the file is damaged: remove it to have it computed anew"
        )
    return rows


def size(shape: Sequence[int], dtype: np.dtype) -> int:
    """Bytes of a file, its header included."""
    return int(np.prod(shape)) * dtype.itemsize + 128


def amount(n: float) -> str:
    """Bytes in words."""
    return f"{n / 1e9:.1f} GB" if n >= 1e9 else f"{n / 1e6:.1f} MB"


def _ends(rows: np.ndarray) -> str:
    """The SHA-256 of the first and the last row: what ties the description to its file."""
    return hashlib.sha256(rows[0].tobytes() + rows[-1].tobytes()).hexdigest()


def _short(value: Any) -> str:
    text = repr(value)
    return f"{text[:13]}…'" if isinstance(value, str) and len(value) == 64 else text


def _unwritable(path: Path, error: OSError) -> str:
    return f"{SETTING}: expected a place that can be written to, got {path} ({error}); give another path"
