"""Arrays inside .npz files: what they are and where their bytes lie, without reading them."""

import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np
from numpy.lib import format as npy

from advtrain.types import SettingError

HEADERS = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}
LOCAL_HEADER = 30  # bytes before a member's name, of which the last four give the lengths of name and extra field


@dataclass(frozen=True)
class Member:
    """An array of an .npz file.

    Attributes:
        path: the file.
        key: of the array.
        shape, dtype: of the array.
        by_rows: whether its first axis is the slowest (C order).
        header: bytes before its first element in the member.
        start: where its first element is in the file; None where the member is compressed.
        crc32: of the member, as the archive says.
    """

    path: Path
    key: str
    shape: tuple[int, ...]
    dtype: np.dtype
    by_rows: bool
    header: int
    start: int | None
    crc32: int

    @contextmanager
    def elements(self, first: int = 0) -> Iterator[IO[bytes]]:
        """The member's bytes from row `first` on, decompressed as they are read.

        Raises:
            SettingError: the file is damaged (noticed where all of it is read, by its CRC-32).
        """
        row = int(np.prod(self.shape[1:])) * self.dtype.itemsize
        try:
            with zipfile.ZipFile(self.path) as archive, archive.open(f"{self.key}.npy") as file:
                file.read(self.header)
                if first:  # a seek would switch the check off
                    file.seek(self.header + first * row)
                yield file
        except (zipfile.BadZipFile, zlib.error, EOFError) as error:
            raise SettingError(
                f"{self.path}: expected {self.key} as it was written, got damaged bytes ({error}); copy it again"
            ) from error


def member(setting: str, path: Path, key: str) -> Member:
    """The array `key` of the file at `path`.

    Args:
        setting: that gave the path, for messages.

    Raises:
        SettingError: there is no such file or array.
    """
    if not path.is_file():
        raise SettingError(f"{setting}: expected an .npz file, got no file {path}; check the path")
    try:
        with zipfile.ZipFile(path) as archive, archive.open(f"{key}.npy") as file:
            shape, fortran_order, dtype = HEADERS[npy.read_magic(file)](file)
            info, header = archive.getinfo(f"{key}.npy"), file.tell()
            start = _content(path, info) + header if info.compress_type == zipfile.ZIP_STORED else None
            return Member(path, key, shape, dtype, not fortran_order, header, start, info.CRC)
    except (zipfile.BadZipFile, KeyError, ValueError) as error:
        raise SettingError(
            f"{setting}: expected an .npz file with the arrays image and label, got {path} without a readable "
            f"{key}; write it with numpy.savez(path, image=…, label=…)"
        ) from error


def _content(path: Path, info: zipfile.ZipInfo) -> int:
    """Where a member's content starts; its own header may be longer than the one in the archive's directory."""
    with path.open("rb") as file:
        file.seek(info.header_offset + LOCAL_HEADER - 4)
        name, extra = (int.from_bytes(file.read(2), "little") for _ in range(2))
    return info.header_offset + LOCAL_HEADER + name + extra
