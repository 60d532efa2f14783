"""What a version of AutoAttack runs: each attack with its numbers, and what few classes change.

Versions as in Croce & Hein (arXiv:2003.01690) and, for L1, Croce & Hein (arXiv:2103.01208); numbers as in their code.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from advtrain.types import SettingError

CLASSES_NEEDED = {"apgd-dlr": 3, "apgd-t": 4}  # by the DLR loss and its targeted form; the other attacks need two
VERSIONS: dict[str, tuple[str, ...]] = {
    "standard": ("apgd-ce", "apgd-t", "fab-t", "square"),
    "plus": ("apgd-ce", "apgd-dlr", "fab", "square", "apgd-t", "fab-t"),
    "rand": ("apgd-ce", "apgd-dlr"),
}


@dataclass(frozen=True)
class AttackPlan:
    """One attack of the sequence, in full.

    Attributes:
        name: apgd-ce, apgd-dlr, apgd-t, fab, fab-t or square.
        norm: linf, l2 or l1.
        eps: radius in units of pixels in [0, 1].
        iterations: gradient steps of a start; of square, queries.
        restarts: random starts, per target class where there are any.
        target_classes: how many of the other classes are targeted in turn; 0 for untargeted attacks.
        eot: gradients averaged per step, for randomised models.
        large_eps: APGD in L1 starts with 3ε and 2ε.
    """

    name: str
    norm: str
    eps: float
    iterations: int = 100
    restarts: int = 1
    target_classes: int = 0
    eot: int = 1
    large_eps: bool = False

    def parameters(self) -> dict[str, int]:
        """The numbers, as a record shows them."""
        if self.name == "square":
            return {"queries": self.iterations, "restarts": self.restarts}
        numbers = {"iterations": self.iterations, "restarts": self.restarts}
        if self.target_classes:
            numbers["target_classes"] = self.target_classes
        return numbers | ({"eot": self.eot} if self.name.startswith("apgd") else {})


def plans(
    version: str, attacks: Sequence[str], *, norm: str, eps: float, num_classes: int
) -> tuple[list[AttackPlan], str | None]:
    """The attacks of a version in their order, and in one line what few classes change of it, if anything.

    Args:
        version: standard, plus, rand or custom.
        attacks: of version=custom.
        norm, eps: the threat model.
        num_classes: logits of the model.

    Raises:
        SettingError: the user's own list of attacks would have to change, or there is only one class.
    """
    if num_classes < 2:
        raise SettingError(f"AutoAttack: expected a model with 2 or more classes, got {num_classes}; check the model")
    wanted = list(attacks) if version == "custom" else list(VERSIONS[version])
    possible = attacks_for(wanted, num_classes)
    if possible != wanted and version == "custom":
        raise SettingError(
            f"eval.autoattack.attacks: expected attacks for {num_classes} classes, got {', '.join(wanted)} (apgd-dlr "
            f"needs 3 classes, apgd-t 4); choose {', '.join(possible) or 'apgd-ce, fab-t, square'}"
        )
    others = num_classes - 1
    planned = [_plan(name, version, norm, eps, others) for name in possible]
    changes = [f"{', '.join(possible)} instead of {', '.join(wanted)}"] if possible != wanted else []
    fewer = [plan for plan in planned if 0 < plan.target_classes < _targets(plan.name, version, norm)]
    if fewer:
        words = f"{others} target class{'es' if others > 1 else ''} instead of"
        by_count = {_targets(plan.name, version, norm): [] for plan in fewer}
        for plan in fewer:
            by_count[_targets(plan.name, version, norm)].append(plan.name)
        changes += [f"{words} {count} in {', '.join(names)}" for count, names in by_count.items()]
    return planned, f"with {num_classes} classes: {'; '.join(changes)}" if changes else None


def attacks_for(attacks: Sequence[str], num_classes: int) -> list[str]:
    """`attacks` with what needs more classes replaced: apgd-t by apgd-dlr below 4 classes, nothing below 3."""
    possible: list[str] = []
    for attack in attacks:
        if attack == "apgd-t" and num_classes < CLASSES_NEEDED["apgd-t"]:
            attack = "apgd-dlr"
        if num_classes >= CLASSES_NEEDED.get(attack, 2) and attack not in possible:
            possible.append(attack)
    return possible


def screen_plans(*, norm: str, eps: float, num_classes: int) -> list[AttackPlan]:
    """APGD-CE and APGD-T (APGD-DLR below 4 classes): the part of the standard version that selects models."""
    names = attacks_for(("apgd-ce", "apgd-t"), num_classes)
    return [_plan(name, "standard", norm, eps, num_classes - 1) for name in names]


def _plan(name: str, version: str, norm: str, eps: float, others: int) -> AttackPlan:
    """The version's numbers for one attack. A custom list has those that upstream's constructor gives."""
    if name == "square":
        return AttackPlan(name, norm, eps, iterations=5000)
    restarts = 1 if name in ("apgd-t", "fab-t") else 5
    if name.startswith("apgd") and (version == "rand" or (version == "standard" and norm != "l1")):
        restarts = 1
    if name == "fab" and version == "standard":
        restarts = 1
    large_eps = version == "standard" and norm == "l1" and name.startswith("apgd")
    eot = 20 if version == "rand" and name != "apgd-t" else 1
    targets = min(_targets(name, version, norm), others)
    return AttackPlan(name, norm, eps, restarts=restarts, target_classes=targets, eot=eot, large_eps=large_eps)


def _targets(name: str, version: str, norm: str) -> int:
    if not name.endswith("-t"):
        return 0
    return 5 if name == "apgd-t" and version == "standard" and norm == "l1" else 9


def describe(planned: Sequence[AttackPlan]) -> dict[str, Any]:
    """The `attacks` and `parameters` of a record."""
    return {
        "attacks": [plan.name for plan in planned],
        "parameters": {plan.name: plan.parameters() for plan in planned},
    }
