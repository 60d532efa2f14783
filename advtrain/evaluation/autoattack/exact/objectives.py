"""The losses that APGD increases and Square's margin, per image, written so that values and gradients have upstream's
rounding."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from advtrain.evaluation.autoattack.exact.per_image import TINY, PerImage

Objective = Callable[[Tensor, "Aim"], Tensor]  # logits (n, k), aim -> losses (n,)


class Aim(PerImage):
    """What an attack wants of its images.

    Attributes:
        y: their labels, shape (n,).
        target: the class that a targeted attack wants, shape (n,); else the labels.
    """

    def __init__(self, y: Tensor, target: Tensor | None = None) -> None:
        self.y = y
        self.target = y if target is None else target


def cross_entropy(logits: Tensor, aim: Aim) -> Tensor:
    """CE of the label."""
    return functional.cross_entropy(logits, aim.y, reduction="none")


def dlr(logits: Tensor, aim: Aim) -> Tensor:
    """Difference of logits ratio, -(z_y - max_{i≠y} z_i) / (z_π1 - z_π3) (arXiv:2003.01690, equation 6)."""
    ordered, order = logits.sort(1)
    top = ordered[:, -1]
    hit = (order[:, -1] == aim.y).float()
    own = _pick(logits, aim.y)
    return -(own - ordered[:, -2] * hit - top * (1.0 - hit)) / (top - ordered[:, -3] + TINY)


def targeted_dlr(logits: Tensor, aim: Aim) -> Tensor:
    """-(z_y - z_t) / (z_π1 - (z_π3 + z_π4) / 2) (arXiv:2003.01690, equation 7)."""
    ordered = logits.sort(1)[0]
    gap = _pick(logits, aim.y) - _pick(logits, aim.target)
    return -gap / (ordered[:, -1] - 0.5 * (ordered[:, -3] + ordered[:, -4]) + TINY)


def margin(logits: Tensor, y: Tensor) -> Tensor:
    """Logit of the label minus the best other one; positive as long as the label wins. No gradients."""
    others = logits.scatter(1, y[:, None], -torch.inf)
    return _pick(logits, y) - others.amax(1)


def _pick(logits: Tensor, classes: Tensor) -> Tensor:
    return logits.gather(1, classes[:, None]).squeeze(1)
