"""Several threat models in one command, and what a model stands against all of them.

A model is as robust as its weakest threat model: an image counts for the union only when no attack of any norm broke
it (Tramèr & Boneh, "Adversarial Training and Robustness for Multiple Perturbations", arXiv:1904.13000).
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from advtrain import checks
from advtrain.attacks.norms import NORMS
from advtrain.evaluation.records import Evaluation
from advtrain.evaluation.settings import EvaluationSettings
from advtrain.evaluation.statistics import wilson_interval
from advtrain.types import SettingError

ALL = "all"
CIFAR = {"linf": "8/255", "l2": "0.5", "l1": "12"}  # the radii that results are published for
ADVICE = "write e.g. threats=[linf:8/255,l2:0.5,l1:12]"


@dataclass(frozen=True)
class Threat:
    """A ball.

    Attributes:
        norm: linf, l2 or l1.
        eps: radius as written, in units of pixels in [0, 1].
    """

    norm: str
    eps: str

    @property
    def radius(self) -> float:
        return checks.radius("threats", self.eps, self.norm)

    @property
    def folder(self) -> str:
        """For its results."""
        return f"{self.norm}-{self.eps.replace('/', '_')}"

    def __str__(self) -> str:
        return f"{self.norm}, ε = {self.eps}"


def parse_threats(words: Sequence[str] | str, *, stored: Threat, dataset: str) -> list[Threat]:
    """The threat models that `threats=` asks for, in its order; none when it is empty.

    Args:
        words: such as ["linf:8/255", "l2:0.5"], or "all": those of CIFAR, the stored one at its own radius and first.
        stored: the model's own threat model.
        dataset: as leaderboards write it, for "all".

    Raises:
        SettingError: a word is no threat model, stands twice, or "all" has no meaning for the dataset.
    """
    if words == ALL or list(words) == [ALL]:
        return _all(stored, dataset)
    if isinstance(words, str):
        raise SettingError(f"threats: expected a list or {ALL}, got {words!r}; {ADVICE}")
    threats = [_parsed(word) for word in words]
    seen = [(threat.norm, threat.radius) for threat in threats]
    for place, (threat, key) in enumerate(zip(threats, seen, strict=True)):
        if key in seen[:place]:
            raise SettingError(f"threats: expected each threat model once, got {threat} twice; leave one of them out")
    return threats


def _all(stored: Threat, dataset: str) -> list[Threat]:
    if not dataset.startswith("cifar"):
        raise SettingError(
            f"threats: expected a list of threat models for {dataset}, got {ALL}, which has radii for CIFAR only; "
            f"{ADVICE}"
        )
    others = [Threat(norm, eps) for norm, eps in CIFAR.items() if norm != stored.norm]
    return [stored, *others]


def _parsed(word: object) -> Threat:
    norm, separator, eps = str(word).partition(":")
    if not separator or norm not in NORMS:
        raise SettingError(f"threats: expected norm:radius with norm one of {', '.join(NORMS)}, got {word!r}; {ADVICE}")
    threat = Threat(norm, eps.strip())
    if norm == "linf" and checks.number("threats", threat.eps) > 1:
        raise SettingError(
            f"threats: expected an Linf radius up to 1, got {word}; pixels are in [0, 1], so write linf:{eps}/255 if "
            "you mean grey levels"
        )
    if threat.radius <= 0:
        raise SettingError(f"threats: expected a radius above 0, got {word!r}; {ADVICE}")
    return threat


@dataclass(frozen=True)
class Member:
    """One threat model of several.

    Attributes:
        threat: norm and radius.
        attack: the attack whose images decide, "autoattack", "screen" or "pgd".
        indices: images attacked, by their places in the split.
        robust: whether each of them is robust, bool.
    """

    threat: Threat
    attack: str
    indices: Tensor
    robust: Tensor

    @classmethod
    def of(cls, threat: Threat, evaluation: Evaluation) -> "Member":
        """What an evaluation says of one threat model.

        Raises:
            SettingError: no attack ran.
        """
        evidence = evaluation.evidence
        if evidence is None:
            raise SettingError("threats: expected an attack that runs, got none; choose eval=standard")
        return cls(threat, evidence.attack, evidence.indices, evidence.robust)

    @property
    def correct(self) -> int:
        return int(self.robust.sum())


@dataclass(frozen=True)
class Union:
    """Robustness against each of several threat models and against all of them, on the same images.

    Attributes:
        members: the threat models, on the images that all of them attacked.
        robust: whether an image is robust against all, bool, shape (n,).
    """

    members: tuple[Member, ...]
    robust: Tensor

    @property
    def correct(self) -> int:
        return int(self.robust.sum())

    def record(self) -> dict[str, Any]:
        """The "threats" of evaluation.json: by folder, and under "union" what holds against all."""
        each = {
            member.threat.folder: {
                "norm": member.threat.norm,
                "eps": member.threat.radius,
                "attack": member.attack,
                **_count(member.correct, len(member.robust)),
            }
            for member in self.members
        }
        return {**each, "union": _count(self.correct, len(self.robust))}

    def lines(self) -> list[str]:
        """For people: a line per threat model, and one for all of them."""
        n = len(self.robust)
        lines = ["threat models, on the same images"]
        lines += [_line(f"{member.threat}, {member.attack}", member.correct, n) for member in self.members]
        return [*lines, _line("against all of them", self.correct, n)]


def settings_for_others(settings: EvaluationSettings) -> EvaluationSettings:
    """What is measured for the threat models after the first: corruptions know no radius, and radii of one norm mean
    nothing in another, so the curve takes multiples of the threat's own."""
    return replace(
        settings, corruptions=replace(settings.corruptions, enabled=False), curve=replace(settings.curve, eps=[])
    )


def union(members: Sequence[Member]) -> Union:
    """What holds against all `members`, on the images that every one of them attacked.

    Raises:
        SettingError: there is no such image.
    """
    common = members[0].indices
    for member in members[1:]:
        common = common[torch.isin(common, member.indices)]
    if not len(common):
        raise SettingError("threats: expected images that every threat model attacked, got none; set one n_examples")
    cut = tuple(_cut(member, common) for member in members)
    return Union(cut, torch.stack([member.robust for member in cut]).all(0))


def _cut(member: Member, indices: Tensor) -> Member:
    rows = (member.indices[None, :] == indices[:, None]).int().argmax(1)
    return Member(member.threat, member.attack, indices, member.robust[rows])


def _count(correct: int, n: int) -> dict[str, Any]:
    return {
        "accuracy": correct / n,
        "correct": correct,
        "n_examples": n,
        "interval": list(wilson_interval(correct, n)),
    }


def _line(name: str, correct: int, n: int) -> str:
    low, high = wilson_interval(correct, n)
    return f"  {name:34}{correct / n:8.2%}  [{low:.2%}, {high:.2%}]  {correct} of {n}"
