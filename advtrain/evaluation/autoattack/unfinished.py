"""Finished batches on disk, so that a killed run goes on where it was."""

import hashlib
import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple
from zipfile import BadZipFile

import numpy as np
import torch
from torch import Tensor

import advtrain
from advtrain.evaluation.autoattack.job import Job
from advtrain.evaluation.records import atomic, write_record

FINGERPRINT = "fingerprint.json"


class Batch(NamedTuple):
    """What one attack made of one batch; all on the CPU.

    Attributes:
        rows: which images these are, int64, (m,).
        broken: bool, (m,).
        images: adversarial images of the broken ones, in that order.
        zero_gradients: as in `Found`.
        margins: the smallest that the attack saw of each image, ∞ where it kept no account; float32, (m,).
        seconds: of work.
    """

    rows: Tensor
    broken: Tensor
    images: Tensor
    zero_gradients: Tensor
    margins: Tensor
    seconds: float


class Unfinished:
    """A folder with a file per finished batch; with None for a folder, nothing is kept.

    A file appears whole or not at all. The folder belongs to the run whose fingerprint it holds, and every process of
    the run writes its own batches into it, so on several machines it has to be on a file system that they share.
    """

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder

    def claim(self, fingerprint: Mapping[str, Any], report: Callable[[str], None]) -> None:
        """Makes the folder this run's own: what another run left there is removed. For the main process."""
        if self.folder is None:
            return
        path = self.folder / FINGERPRINT
        if self.folder.exists():
            stored = _read_json(path)
            if stored == fingerprint:
                n = len(list(self.folder.glob("*.npz")))
                report(f"resumes: {n} finished batch{'es' * (n != 1)} in {self.folder}")
                return
            differing = sorted(key for key in fingerprint if stored.get(key) != fingerprint[key])
            report(f"starts anew: {self.folder} is of a run with another {', '.join(differing)}")
            shutil.rmtree(self.folder)
        write_record(fingerprint, path)

    def commit(self, number: int, name: str, index: int, batch: Batch) -> None:
        """Writes what attack `number` made of its batch `index`."""
        if self.folder is None:
            return
        arrays = {key: np.asarray(value) for key, value in batch._asdict().items()}
        path = self._path(number, name, index)
        atomic(path, lambda file: np.savez(file, **arrays))  # pyright: ignore[reportArgumentType]

    def read(self, number: int, name: str, index: int, rows: Tensor) -> Batch | None:
        """The same, if it is there and is of these images."""
        if self.folder is None or not (path := self._path(number, name, index)).is_file():
            return None
        try:
            with path.open("rb") as file, np.load(file, allow_pickle=False) as stored:
                arrays = {key: torch.from_numpy(stored[key]) for key in Batch._fields if key != "seconds"}
                batch = Batch(**arrays, seconds=float(stored["seconds"]))
        except (OSError, EOFError, ValueError, KeyError, BadZipFile):
            return None  # damaged: the batch is attacked again
        return batch if torch.equal(batch.rows, rows) else None

    def _path(self, number: int, name: str, index: int) -> Path:
        assert self.folder is not None
        return self.folder / f"{number + 1}-{name}-{index + 1:05}.npz"


def fingerprint(job: Job, engine: str) -> dict[str, Any]:
    """Everything that decides the verdicts of a run, ready for JSON."""
    device = torch.device(job.device)
    return {
        "model": _digest(sorted(job.model.state_dict().items())),
        "architecture": hashlib.sha256(repr(job.model).encode()).hexdigest(),
        "images": _digest([("x", job.x), ("y", job.y)]),
        "attacks": [asdict(plan) for plan in job.planned],
        "engine": engine,
        "seed": job.seed,
        "batch_size": job.batch_size,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "torch": torch.__version__,
        "advtrain": advtrain.__version__,
    }


def _digest(tensors: Any) -> str:
    digest = hashlib.sha256()
    for name, tensor in tensors:
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def _read_json(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
