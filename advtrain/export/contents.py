"""What a bundle is made of, checked before anything is written: the record of an evaluation and its images."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from advtrain import checks
from advtrain.export.architecture import Architecture
from advtrain.export.metadata import ExportMetadata
from advtrain.types import SettingError

THREATS = {"linf": "Linf", "l2": "L2", "l1": "L1"}
BOARDS = {  # images of the leaderboard's evaluation, and the radius that each threat model is ranked at
    "cifar10": (10_000, {"Linf": "8/255", "L2": "0.5"}),
    "cifar100": (10_000, {"Linf": "8/255"}),
    "imagenet": (5_000, {"Linf": "4/255"}),
}
ARRAYS = ("images", "labels", "clean_predictions", "adversarial_images", "batch_size")


@dataclass(frozen=True)
class Score:
    """One accuracy: how many of how many images, and what measured it."""

    attack: str
    correct: int
    n_examples: int
    settings: Mapping[str, Any]

    @property
    def percent(self) -> str:
        return f"{100 * self.correct / self.n_examples:.2f}"


@dataclass(frozen=True)
class Contents:
    """Everything that the texts of a bundle speak about.

    Attributes:
        model_id: key of the zoo entry.
        dataset, threat, eps, norm: cifar10, Linf, "8/255" as written, linf.
        architecture: how to build the network.
        metadata: what the author said.
        clean: clean accuracy.
        robust: of the attack whose images are stored: AutoAttack, or PGD where it did not run.
        scores: all of them, by name.
        record: the content of evaluation.json.
        recipe: how it was trained, by setting.
    """

    model_id: str
    dataset: str
    threat: str
    eps: str
    norm: str
    architecture: Architecture
    metadata: ExportMetadata
    clean: Score
    robust: Score
    scores: Mapping[str, Score]
    record: Mapping[str, Any]
    recipe: Mapping[str, Any]

    @property
    def weights_path(self) -> str:
        return f"models/{self.dataset}/{self.threat}/{self.model_id}.pt"

    @property
    def model_info_path(self) -> str:
        return f"model_info/{self.dataset}/{self.threat}/{self.model_id}.json"

    @property
    def obstacles(self) -> list[str]:
        """Why the leaderboard would not take this evaluation as it is, a sentence each."""
        if self.dataset not in BOARDS:
            return [f"{self.dataset} is not a dataset of the RobustBench leaderboard."]
        reasons = []
        total, radii = BOARDS[self.dataset]
        if radii.get(self.threat) != self.eps:
            reasons.append(f"The leaderboard does not rank {self.dataset} at {self.threat} ε = {self.eps}.")
        if self.robust.attack != "autoattack":
            reasons.append("AutoAttack did not run; the robust accuracy given is that of PGD.")
        elif self.robust.settings.get("version", "standard") != "standard":
            reasons.append(f"AutoAttack ran as version={self.robust.settings['version']}, not as standard.")
        smallest = min(self.clean.n_examples, self.robust.n_examples)
        if smallest < total:
            reasons.append(f"Evaluated on a subset: {smallest:,} of the leaderboard's {total:,} test images.")
        return reasons


def leaderboard_dataset(dataset: str, norm: str) -> str | None:
    """`dataset` where RobustBench has a zoo for it and the norm."""
    return dataset if dataset in BOARDS and THREATS[norm] in BOARDS[dataset][1] else None


def read_scores(record: Mapping[str, Any]) -> dict[str, Score]:
    """clean, pgd and autoattack of an evaluation.json, those that it has.

    Raises:
        SettingError: there is no clean accuracy, or no attack.
    """
    scores = {}
    for name in ("clean", "pgd", "autoattack"):
        if record.get(name) is not None:
            part = record[name]
            scores[name] = Score(name, int(part["correct"]), int(part["n_examples"]), dict(part.get("settings", {})))
    if "clean" not in scores or len(scores) < 2:
        raise SettingError(
            f"record: expected a clean accuracy and an attack, got {', '.join(scores) or 'neither'}; evaluate with "
            "eval.autoattack.enabled=true"
        )
    return scores


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    """The arrays of adversarial.npz that a bundle stores; grey levels as bytes where that loses nothing.

    Raises:
        SettingError: there is no such file, or it lacks an array.
    """
    if not path.is_file():
        raise SettingError(f"expected the adversarial images in {path}, got no file; evaluate with an attack enabled")
    with np.load(path, allow_pickle=False) as stored:
        missing = [name for name in ARRAYS if name not in stored.files]
        if missing:
            raise SettingError(
                f"{path}: expected the array {missing[0]}, got {', '.join(stored.files)}; evaluate again"
            )
        arrays = {name: stored[name] for name in ARRAYS}
    return {name: _as_bytes(value) if name.endswith("images") else value for name, value in arrays.items()}


def check_consistent(arrays: Mapping[str, np.ndarray], robust: Score, record: Mapping[str, Any], eps_text: str) -> None:
    """The record, the images and the radius as written belong together.

    Raises:
        SettingError: they do not.
    """
    if len(arrays["labels"]) != robust.n_examples:
        raise SettingError(
            f"record: expected as many images as were attacked by {robust.attack} ({robust.n_examples}), got "
            f"{len(arrays['labels'])} in the file; take both from the same evaluation"
        )
    eps = checks.number("eps_text", eps_text, low=0)
    if not np.isclose(eps, record["threat"]["eps"], rtol=1e-6, atol=0):
        raise SettingError(
            f"eps_text: expected the radius of the evaluation, {record['threat']['eps']:.7g}, got {eps_text}; write "
            "that one as the field does, e.g. 8/255"
        )


def _as_bytes(images: np.ndarray) -> np.ndarray:
    levels = np.rint(images * np.float32(255)).astype(np.uint8)
    return levels if np.array_equal(levels.astype(np.float32) / np.float32(255), images) else images
