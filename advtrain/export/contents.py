"""What a bundle is made of, checked before anything is written: the record of an evaluation and its images."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from advtrain import checks
from advtrain.export import leaderboard
from advtrain.export.architecture import Architecture
from advtrain.export.leaderboard import THREATS, Score
from advtrain.export.metadata import ExportMetadata
from advtrain.types import SettingError

ARRAYS = ("images", "labels", "clean_predictions", "adversarial_images", "batch_size")
VERDICTS = ("robust", "broken_by", "attack_names", "margins")  # of newer evaluations
ATTACKS = ("autoattack", "screen", "pgd")  # the strongest that ran is the one whose images are stored


@dataclass(frozen=True)
class Trained:
    """A model and how it came to be.

    Attributes:
        model: what was evaluated, bare or wrapped in DistributedDataParallel or torch.compile.
        target: dotted path of its class, e.g. advtrain.models.WideResNet.
        arguments: keyword arguments of that.
        dataset: cifar10, cifar100, imagenet, or another name, which is then not on the leaderboard.
        recipe: the resolved configuration of the training, where it is known.
        training: what the training took and ran on: epochs, seconds, hardware, …
    """

    model: nn.Module
    target: str
    arguments: Mapping[str, Any]
    dataset: str
    recipe: Mapping[str, Any] = field(default_factory=dict)
    training: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Evaluated:
    """What was measured.

    Attributes:
        record: the content of evaluation.json.
        arrays: path of adversarial.npz of the same evaluation.
        eps: the radius as the field writes it, e.g. "8/255".
    """

    record: Mapping[str, Any]
    arrays: Path
    eps: str


@dataclass(frozen=True)
class Contents:
    """Everything that the texts of a bundle speak about.

    Attributes:
        model_id: key of the zoo entry.
        dataset, eps, norm: cifar10, "8/255" as written, linf.
        architecture: how to build the network.
        metadata: what the author said.
        clean: clean accuracy.
        robust: of the attack whose images are stored: AutoAttack, or a weaker one where it did not run.
        scores: all of them, by name.
        record: the content of evaluation.json.
        recipe, training: how it was trained.
    """

    model_id: str
    dataset: str
    eps: str
    norm: str
    architecture: Architecture
    metadata: ExportMetadata
    clean: Score
    robust: Score
    scores: Mapping[str, Score]
    record: Mapping[str, Any]
    recipe: Mapping[str, Any]
    training: Mapping[str, Any]

    @property
    def threat(self) -> str:
        return THREATS[self.norm]

    @property
    def weights_path(self) -> str:
        return f"models/{self.dataset}/{self.threat}/{self.model_id}.pt"

    @property
    def safetensors_path(self) -> str:
        return f"models/{self.dataset}/{self.threat}/{self.model_id}.safetensors"

    @property
    def model_info_path(self) -> str:
        return f"model_info/{self.dataset}/{self.threat}/{self.model_id}.json"

    @cached_property
    def obstacles(self) -> list[str]:
        """Why the leaderboard would not take this evaluation as it is, a sentence each."""
        return [
            *leaderboard.off_the_board(self.dataset, self.threat, self.eps),
            *leaderboard.not_the_standard_attack(self.robust),
            *leaderboard.subset(self.dataset, self.clean, self.robust),
            *leaderboard.not_believable(self.record, self.metadata.masking_statement),
        ]

    @property
    def submits(self) -> bool:
        """Whether the bundle carries the papers of a submission."""
        return self.metadata.target != "archive" and not self.obstacles

    @property
    def network_file(self) -> str:
        """The file that builds the network."""
        if self.architecture.carries_source:
            return "architecture.py"
        return "zoo_entry.py" if self.submits else "build.py"


def read_scores(record: Mapping[str, Any]) -> dict[str, Score]:
    """clean, pgd, screen and autoattack of an evaluation.json, those that it has.

    Raises:
        SettingError: there is no clean accuracy, or no attack.
    """
    scores = {name: _score(name, record[name]) for name in ("clean", *reversed(ATTACKS)) if record.get(name)}
    if "clean" not in scores or len(scores) < 2:
        raise SettingError(
            f"record: expected a clean accuracy and an attack, got {', '.join(scores) or 'neither'}; evaluate with "
            "eval.autoattack.enabled=true"
        )
    return scores


def strongest(scores: Mapping[str, Score]) -> Score:
    """The attack whose images an evaluation keeps."""
    return next(scores[name] for name in ATTACKS if name in scores)


def _score(name: str, part: Mapping[str, Any]) -> Score:
    low, high = part.get("interval") or (None, None)
    interval = None if low is None or high is None else (float(low), float(high))
    correct, n_examples = int(part["correct"]), int(part["n_examples"])
    return Score(name, correct, n_examples, dict(part.get("settings", {})), interval, part.get("near_boundary"))


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
        arrays = {name: stored[name] for name in (*ARRAYS, *VERDICTS) if name in stored.files}
    return {name: _as_bytes(value) if name.endswith("images") else value for name, value in arrays.items()}


def check_consistent(arrays: Mapping[str, np.ndarray], robust: Score, record: Mapping[str, Any], eps: str) -> None:
    """The record, the images and the radius as written belong together.

    Raises:
        SettingError: they do not.
    """
    if len(arrays["labels"]) != robust.n_examples:
        raise SettingError(
            f"record: expected as many images as were attacked by {robust.attack} ({robust.n_examples}), got "
            f"{len(arrays['labels'])} in the file; take both from the same evaluation"
        )
    if not np.isclose(checks.number("eps", eps, low=0), record["threat"]["eps"], rtol=1e-6, atol=0):
        raise SettingError(
            f"eps: expected the radius of the evaluation, {record['threat']['eps']:.7g}, got {eps}; write that one as "
            "the field does, e.g. 8/255"
        )


def _as_bytes(images: np.ndarray) -> np.ndarray:
    levels = np.rint(images * np.float32(255)).astype(np.uint8)
    return levels if np.array_equal(levels.astype(np.float32) / np.float32(255), images) else images
