"""What RobustBench ranks, and why it would not take an evaluation."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from advtrain import checks

THREATS = {"linf": "Linf", "l2": "L2", "l1": "L1"}
BOARDS = {  # images of the leaderboard's evaluation, and the radius that each threat model is ranked at
    "cifar10": (10_000, {"Linf": "8/255", "L2": "0.5"}),
    "cifar100": (10_000, {"Linf": "8/255"}),
    "imagenet": (5_000, {"Linf": "4/255"}),
}


@dataclass(frozen=True)
class Score:
    """One accuracy: how many of how many images, and what measured it.

    Attributes:
        attack: clean, pgd, screen or autoattack.
        correct, n_examples: images.
        settings: everything that decides the number.
        interval: Wilson's 95 % interval as fractions, where the record has it.
        near_boundary: robust images within a hair of the decision boundary, where the record counts them.
    """

    attack: str
    correct: int
    n_examples: int
    settings: Mapping[str, Any]
    interval: tuple[float, float] | None = None
    near_boundary: int | None = None

    @property
    def percent(self) -> str:
        return f"{100 * self.correct / self.n_examples:.2f}"

    @property
    def label(self) -> str:
        """As people call it: only upstream's attacks, or what gives their verdicts, are AutoAttack without a suffix."""
        if self.attack == "pgd":
            return f"PGD-{self.settings['steps']}" if "steps" in self.settings else "PGD"
        if self.attack == "screen":
            return "screen (APGD-CE + APGD-T)"
        if self.attack != "autoattack":
            return self.attack
        version = self.settings.get("version", "standard")
        suffixes = [] if version == "standard" else [f"version {version}"]
        suffixes += ["engine fast"] if self.settings.get("engine") == "fast" else []
        return f"AutoAttack ({', '.join(suffixes)})" if suffixes else "AutoAttack"


def leaderboard_dataset(dataset: str, norm: str) -> str | None:
    """`dataset` where RobustBench has a zoo for it and the norm."""
    return dataset if dataset in BOARDS and THREATS[norm] in BOARDS[dataset][1] else None


def leaderboard_eps(dataset: str, threat: str, eps: str) -> str:
    """The radius as the leaderboard writes it where it is the leaderboard's, else as given."""
    ranked = BOARDS.get(dataset, (0, {}))[1].get(threat)
    if ranked is None:
        return eps
    same = np.isclose(checks.number("eps", eps), checks.number("eps", ranked), rtol=1e-6, atol=0)
    return ranked if same else eps


def off_the_board(dataset: str, threat: str, eps: str) -> list[str]:
    """Why the leaderboard has no place for this dataset, threat model and radius, a sentence each."""
    if dataset not in BOARDS:
        return [f"{dataset} is not a dataset of the RobustBench leaderboard ({', '.join(BOARDS)} are)."]
    radii = BOARDS[dataset][1]
    ranked = ", ".join(f"{name} {radius}" for name, radius in radii.items())
    if threat not in radii:
        return [f"The leaderboard has no {threat} ranking of {dataset} (only {ranked})."]
    if radii[threat] != eps:
        return [f"The leaderboard does not rank {dataset} at {threat} ε = {eps} (only {ranked})."]
    return []


def not_the_standard_attack(robust: Score) -> list[str]:
    """Why the leaderboard does not take this attack's number, a sentence each."""
    if robust.attack != "autoattack":
        return [f"AutoAttack did not run; the robust accuracy given is that of {robust.label}."]
    reasons = []
    version, engine = robust.settings.get("version", "standard"), robust.settings.get("engine")
    if version != "standard":
        reasons.append(f"AutoAttack ran as version={version}, not as standard.")
    if engine == "fast":
        reasons.append("AutoAttack ran with engine=fast, whose verdicts equal upstream's only statistically.")
    return reasons


def subset(dataset: str, clean: Score, robust: Score) -> list[str]:
    """That fewer images than the leaderboard's were evaluated, as a sentence."""
    total, smallest = BOARDS.get(dataset, (0, {}))[0], min(clean.n_examples, robust.n_examples)
    if smallest >= total:
        return []
    return [f"Evaluated on a subset: {smallest:,} of the leaderboard's {total:,} test images."]


def not_believable(record: Mapping[str, Any], statement: str | None) -> list[str]:
    """What the masking checks have against the number, as a sentence; nothing where the author answers for it."""
    masking = record.get("masking")
    if not masking:
        return ["The masking checks did not run: evaluate with eval.masking.enabled=true."]
    if masking.get("verdict") == "believable" or statement is not None:
        return []
    failed = ", ".join(failed_checks(record)) or "no check could decide"
    return [f"The masking checks find the evaluation doubtful ({failed}); export.masking_statement=… answers them."]


def failed_checks(record: Mapping[str, Any]) -> list[str]:
    """The names of the masking checks that failed."""
    return [check["name"] for check in (record.get("masking") or {}).get("checks", []) if check.get("passed") is False]


def overridden(record: Mapping[str, Any], statement: str | None) -> bool:
    """Whether the evaluation passes only because the author answers for it."""
    masking = record.get("masking")
    return statement is not None and bool(masking) and masking.get("verdict") != "believable"
