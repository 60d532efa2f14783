"""FAB: the nearest adversarial image, by steps to the linearised decision boundary; upstream's numbers.

Croce & Hein, "Minimally distorted adversarial examples with a fast adaptive boundary attack" (arXiv:1907.02044);
targeted as in arXiv:2003.01690, section 5. What is left out against upstream, without a changed bit: gradients of
weights; second and third passes over the same images at the start of a target; passes over images that a search left
as they were; upstream's sort (see `projections`); on a GPU, every wait for the device within a search.

A label pass does not double as the next iteration's forward pass: nearly all images are beyond the boundary after a
step (80 to 95 % on a robust CIFAR-10 model) and turn back, so that the next pass is over other images.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from advtrain.evaluation.autoattack.exact.execution import UPSTREAM, Execution, Forward, Found
from advtrain.evaluation.autoattack.exact.fab_steps import (
    LENGTHS,
    UNFOUND,
    Points,
    boundary,
    random_start,
    recorded,
    step,
)
from advtrain.evaluation.autoattack.plan import AttackPlan
from advtrain.types import Images, Labels


def perturb(
    forward: Forward, x: Images, y: Labels, plan: AttackPlan, seed: int, execution: Execution = UPSTREAM
) -> Found:
    """FAB on one batch: `fab` searches for any other class, `fab-t` for one target class after the other.

    Args:
        forward: images to logits.
        x: images in [0, 1], shape (n, ...).
        y: labels, shape (n,).
        plan: fab or fab-t.
        seed: of the random starts.
        execution: by default the images are upstream's, on a CPU bit for bit. With `shrink`, an image leaves a search
            when it is broken within ε, and projections are as accurate as upstream's without having its last bit.

    Returns:
        Misclassified images within ε of `x`; `x` where there are none.
    """
    x, y = x.detach().float().contiguous(), y.detach().long()
    with torch.no_grad():
        images = _Attack(forward, plan, execution, torch.Generator("cpu").manual_seed(seed)).run(x, y)
    return Found(images, torch.zeros(0, dtype=torch.long, device=x.device))


class _Attack:
    def __init__(self, forward: Forward, plan: AttackPlan, execution: Execution, generator: torch.Generator) -> None:
        self.forward, self.plan, self.execution, self.generator = forward, plan, execution, generator

    def run(self, x: Images, y: Labels) -> Images:
        """Start by start, each for the images that are left."""
        adversarial = x.clone()
        logits = self.forward(x)
        right = logits.argmax(1) == y
        fresh = bool(right.all())  # whether `logits` are those of the images that are left
        for target, restart in self._starts():
            left = right.nonzero().squeeze(1)
            if not len(left):
                break
            images, labels = x[left], y[left]
            if not fresh:
                logits = self.forward(images)
            found, broken = self._search(images, labels, logits, target, random=restart > 0)
            fresh = not bool(broken.any())
            if not fresh:
                right[left[broken]] = False
                adversarial[left[broken]] = found[broken]
        return adversarial

    def _starts(self) -> Iterator[tuple[int | None, int]]:
        """Target and restart. Targets are counted by falling logits, the largest being 1; None stands for any."""
        targets = range(2, self.plan.target_classes + 2) if self.plan.name == "fab-t" else [None]
        return ((target, restart) for target in targets for restart in range(self.plan.restarts))

    def _search(
        self, x: Images, y: Labels, logits: Tensor, target: int | None, *, random: bool
    ) -> tuple[Images, Tensor]:
        """One start.

        Returns:
            The nearest adversarial images, and which of them are misclassified within ε; clean ones that are
            misclassified in this batch among them.
        """
        norm, execution, shape = self.plan.norm, self.execution, x.shape[1:]
        points = self._points(x, y, logits, target, random)
        found, distance = x.clone(), torch.full(y.shape, UNFOUND, device=x.device)
        for iteration in range(1, self.plan.iterations + 1):
            if not len(points.index):
                break
            normal, offset = boundary(self.forward, points, shape, norm)
            current = step(points, normal, offset, norm, same_bits=not execution.shrink)
            labels = self.forward(current.view(-1, *shape)).argmax(1)
            looking = execution.block == 1
            points = recorded(points, current, labels != points.labels, norm, looking=looking)
            if execution.shrink and iteration % execution.block == 0:
                decided = points.distance <= self.plan.eps
                if bool(decided.any()):
                    _collect(points.taken(decided.nonzero().squeeze(1)), found, distance)
                    points = points.taken((~decided).nonzero().squeeze(1))
        _collect(points, found, distance)
        return found, self._broken(x, y, logits, found, distance)

    def _points(self, x: Images, y: Labels, logits: Tensor, target: int | None, random: bool) -> Points:
        """Where a search starts: the images that are classified correctly in this batch."""
        index = (logits.argmax(1) == y).nonzero().squeeze(1)
        labels, clean = y[index], x[index].flatten(1)
        order = logits.sort(dim=-1)[1][index]
        towards = order[:, :0] if target is None else order[:, -target].unsqueeze(1)
        start = random_start(clean, self.plan.norm, self.plan.eps, self.generator) if random else clean
        return Points(index, labels, towards, clean, start, clean.clone(), clean.new_full(y.shape, UNFOUND)[index])

    def _broken(self, x: Images, y: Labels, logits: Tensor, found: Images, distance: Tensor) -> Tensor:
        """Which images are misclassified within ε: by a pass over the whole batch, as upstream, or with `shrink` over
        those alone for which that is open."""
        labels = logits.argmax(1)
        within = LENGTHS[self.plan.norm]((x - found).flatten(1)) <= self.plan.eps
        if self.execution.shrink:
            open_ = ((distance < UNFOUND) & within).nonzero().squeeze(1)
            if len(open_):
                labels[open_] = self.forward(found[open_]).argmax(1)
        elif bool((distance < UNFOUND).any()):
            labels = self.forward(found).argmax(1)
        return (labels != y) & within


def _collect(points: Points, found: Images, distance: Tensor) -> None:
    """Writes the best images of `points` where they belong."""
    found[points.index] = points.best.view(-1, *found.shape[1:])  # the clean image where none was found
    distance[points.index] = points.distance
