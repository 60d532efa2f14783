"""Checkpoints: written whole or not at all, and known to be whole when read."""

import hashlib
import os
from pathlib import Path
from typing import Any

import torch

from advtrain.types import SettingError


def save(path: Path, state: dict[str, Any]) -> None:
    """Writes `state` to `path` atomically, with its SHA-256 in `<path>.sha256`.

    While the file is being exchanged the checksum file holds the digests of both the old and the new file, so a kill
    at any moment leaves a file that its checksum confirms.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(path.name + ".unfinished")
    with unfinished.open("wb") as file:
        torch.save(state, file)
        file.flush()
        os.fsync(file.fileno())
    line = f"{_digest(unfinished)}  {path.name}\n"
    checksum = _checksum_path(path)
    write_text(checksum, (checksum.read_text() if checksum.exists() else "") + line)
    os.replace(unfinished, path)
    write_text(checksum, line)


def load(path: Path, device: torch.device | str = "cpu") -> dict[str, Any]:
    """Reads a checkpoint, without executing any code that may be in it.

    Raises:
        SettingError: the file is missing, or is not what was written.
    """
    if not path.is_file():
        raise SettingError(f"expected a checkpoint at {path}, got no such file; train first or give another path")
    checksum = _checksum_path(path)
    if checksum.exists():
        known = {line.split()[0] for line in checksum.read_text().splitlines() if line.strip()}
        if _digest(path) not in known:
            raise SettingError(
                f"{path}: expected the SHA-256 that {checksum.name} holds, got another; the file is damaged, "
                "restore it or delete both to start anew"
            )
    return torch.load(path, map_location=device, weights_only=True)


def write_text(path: Path, text: str) -> None:
    """Replaces the content of `path` atomically."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(path.name + ".unfinished")
    unfinished.write_text(text)
    os.replace(unfinished, path)


def _checksum_path(path: Path) -> Path:
    return path.with_name(path.name + ".sha256")


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
