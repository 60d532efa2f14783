"""AutoAttack through its authors' code (PyPI's pyautoattack), with fallbacks where a model has few classes."""

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from pyautoattack import AutoAttack
from pyautoattack import checks as upstream_checks
from torch import Tensor, nn

from advtrain.evaluation.attack_log import AttackLog, listening
from advtrain.evaluation.settings import AutoAttackSettings
from advtrain.types import Images, Labels, SettingError

NORM_WORDS = {"linf": "Linf", "l2": "L2", "l1": "L1"}
CLASSES_NEEDED = {"apgd-dlr": 3, "apgd-t": 4}  # by the DLR loss and its targeted form; the other attacks need two


@dataclass(frozen=True)
class AutoAttackOutcome:
    """What AutoAttack found.

    Attributes:
        x_adv: adversarial images, on the CPU; the clean image where none was found.
        robust: its verdict per image, bool.
        after: correct and accuracy after each attack, the first entry without any.
        flags: its warnings, by name.
        settings: what ran, in full.
    """

    x_adv: Images
    robust: Tensor
    after: list[dict[str, Any]]
    flags: list[dict[str, str | int]]
    settings: dict[str, Any]


def run_autoattack(
    model: nn.Module,
    x: Images,
    y: Labels,
    *,
    norm: str,
    eps: float,
    settings: AutoAttackSettings,
    device: torch.device | str,
    report: Callable[[str], None],
) -> AutoAttackOutcome:
    """Attacks `x` with every attack of the version, each on the images that are still classified correctly.

    The same settings give the same images; random number generators are left as they were.

    Args:
        model: images to logits, eager, in eval mode, on `device`.
        x: images in [0, 1], shape (n, c, h, w), contiguous, on the CPU.
        y: labels, on the CPU.
        norm, eps: the threat model.
        settings: which attacks.
        device: where the attacks run.
        report: takes lines of progress.

    Raises:
        SettingError: version=custom names an attack that needs more classes than there are.
    """
    with torch.no_grad():
        logits = [model(part.to(device)) for part in x.split(settings.batch_size)]
    correct = int((torch.cat(logits).argmax(1).cpu() == y).sum())
    num_classes = logits[0].shape[1]
    log = AttackLog(len(x), correct, report)
    with listening(log), _undisturbed(device):
        adversary: Any = AutoAttack(
            model,
            norm=NORM_WORDS[norm],  # pyright: ignore[reportArgumentType]
            eps=eps,
            seed=settings.seed,
            device=device,
            version=settings.version,  # pyright: ignore[reportArgumentType]
            attacks=list(settings.attacks) or None,  # pyright: ignore[reportArgumentType]
        )
        used = _record(adversary, settings, _fit_classes(adversary, num_classes))
        x_adv, predictions = adversary.run_standard_evaluation(x, y, batch_size=settings.batch_size)
    robust = predictions == y
    return AutoAttackOutcome(x_adv, robust, _after(log, int(robust.sum())), list(log.flags.values()), used)


def attacks_for(attacks: Sequence[str], num_classes: int) -> list[str]:
    """`attacks` with what needs more classes replaced: apgd-t by apgd-dlr below 4 classes, nothing below 3."""
    possible: list[str] = []
    for attack in attacks:
        if attack == "apgd-t" and num_classes < CLASSES_NEEDED["apgd-t"]:
            attack = "apgd-dlr"
        if num_classes >= CLASSES_NEEDED.get(attack, 2) and attack not in possible:
            possible.append(attack)
    return possible


def _fit_classes(adversary: Any, num_classes: int) -> str | None:
    """Adapts the attacks to the class count; says in one line what differs from the version's definition, if anything.

    Raises:
        SettingError: the user's own list of attacks would have to change, or there is only one class.
    """
    if num_classes < 2:
        raise SettingError(f"AutoAttack: expected a model with 2 or more classes, got {num_classes}; check the model")
    wanted = list(adversary.attacks_to_run)
    possible = attacks_for(wanted, num_classes)
    if possible != wanted and adversary.version == "custom":
        raise SettingError(
            f"eval.autoattack.attacks: expected attacks for {num_classes} classes, got {', '.join(wanted)} (apgd-dlr "
            f"needs 3 classes, apgd-t 4); choose {', '.join(possible) or 'apgd-ce, fab-t, square'}"
        )
    adversary.attacks_to_run = possible
    targets = min(9, num_classes - 1)
    targeted = [attack for attack in possible if attack.endswith("-t")]
    changes = []
    if possible != wanted:
        changes.append(f"{', '.join(possible)} instead of {', '.join(wanted)}")
    for attack in (adversary.apgd_targeted, adversary.fab):
        attack.n_target_classes = min(attack.n_target_classes, targets)
    if targets < 9 and targeted:
        changes.append(f"{targets} target class{'es' if targets > 1 else ''} instead of 9 in {', '.join(targeted)}")
    return f"with {num_classes} classes: {'; '.join(changes)}" if changes else None


def _record(adversary: Any, settings: AutoAttackSettings, fallback: str | None) -> dict[str, Any]:
    return {
        "implementation": "pyautoattack",
        "version": settings.version,
        "attacks": list(adversary.attacks_to_run),
        "fallback": fallback,
        "parameters": {attack: _parameters(adversary, attack) for attack in adversary.attacks_to_run},
        "seed": settings.seed,
        "batch_size": settings.batch_size,
    }


def _parameters(adversary: Any, attack: str) -> dict[str, int]:
    """What the attack will use, read from upstream's objects."""
    if attack == "square":
        return {"queries": adversary.square.n_queries, "restarts": adversary.square.n_restarts}
    part = {"fab": adversary.fab, "fab-t": adversary.fab, "apgd-t": adversary.apgd_targeted}.get(attack, adversary.apgd)
    parameters = {"iterations": part.n_iter, "restarts": 1 if attack == "fab-t" else part.n_restarts}
    if attack.endswith("-t"):
        parameters["target_classes"] = part.n_target_classes
    if attack.startswith("apgd"):
        parameters["eot"] = part.eot_iter
    return parameters


def _after(log: AttackLog, robust: int) -> list[dict[str, Any]]:
    correct = robust + sum(stage.broken for stage in log.stages)
    after: list[dict[str, Any]] = [{"attack": "none", "correct": correct, "accuracy": correct / log.n_examples}]
    for stage in log.stages:
        correct -= stage.broken
        seconds = round(stage.seconds, 3)
        after.append(
            {"attack": stage.attack, "correct": correct, "accuracy": correct / log.n_examples, "seconds": seconds}
        )
    return after


@contextmanager
def _undisturbed(device: torch.device | str) -> Iterator[None]:
    """Keeps upstream's side effects in: it seeds the global generators, and its check for dynamic models ends any
    tracer (coverage, debugger) and counts over all models of the process."""
    tracer = sys.gettrace()
    devices = [device] if torch.device(device).type == "cuda" else []
    upstream_checks.funcs.update(dict.fromkeys(upstream_checks.funcs, 0))
    try:
        with torch.random.fork_rng(devices=devices):
            yield
    finally:
        sys.settrace(tracer)
