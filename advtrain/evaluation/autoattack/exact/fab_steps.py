"""One iteration of FAB in pure functions: linearise the boundary, step to it, keep what is adversarial and turn back.

Croce & Hein, arXiv:1907.02044, algorithm 1. Images are flat here, shape (n, pixels).
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from advtrain.evaluation.autoattack.exact.execution import Forward
from advtrain.evaluation.autoattack.exact.projections import PROJECTIONS

ALPHA_MAX = 0.1  # α_max: the largest weight of the step that starts from the clean image
OVERSHOOT = 1.05  # η: steps end this much beyond the boundary
BACKWARD = 0.9  # β: the share of the way from the clean image that is kept of an adversarial image
SHORTEST = 1e-8  # of a step, where steps are compared
UNFOUND = 1e10  # upstream's distance of what was not found, and the margin of the true class
LENGTHS: dict[str, Callable[[Tensor], Tensor]] = {
    "linf": lambda d: d.abs().amax(1),
    "l2": lambda d: (d**2).sum(1).sqrt(),
    "l1": lambda d: d.abs().sum(1),
}
DUAL_LENGTHS: dict[str, Callable[[Tensor], Tensor]] = {
    "linf": lambda g: g.abs().sum(-1),
    "l2": lambda g: (g**2).sum(-1).sqrt(),
    "l1": lambda g: g.abs().amax(-1),
}


class Points(NamedTuple):
    """A search's images and what belongs to each.

    Attributes:
        index: place among the images given to the search.
        labels: true classes.
        target: class, shape (n, 1); of shape (n, 0) where every other class may be it.
        clean: the images, shape (n, pixels).
        current: where the search is.
        best: the nearest adversarial images so far.
        distance: of `best`; UNFOUND without.
    """

    index: Tensor
    labels: Tensor
    target: Tensor
    clean: Tensor
    current: Tensor
    best: Tensor
    distance: Tensor

    def taken(self, rows: Tensor) -> "Points":
        return Points(*(part[rows] for part in self))


def random_start(clean: Tensor, norm: str, eps: float, generator: torch.Generator) -> Tensor:
    """Points half of `eps` away, in upstream's draws, which are made on the CPU."""
    draw = torch.rand if norm == "linf" else torch.randn
    noise = draw(clean.shape, generator=generator).to(clean.device)
    if norm == "linf":
        noise = 2 * noise - 1
    return (clean + eps * noise / LENGTHS[norm](noise).unsqueeze(1) * 0.5).clamp_(0, 1)


def boundary(forward: Forward, points: Points, shape: torch.Size, norm: str) -> tuple[Tensor, Tensor]:
    """The decision boundary, linearised at the current points: w, shape (n, pixels), and b of {z: ⟨w, z⟩ = b}.

    Towards the target, or towards the class whose linearised boundary is nearest.
    """
    images = points.current.view(-1, *shape).clone().requires_grad_()
    with torch.enable_grad():
        logits = forward(images)
    labels = points.labels.unsqueeze(1)
    if points.target.shape[1]:
        margin = -(logits.gather(1, labels) - logits.gather(1, points.target)).detach().squeeze(1)
        difference = torch.zeros_like(logits).scatter_(1, labels, -1).scatter_(1, points.target, 1, reduce="add")
        (gradient,) = torch.autograd.grad(logits, images, difference)
        normal = gradient.flatten(1)
    else:
        margin, normal = _nearest_class(logits, images, labels, norm)
    return normal, -margin + (normal * points.current).sum(-1)


def _nearest_class(logits: Tensor, images: Tensor, labels: Tensor, norm: str) -> tuple[Tensor, Tensor]:
    """For the class with the nearest linearised boundary, how far its logit is above the true one, and the gradient.

    Takes a backward pass for each class, as upstream does. `labels`: shape (n, 1).
    """
    n, classes = logits.shape
    gradients = logits.new_empty(classes, n, images[0].numel())
    chosen = torch.zeros_like(logits)
    for k in range(classes):
        chosen[:, k] = 1
        (gradient,) = torch.autograd.grad(logits, images, chosen, retain_graph=k < classes - 1)
        gradients[k] = gradient.flatten(1)
        chosen[:, k] = 0
    rows, true = torch.arange(n, device=labels.device), labels.squeeze(1)
    margins = logits.detach() - logits.detach().gather(1, labels)
    margins.scatter_(1, labels, UNFOUND)
    differences = gradients.transpose(0, 1) - gradients[true, rows].unsqueeze(1)
    nearest = (margins.abs() / (1e-12 + DUAL_LENGTHS[norm](differences))).min(1)[1]
    return margins[rows, nearest], differences[rows, nearest]


def step(points: Points, normal: Tensor, offset: Tensor, norm: str, *, same_bits: bool) -> Tensor:
    """The next points: beyond the boundary, on a mixture of the ways there from the current and from the clean image."""
    project, length = PROJECTIONS[norm], LENGTHS[norm]
    if len(normal) > 1:
        near, far = (project(p, normal, offset, same_bits=same_bits) for p in (points.current, points.clean))
        near_length, far_length = length(near), length(far)
    else:  # as one batch of two, upstream's: a single row may be added up in another order
        twice = (torch.cat((part, part)) for part in (normal, offset))
        ways = project(torch.cat((points.current, points.clean)), *twice, same_bits=same_bits)
        (near, far), (near_length, far_length) = ways.split(1), length(ways).split(1)
    near_length, far_length = near_length.clamp_min(SHORTEST), far_length.clamp_min(SHORTEST)
    alpha = (near_length / (near_length + far_length)).clamp(0, ALPHA_MAX).unsqueeze(1)
    from_current = (near * OVERSHOOT).add_(points.current).mul_(1 - alpha)
    from_clean = (far * OVERSHOOT).add_(points.clean).mul_(alpha)
    return from_current.add_(from_clean).clamp_(0, 1)


def recorded(points: Points, current: Tensor, adversarial: Tensor, norm: str, *, looking: bool) -> Points:
    """Keeps adversarial images that are nearer than the best ones, and turns back from all adversarial ones.

    Args:
        points: as before the step.
        current: after the step; changed.
        adversarial: which of these are, shape (n,).
        looking: whether the host looks which these are, to work on them alone.
    """
    if looking:
        rows = adversarial.nonzero().squeeze(1)
        there, clean, distance = current[rows], points.clean[rows], points.distance[rows]
        length = LENGTHS[norm](there - clean)
        nearer = length < distance
        points.best[rows[nearer]] = there[nearer]
        points.distance[rows] = torch.where(nearer, length, distance)
        current[rows] = clean + (there - clean) * BACKWARD
        return points._replace(current=current)
    moved = current - points.clean
    length = LENGTHS[norm](moved)
    nearer = adversarial & (length < points.distance)
    return points._replace(
        current=torch.where(adversarial.unsqueeze(1), points.clean + moved * BACKWARD, current),
        best=torch.where(nearer.unsqueeze(1), current, points.best),
        distance=torch.where(nearer, length, points.distance),
    )
