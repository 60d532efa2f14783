"""The attack of the curve: short searches from given starts, on objectives that fail in different ways."""

from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from advtrain.attacks import APGD, ascent
from advtrain.attacks.norms import L1
from advtrain.evaluation.autoattack.plan import AttackPlan, attacks_for
from advtrain.losses.functional import margin_per_image
from advtrain.losses.objectives import CrossEntropy, Margin, ModelObjective
from advtrain.types import Images, Labels, Logits, Objective, PerImage

MOMENTUM = 0.75  # the weight of the new step against the last movement, as in APGD
L1_TARGETS = 3  # classes that APGD-T aims at
PIXELS = 5  # that a first step in L1 moves, per unit of radius; the last moves a tenth of these


@dataclass(frozen=True)
class TargetMargin:
    """f_t(x') - f_y(x') for a class t of each image: positive where t beats the label."""

    y: Labels
    target: Labels

    def __call__(self, logits: Logits) -> PerImage:
        return (logits.gather(1, self.target[:, None]) - logits.gather(1, self.y[:, None]))[:, 0]


@dataclass(frozen=True)
class Climb:
    """How much is searched at one radius.

    Cross-entropy and the margin of the logits, each from a random start, and the margin of the classes that come next;
    at every radius but the first also the margin from the best images so far.

    Attributes:
        steps: of a search on cross-entropy or margin.
        targets: classes that are aimed at in turn, those of the largest clean logits.
        target_steps: of a search for one of them.
        apgd_steps: of AutoAttack's APGD-T in L1, on three targets, which comes last; 0 where it does not run.
    """

    steps: int
    targets: int
    target_steps: int
    apgd_steps: int = 0

    def record(self, norm: str) -> dict[str, Any]:
        """What runs, for evaluation.json."""
        searches = ["margin, from the radius before", "ce", "margin"]
        searches += ["margin of a target class"] if self.targets else []
        searches += ["apgd-t"] if self.apgd_steps else []
        return {"attack": "sparse ascent" if norm == "l1" else "apgd", "searches": searches, **asdict(self)}


CLIMB = {"linf": Climb(20, 3, 10), "l2": Climb(20, 3, 10), "l1": Climb(30, 0, 0, 60)}


def l1_plan(eps: float, num_classes: int) -> AttackPlan:
    """APGD for L1 as AutoAttack has it, of fewer steps; on cross-entropy where there are too few classes to aim at."""
    (name,) = attacks_for(["apgd-t"], num_classes) or ["apgd-ce"]
    targets = min(L1_TARGETS, num_classes - 1) if name == "apgd-t" else 0
    return AttackPlan(name, "l1", eps, iterations=CLIMB["l1"].apgd_steps, target_classes=targets, large_eps=True)


def climbed(
    model: nn.Module,
    objective: str,
    x: Images,
    y: Labels,
    start: Images,
    targets: Tensor | None = None,
    *,
    norm: str,
    eps: float,
    steps: int,
) -> Images:
    """Images within `eps` of `x` and in [0, 1], found from `start`.

    Args:
        model: images to logits.
        objective: "ce" or "margin"; with `targets` the margin of those classes, whatever it says.
        x, y: clean images and labels.
        start: where the search begins.
        targets: a class for each image.
        norm, eps: the ball.
        steps: gradients taken.
    """
    measure = {"ce": CrossEntropy, "margin": Margin}[objective](y) if targets is None else TargetMargin(y, targets)
    loss = ModelObjective(model, measure)
    if norm == "l1":
        return sparse_ascent(loss, x, start, eps=eps, steps=steps)
    return APGD(norm=norm, eps=eps, steps=steps)(loss, x, start=start)


def sparse_ascent(loss: Objective, x: Images, start: Images, *, eps: float, steps: int) -> Images:
    """Ascent in the L1 ball, along the signs of the largest slopes; returns the best point.

    The steps of SLIDE (Tramèr & Boneh, arXiv:1904.13000) with what makes APGD strong in L1 (Croce & Hein,
    arXiv:2103.01208): the projection onto the intersection of ball and [0, 1], long first steps that shrink, and fewer
    and fewer pixels.

    Args:
        loss: what is maximised.
        x: clean images.
        start: where the search begins; brought into the ball first.
        eps: radius.
        steps: gradients taken. Over them a step shrinks from ε to ε/20.
    """
    geometry = L1()
    current = previous = geometry.inside(x, start, eps)
    best, best_value = current, torch.full((len(x),), -torch.inf, device=x.device)
    for k in range(steps):
        value, gradient = ascent.value_and_gradient(loss, current)
        better = value > best_value
        best, best_value = ascent.per_image(better, current, best), value.where(better, best_value)
        # Of pixels moved all the way the ball holds about as many as its radius says.
        moved = min(max(1, round(PIXELS * eps * 0.1 ** (k / steps))), x[0].numel())
        step = _equal_share(current, gradient, moved) * (eps * 0.05 ** (k / steps))
        following = geometry.inside(x, current + step, eps)
        momentum = MOMENTUM * (following - current) + (1 - MOMENTUM) * (current - previous)
        previous, current = current, geometry.inside(x, current + momentum, eps)
    return ascent.per_image(ascent.values(loss, current) > best_value, current, best)


def _equal_share(x: Images, gradient: Images, moved: int) -> Images:
    """The direction of L1 length 1 that moves the `moved` pixels of largest slope alike, of those not at their end."""
    slope = gradient.flatten(1)
    room = torch.where(slope > 0, 1 - x.flatten(1), x.flatten(1)) > 0
    places = (slope.abs() * room).topk(moved, dim=1)
    signs = (slope.sign() * room).gather(1, places.indices)
    direction = torch.zeros_like(slope).scatter_(1, places.indices, signs)
    return (direction / direction.abs().sum(1, keepdim=True).clamp_min(1)).view_as(x)


@torch.no_grad()
def margins(logits: Logits, y: Labels) -> PerImage:
    """max_{j≠y} f_j - f_y, without gradient."""
    return margin_per_image(logits, y)
