"""What an evaluation leaves behind: evaluation.json for readers, adversarial.npz for those who want to check."""

import json
import os
import platform
import shutil
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import Tensor

import advtrain
from advtrain.evaluation.statistics import wilson_interval
from advtrain.types import Images, Labels

RECORD = "evaluation.json"
EVIDENCE = "adversarial.npz"
UNFINISHED = "unfinished"  # folder of what an evaluation that is not over has finished; gone when the record is there


@dataclass(frozen=True)
class Result:
    """One accuracy.

    Attributes:
        correct: images classified correctly, in spite of the attack if there is one.
        n_examples: images looked at.
        seconds: it took.
        settings: everything that decides the number.
        details: what else is worth keeping.
    """

    correct: int
    n_examples: int
    seconds: float
    settings: Mapping[str, Any]
    details: Mapping[str, Any] = field(default_factory=dict)

    @property
    def accuracy(self) -> float:
        """As a fraction."""
        return self.correct / self.n_examples

    @property
    def interval(self) -> tuple[float, float]:
        """Wilson's 95 % interval of the accuracy, as fractions."""
        return wilson_interval(self.correct, self.n_examples)

    def record(self) -> dict[str, Any]:
        return {
            "accuracy": self.accuracy,
            "correct": self.correct,
            "n_examples": self.n_examples,
            "interval": list(self.interval),
            "settings": dict(self.settings),
            "seconds": round(self.seconds, 3),
            **self.details,
        }

    def __str__(self) -> str:
        low, high = self.interval
        text = f"{self.accuracy:.2%} ({self.correct} of {self.n_examples}; 95 %: {low:.2%} to {high:.2%})"
        near = self.details.get("near_boundary")
        hair = "" if near is None else f", {near} image{'s' * (near != 1)} within a hair of the boundary"
        return f"{text}{hair}, {self.seconds:.1f} s"


@dataclass(frozen=True)
class Evidence:
    """The images of the strongest attack that ran, for anyone to check its verdicts.

    Attributes:
        attack: "autoattack", "screen" or "pgd".
        indices: of the images in their split.
        images, labels: the clean images, float32, and their labels.
        clean_predictions: the model's classes for them.
        adversarial_images: the attack's images, float32; the clean image where it found none.
        robust: the verdict for each image, bool.
        broken_by: int8; the index in `attack_names` of the attack that broke the image, -1 where it is robust, -2
            where it is misclassified without any.
        attack_names: those that ran, in order.
        margins: float32; logit of the true class minus the largest other one, on the adversarial image.
        closest_margins: float32; the smallest margin that the attack is known to have seen of each image: that on the
            adversarial image, or one of the search.
        batch_size: images per pass when the predictions were made.
        norm, eps: the threat model.
    """

    attack: str
    indices: Labels
    images: Images
    labels: Labels
    clean_predictions: Labels
    adversarial_images: Images
    robust: Tensor
    broken_by: Tensor
    attack_names: tuple[str, ...]
    margins: Tensor
    closest_margins: Tensor
    batch_size: int
    norm: str
    eps: float

    def arrays(self) -> dict[str, np.ndarray]:
        """By the names of the attributes."""
        return {
            name: value.numpy() if isinstance(value, torch.Tensor) else np.asarray(value)
            for name, value in vars(self).items()
        }

    def save(self, path: Path) -> None:
        """Writes a compressed npz file that loads without pickle."""
        atomic(path, lambda file: np.savez_compressed(file, **self.arrays()))  # pyright: ignore[reportArgumentType]


@dataclass(frozen=True)
class Evaluation:
    """What is known of a model: accuracies, what they depend on, and the images behind them.

    Attributes:
        norm, eps: the threat model.
        results: accuracies by name, in the order they were measured: clean, pgd, screen, autoattack.
        parts: further entries of the record, by name, ready for JSON.
        evidence: images of the strongest attack; none where there was no attack.
        seeds: by what they were for.
        device: it ran on.
    """

    norm: str
    eps: float
    results: Mapping[str, Result]
    parts: Mapping[str, Any]
    evidence: Evidence | None
    seeds: Mapping[str, int]
    device: str

    @property
    def clean(self) -> Result:
        return self.results["clean"]

    @property
    def pgd(self) -> Result | None:
        return self.results.get("pgd")

    @property
    def screen(self) -> Result | None:
        """APGD-CE and APGD-T alone: for choosing among models, no AutoAttack."""
        return self.results.get("screen")

    @property
    def autoattack(self) -> Result | None:
        return self.results.get("autoattack")

    def record(self, parts: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """The content of evaluation.json, with further `parts`, by name, behind those of the evaluation itself."""
        return {
            "threat": {"norm": self.norm, "eps": self.eps},
            "n_examples": self.clean.n_examples,
            **{name: result.record() for name, result in self.results.items()},
            **self.parts,
            **(parts or {}),
            "seeds": dict(self.seeds),
            "hardware": hardware(self.device),
            "versions": versions(),
        }

    def save(self, folder: Path, *, parts: Mapping[str, Any] | None = None, **extra: Any) -> None:
        """Writes evaluation.json, with `extra` entries first, and adversarial.npz when an attack ran.

        Files of an earlier evaluation are replaced; its adversarial images do not outlive it. What had been kept for a
        resume is removed.
        """
        if self.evidence is None:
            (folder / EVIDENCE).unlink(missing_ok=True)
        else:
            self.evidence.save(folder / EVIDENCE)
        write_record({**extra, **self.record(parts)}, folder / RECORD)
        shutil.rmtree(folder / UNFINISHED, ignore_errors=True)


def write_record(record: Mapping[str, Any], path: Path) -> None:
    """Writes JSON in one piece: a reader sees the old file or the new one."""
    text = json.dumps(record, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    atomic(path, lambda file: file.write(text.encode()))


def hardware(device: torch.device | str) -> dict[str, Any]:
    """What the evaluation ran on."""
    device = torch.device(device)
    return {
        "cpu": _cpu_model(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name(device) if device.type == "cuda" else None,
    }


def versions() -> dict[str, str]:
    """Of everything that takes part in the numbers."""
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "pyautoattack": metadata.version("pyautoattack"),
        "advtrain": advtrain.__version__,
    }


def _cpu_model() -> str:
    if sys.platform == "linux":
        for line in Path("/proc/cpuinfo").read_text(errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def atomic(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Writes a file in one piece, on the disk when this returns; makes its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with partial.open("wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
