"""AutoAttack through its authors' code (PyPI's pyautoattack), unchanged: engine=upstream, and the tests' reference."""

import logging
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from pyautoattack import AutoAttack
from pyautoattack import checks as upstream_checks
from torch import Tensor, nn

from advtrain.evaluation.autoattack.attack_log import AttackLog, listening
from advtrain.evaluation.autoattack.plan import AttackPlan, describe, plans
from advtrain.evaluation.settings import AutoAttackSettings
from advtrain.types import Images, Labels

NORM_WORDS = {"linf": "Linf", "l2": "L2", "l1": "L1"}


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
    planned, fallback = plans(settings.version, settings.attacks, norm=norm, eps=eps, num_classes=num_classes)
    log = AttackLog(len(x), correct, report)
    with listening(log), undisturbed(device):
        adversary: Any = AutoAttack(
            model,
            norm=NORM_WORDS[norm],  # pyright: ignore[reportArgumentType]
            eps=eps,
            seed=settings.seed,
            device=device,
            version=settings.version,  # pyright: ignore[reportArgumentType]
            attacks=list(settings.attacks) or None,  # pyright: ignore[reportArgumentType]
        )
        adversary.attacks_to_run = [plan.name for plan in planned]
        for attack in (adversary.apgd_targeted, adversary.fab):
            attack.n_target_classes = min(attack.n_target_classes, num_classes - 1)
        x_adv, predictions = adversary.run_standard_evaluation(x, y, batch_size=settings.batch_size)
    robust = predictions == y
    used = {
        "engine": "upstream",
        "implementation": "pyautoattack",
        "version": settings.version,
        **describe(planned),
        "fallback": fallback,
        "seed": settings.seed,
        "batch_size": settings.batch_size,
    }
    return AutoAttackOutcome(x_adv, robust, _after(log, int(robust.sum())), list(log.flags.values()), used)


def perturb(model: nn.Module, x: Images, y: Labels, plan: AttackPlan, seed: int) -> Images:
    """One attack on one batch, by upstream's own class.

    Args:
        model: images to logits, eager, in eval mode.
        x: images in [0, 1] that are classified correctly, on the model's device.
        y: labels, there too.
        plan: the attack.
        seed: of its random draws.

    Returns:
        Adversarial images; the clean image where none was found.
    """
    with listening(logging.NullHandler()), undisturbed(x.device), torch.no_grad():
        adversary: Any = AutoAttack(
            model,
            norm=NORM_WORDS[plan.norm],  # pyright: ignore[reportArgumentType]
            eps=plan.eps,
            seed=seed,
            device=x.device,
            version="custom",
            attacks=[plan.name],  # pyright: ignore[reportArgumentType]
        )
        attack = _fit(adversary, plan)
        attack.seed = seed
        return attack.perturb(x.clone(), y.clone())


def _fit(adversary: Any, plan: AttackPlan) -> Any:
    """Gives upstream's object for the attack the plan's numbers; returns the object."""
    if plan.name == "square":
        adversary.square.n_queries, adversary.square.n_restarts = plan.iterations, plan.restarts
        return adversary.square
    if plan.name in ("fab", "fab-t"):
        attack = adversary.fab
        attack.targeted = plan.name == "fab-t"
    else:
        attack = adversary.apgd_targeted if plan.name == "apgd-t" else adversary.apgd
        attack.eot_iter, attack.use_largereps = plan.eot, plan.large_eps
        attack.n_iter_orig = plan.iterations
        attack.loss = {"apgd-ce": "ce", "apgd-dlr": "dlr", "apgd-t": "dlr-targeted"}[plan.name]
        # As in upstream's constructor.
        attack.n_iter_2 = max(int(0.22 * plan.iterations), 1)
        attack.n_iter_min = max(int(0.06 * plan.iterations), 1)
        attack.size_decr = max(int(0.03 * plan.iterations), 1)
    attack.n_iter, attack.n_restarts = plan.iterations, plan.restarts
    if plan.target_classes:
        attack.n_target_classes = plan.target_classes
    return attack


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
def undisturbed(device: torch.device | str) -> Iterator[None]:
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
