"""APGD (Croce & Hein, arXiv:2003.01690; L1: arXiv:2103.01208) on CE, DLR and targeted DLR, with upstream's numbers.

What it leaves out of upstream's work: gradients nobody reads (of a run's last iteration), best images and losses after
the last moment they are asked for, logits of the same batch a second time, a projection whose result is thrown away,
and everything that makes the host wait for a GPU inside a run.
"""

import math
from collections.abc import Iterable
from itertools import product
from typing import NamedTuple

import torch
from torch import Tensor

from advtrain.evaluation.autoattack.exact.ascent import Ascent, Passes, Reached
from advtrain.evaluation.autoattack.exact.draws import Draws
from advtrain.evaluation.autoattack.exact.execution import UPSTREAM, Execution, Forward, Found
from advtrain.evaluation.autoattack.exact.geometry import GEOMETRIES
from advtrain.evaluation.autoattack.exact.l1_ball import l1_correction
from advtrain.evaluation.autoattack.exact.objectives import Aim, Objective, cross_entropy, dlr, targeted_dlr
from advtrain.evaluation.autoattack.exact.per_image import wide
from advtrain.evaluation.autoattack.plan import CLASSES_NEEDED, AttackPlan
from advtrain.types import Images, Labels, SettingError

OBJECTIVES: dict[str, Objective] = {"apgd-ce": cross_entropy, "apgd-dlr": dlr, "apgd-t": targeted_dlr}
LEAVE_EVERY = 5  # steps between two moments at which broken images may leave, with Execution.shrink


class Phase(NamedTuple):
    """A part of a run with one ε."""

    eps: float
    iterations: int


def perturb(
    forward: Forward, x: Images, y: Labels, plan: AttackPlan, seed: int, execution: Execution = UPSTREAM
) -> Found:
    """APGD on one batch; on a CPU the images are upstream's, bit for bit.

    A randomised model draws from the global generators, in upstream between the attack's own draws. With plan.eot > 1
    (version=rand) the attack therefore seeds the global generators, draws from them as well and leaves them where
    upstream does: the caller saves and restores them. With plan.eot = 1 they stay as they are, and passes that a
    deterministic model makes needless are left out.

    Args:
        forward: images to logits, deterministic unless plan.eot > 1; its parameters take no gradient.
        x: images in [0, 1], contiguous; those that are not classified as `y` are returned as they are.
        y: labels.
        plan: apgd-ce, apgd-dlr or apgd-t.
        seed: of the random draws.
        execution: how it runs. `block` only matters with `shrink`.

    Raises:
        SettingError: the attack needs more classes than there are, or the plan is none of APGD.
    """
    _check(plan)
    x, y = x.detach().float().contiguous(), y.detach().long()
    with torch.no_grad():
        logits: Tensor | None = forward(x)
        _check_classes(plan, logits.shape[1])
        robust = logits.max(1)[1] == y
        draws = Draws(seed, x.device, shared=plan.eot > 1)
        passes = Passes(forward, OBJECTIVES[plan.name], plan.eot)
        images, zeros = x.clone(), []
        rows, part = torch.arange(len(x), device=x.device), x
        for rank, _ in product(_ranks(plan), range(plan.restarts)):
            left = robust.nonzero().squeeze(1)  # the host looks once per start
            if not len(left):
                break
            if len(left) < len(rows):
                rows, part, logits = left, x[left], None
            if rank and (logits is None or draws.shared):
                logits = forward(part)
            target = logits.sort(1)[1][:, -rank] if rank and logits is not None else None
            reached = _start(passes, part, Aim(y[rows], target), plan, draws, execution)
            zeros += reached.zero_gradients
            robust[rows] = ~reached.broken
            images[rows] = torch.where(wide(reached.broken), reached.found, part)
    return Found(images, torch.stack(zeros) if zeros and plan.name != "apgd-ce" else rows.new_zeros(0))


def _start(passes: Passes, x: Tensor, aim: Aim, plan: AttackPlan, draws: Draws, execution: Execution) -> Reached:
    """One start: a run, or three with shrinking ε, each from the best points of the one before."""
    geometry = GEOMETRIES[plan.norm]
    leave_every = max(execution.block, LEAVE_EVERY) if execution.shrink else 0
    if not plan.large_eps:
        ball = geometry(x, plan.eps)
        return Ascent(passes, ball, aim, ball.start(draws), plan.iterations, warm=False, verdicts=True).run(leave_every)
    *larger, last = phases(plan)
    start = x + draws.normal_on_device(x.shape)
    start += l1_correction(x, start - x, larger[0].eps)
    zeros = []
    for eps, iterations in (*larger, last):
        start += l1_correction(x, start - x, eps)
        draws.skip_normal(x.shape)  # of a random start, which is not used
        final = len(zeros) == len(larger)
        ascent = Ascent(passes, geometry(x, eps), aim, start, iterations, warm=True, verdicts=final)
        reached = ascent.run(leave_every if final else 0)
        zeros += reached.zero_gradients
        start = reached.best
    return reached._replace(zero_gradients=zeros)


def phases(plan: AttackPlan) -> list[Phase]:
    """The radii 3ε, 2ε and ε with 30, 30 and 40 % of the iterations (arXiv:2103.01208, section 3.4)."""
    n_larger = math.ceil(0.3 * plan.iterations)
    numbers = (n_larger, n_larger, plan.iterations - 2 * n_larger)
    return [Phase(factor * plan.eps, number) for factor, number in zip((3.0, 2.0, 1.0), numbers, strict=True)]


def _ranks(plan: AttackPlan) -> Iterable[int | None]:
    """Which classes are targeted in turn: those with the second highest logit, the third highest …"""
    return range(2, plan.target_classes + 2) if plan.name == "apgd-t" else (None,)


def _check(plan: AttackPlan) -> None:
    if plan.name not in OBJECTIVES or plan.norm not in GEOMETRIES:
        raise SettingError(
            f"APGD: expected apgd-ce, apgd-dlr or apgd-t in linf, l2 or l1, got {plan.name} in {plan.norm}; choose so"
        )
    fewest = 2 if plan.large_eps else 1
    if plan.iterations < fewest:
        raise SettingError(f"{plan.name}: expected {fewest} or more iterations, got {plan.iterations}; give more")
    if plan.large_eps and plan.norm != "l1":
        raise SettingError(f"{plan.name}: expected large_eps with l1 only, got it with {plan.norm}; leave it out")


def _check_classes(plan: AttackPlan, num_classes: int) -> None:
    needed = max(CLASSES_NEEDED.get(plan.name, 2), plan.target_classes + 1)
    if num_classes < needed:
        raise SettingError(
            f"{plan.name}: expected a model with {needed} or more classes, got {num_classes}; choose another attack or "
            "fewer target classes"
        )
