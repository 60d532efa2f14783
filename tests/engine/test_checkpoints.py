"""Checkpoints are whole or refused, and never run code."""

import os
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch

from advtrain.engine import checkpoints
from advtrain.types import SettingError


def test_round_trip_and_checksum(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "last.pt"
    checkpoints.save(path, {"a": torch.arange(3), "n": 1})
    loaded = checkpoints.load(path)
    assert torch.equal(loaded["a"], torch.arange(3)) and loaded["n"] == 1
    import hashlib

    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    assert path.with_name("last.pt.sha256").read_text() == f"{digest}  last.pt\n"
    assert sorted(file.name for file in path.parent.iterdir()) == ["last.pt", "last.pt.sha256"]


def test_a_damaged_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "last.pt"
    checkpoints.save(path, {"a": torch.arange(300)})
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(SettingError, match="expected the SHA-256"):
        checkpoints.load(path)


@pytest.mark.parametrize("moment", (0, 1, 2))
def test_a_kill_at_any_moment_leaves_a_readable_file(moment: int, tmp_path: Path, monkeypatch: Any) -> None:
    """Stops the second save before its first, second or third exchange of files."""
    path = tmp_path / "last.pt"
    checkpoints.save(path, {"n": 1})
    calls, replace = [], os.replace

    def dying(source: Any, target: Any) -> None:
        if len(calls) == moment:
            raise KeyboardInterrupt
        calls.append(target)
        replace(source, target)

    monkeypatch.setattr(os, "replace", dying)
    with pytest.raises(KeyboardInterrupt):
        checkpoints.save(path, {"n": 2})
    monkeypatch.undo()
    assert checkpoints.load(path)["n"] == (1 if moment < 2 else 2)


def test_code_in_a_checkpoint_does_not_run(tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> Any:
            return os.system, (f"touch {tmp_path}/ran",)

    path = tmp_path / "last.pt"
    torch.save({"a": Trap()}, path)
    with pytest.raises(pickle.UnpicklingError):
        checkpoints.load(path)
    assert not (tmp_path / "ran").exists()


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(SettingError, match="expected a checkpoint at"):
        checkpoints.load(tmp_path / "none.pt")
