"""RobustBench's board as data: the snapshot that comes with the package, or a newer model_info folder."""

import csv
import json
import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from advtrain import checks
from advtrain.types import FileError, SettingError

PACKAGED = "RobustBench 78fcc9e, March 2025"
THREATS = {"linf": "Linf", "l2": "L2", "l1": "L1"}
DATASET_WORDS = {"cifar10": "CIFAR-10", "cifar100": "CIFAR-100", "imagenet": "ImageNet"}


@dataclass(frozen=True)
class Entry:
    """One row of a board.

    Attributes:
        model_id: key of the model zoo, e.g. "Wang2023Better_WRN-28-10".
        dataset, threat: the board: "cifar10", "Linf".
        eps: radius as the board writes it.
        architecture: in words.
        clean, autoattack: accuracies in percent.
        external: robust accuracy in percent under another, stronger attack; None where there is none.
        additional_data: whether it was trained on more real images than the training set.
        venue, footnote: as the board writes them.
    """

    model_id: str
    dataset: str
    threat: str
    eps: str
    architecture: str
    clean: float
    autoattack: float
    external: float | None
    additional_data: bool
    venue: str = ""
    footnote: str = ""

    @property
    def robust(self) -> float:
        """What the board ranks by, in percent: the external number where there is one."""
        return self.autoattack if self.external is None else self.external

    @property
    def hundredths(self) -> int:
        """The same in hundredths of a percent, which is how finely the board speaks."""
        return round(100 * self.robust)


@dataclass(frozen=True)
class Snapshot:
    """The boards at one time.

    Attributes:
        entries: of all datasets and threat models.
        source: where they come from, with the date as far as it is known.
    """

    entries: tuple[Entry, ...]
    source: str

    def board(self, dataset: str, norm: str) -> tuple[Entry, ...]:
        """The entries of one board, best first, those that are level by ID; empty where there is no such board."""
        found = [e for e in self.entries if e.dataset == dataset and e.threat == THREATS.get(norm)]
        return tuple(sorted(found, key=lambda entry: (-entry.hundredths, entry.model_id)))

    def eps(self, dataset: str, norm: str) -> str | None:
        """The radius of a board as it is written there: that of most entries (one is at 0.031, not 8/255)."""
        written = Counter(entry.eps for entry in self.board(dataset, norm))
        return written.most_common(1)[0][0] if written else None


def load(folder: str | Path | None = None) -> Snapshot:
    """The packaged snapshot, or what RobustBench's folder `model_info` says now.

    Raises:
        FileError: the folder or a file in it cannot be used.
    """
    if folder is None:
        return Snapshot(_packaged_entries(), PACKAGED)
    return Snapshot(entries_from_model_info(Path(folder).expanduser()), f"model_info in {Path(folder).name}")


def entries_from_model_info(folder: Path) -> tuple[Entry, ...]:
    """The entries of a checkout of RobustBench: model_info/<dataset>/<threat>/<ID>.json for Linf and L2.

    Args:
        folder: model_info itself or the checkout that holds it.

    Raises:
        FileError: there is no entry, or a file is malformed; the line names it.
    """
    inside = folder / "model_info"
    root = inside if inside.is_dir() else folder
    paths = sorted(path for threat in ("Linf", "L2") for path in root.glob(f"*/{threat}/*.json"))
    if not paths:
        raise FileError(
            f"leaderboard: expected RobustBench's folder model_info with <dataset>/<Linf or L2>/<ID>.json, got "
            f"{folder} without one; clone github.com/RobustBench/robustbench and name its model_info"
        )
    return tuple(_entry_of(path) for path in paths)


def _packaged_entries() -> tuple[Entry, ...]:
    text = (files("advtrain.report") / "leaderboard.csv").read_text(encoding="utf-8")
    lines = (line for line in text.splitlines() if not line.startswith("#"))
    return tuple(
        Entry(
            model_id=row["model_id"],
            dataset=row["dataset"],
            threat=row["threat_model"],
            eps=row["eps"],
            architecture=row["architecture"],
            clean=float(row["clean_acc"]),
            autoattack=float(row["autoattack_acc"]),
            external=float(row["external"]) if row["external"] else None,
            additional_data=row["additional_data"] == "True",
            venue=row["venue"],
            footnote=row["footnote"],
        )
        for row in csv.DictReader(lines)
    )


def _entry_of(path: Path) -> Entry:
    try:
        info = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise FileError(f"{path}: expected JSON, got {error}; get the file again") from error
    if not isinstance(info, Mapping):
        raise FileError(f"{path}: expected an object with clean_acc and autoattack_acc, got {info!r:.40}; correct it")
    dataset, threat = path.parent.parent.name, path.parent.name
    external = info.get("external")
    return Entry(
        model_id=path.stem,
        dataset=dataset,
        threat=threat,
        eps=_radius(path, info.get("eps"), threat),
        architecture=str(info.get("architecture", "")),
        clean=_percent(path, info, "clean_acc"),
        autoattack=_percent(path, info, "autoattack_acc"),
        external=None if external in (None, "") else _percent(path, info, "external"),
        additional_data=str(info.get("additional_data")).lower() == "true",
        venue=str(info.get("venue", "")),
        footnote=str(info.get("footnote", "")),
    )


def _percent(path: Path, info: Mapping[str, Any], field: str) -> float:
    """Some files have strings, some numbers."""
    try:
        return checks.number(field, info.get(field), low=0, high=100)
    except SettingError:
        raise FileError(
            f"{path}: {field}: expected a percentage from 0 to 100, got {info.get(field)!r}; correct the file"
        ) from None


def _radius(path: Path, written: Any, threat: str) -> str:
    try:
        checks.radius("eps", written, threat.lower())
    except SettingError:
        raise FileError(f"{path}: eps: expected a radius such as 8/255, got {written!r}; correct the file") from None
    return written if isinstance(written, str) else _fraction(float(written))


def _fraction(eps: float) -> str:
    """0.03137… as 8/255, which RobustBench's own tool writes as a float."""
    grey = round(255 * eps)
    return f"{grey}/255" if grey and math.isclose(grey / 255, eps, rel_tol=1e-6) else f"{eps:g}"


def same_radius(eps: float, written: str) -> bool:
    """Whether a radius is the one that a board writes; 0.031 is not 8/255."""
    return math.isclose(eps, checks.number("eps", written), rel_tol=1e-4)


def in_words(dataset: str) -> str:
    """CIFAR-10 for cifar10."""
    return DATASET_WORDS.get(dataset, dataset)
