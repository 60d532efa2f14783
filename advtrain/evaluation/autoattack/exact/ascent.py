"""One run of APGD: gradient ascent from one start per image."""

from typing import NamedTuple

import torch
from torch import Tensor

from advtrain.evaluation.autoattack.exact.execution import Forward
from advtrain.evaluation.autoattack.exact.geometry import Geometry
from advtrain.evaluation.autoattack.exact.objectives import Aim, Objective
from advtrain.evaluation.autoattack.exact.per_image import PerImage, wide

MOMENTUM = 0.75  # α of arXiv:2003.01690, equation 4
FEWER = 0.9  # images leave together: each new size of a batch costs a convolution library some preparation


class Passes:
    """Runs the model.

    Args:
        forward: images to logits.
        objective: the loss per image.
        eot: passes whose gradients are averaged; logits and losses are the last one's.
    """

    def __init__(self, forward: Forward, objective: Objective, eot: int) -> None:
        self.forward, self.objective, self.eot = forward, objective, eot

    def __call__(self, images: Tensor, aim: Aim, *, gradient: bool) -> tuple[Tensor, Tensor, Tensor]:
        """Wrong predictions (bool), losses and the gradient of their sum (empty if it is not wanted)."""
        total = images.new_empty(0)
        for number in range(self.eot):
            leaf = images.detach().requires_grad_()
            with torch.enable_grad():  # also without a gradient: a model may choose other kernels where there is none
                logits = self.forward(leaf)
                losses = self.objective(logits, aim)
                sum_of_losses = losses.sum()
            if gradient:
                (grad,) = torch.autograd.grad(sum_of_losses, leaf)
                total = total + grad if number else grad
        if self.eot > 1:
            total = total / float(self.eot)
        return logits.detach().max(1)[1] != aim.y, losses.detach(), total.contiguous()


class Reached(NamedTuple):
    """Where a run has led.

    Attributes:
        broken: images that were misclassified at any time, shape (n,).
        found: of those, the last misclassified point; with `shrink` the first one or one soon after it.
        best: the points of the highest loss, unless only verdicts were wanted.
        zero_gradients: how many images had a gradient of exactly zero at the start, shape (), for each start.
    """

    broken: Tensor
    found: Tensor
    best: Tensor
    zero_gradients: list[Tensor]


class Ascent(PerImage):
    """The state of a run.

    Args:
        passes: the model.
        geometry: the balls.
        aim: labels and targets.
        start: where to start, shape (n, c, h, w).
        iterations: steps.
        warm: whether the start comes from another run.
        verdicts: whether misclassified points are wanted; else the points of the highest loss.
    """

    def __init__(
        self,
        passes: Passes,
        geometry: Geometry,
        aim: Aim,
        start: Tensor,
        iterations: int,
        *,
        warm: bool,
        verdicts: bool,
    ) -> None:
        self.passes, self.geometry, self.aim = passes, geometry, aim
        self.iterations, self.verdicts = iterations, verdicts
        self.now = start.clamp(0.0, 1.0)
        self.before, self.spare = self.now.clone(), torch.empty_like(self.now)
        self.broken, self.best_losses, self.grad = passes(self.now, aim, gradient=iterations > 0)
        self.found = self.now.clone() if verdicts else self.now
        self.best, self.best_grad = self.now.clone(), self.grad.clone()
        self.pace = geometry.pace(iterations, self.best_losses, self.now if warm else None)
        self.rows = torch.arange(len(start), device=start.device)

    def run(self, leave_every: int = 0) -> Reached:
        """Goes all the way; with `leave_every`, images that are broken leave, at the earliest after as many steps."""
        zero = (self.grad.flatten(1).abs().sum(1) == 0).sum() if self.iterations else self.rows.new_zeros(())
        broken, found = self.broken.clone(), self.now.clone()
        for iteration in range(self.iterations):
            self._iterate(iteration)
            last = iteration == self.iterations - 1  # which leaves no gradient, and nothing to save
            if leave_every and iteration % leave_every == leave_every - 1 and not last:
                stay = (~self.broken).nonzero().squeeze(1)
                if len(stay) <= FEWER * len(self.rows):
                    self._store(broken, found)
                    self.select(stay)
                if not len(stay):
                    break
        self._store(broken, found)
        return Reached(broken, found, self.best, [zero])

    def _iterate(self, iteration: int) -> None:
        weight = MOMENTUM if iteration else 1.0
        new = self.geometry.move(self.now, self.before, self.grad, self.pace, weight, out=self.spare)
        self.now, self.before, self.spare = new, self.now, self.before
        last = iteration == self.iterations - 1
        wrong, losses, self.grad = self.passes(self.now, self.aim, gradient=not last)
        if self.verdicts:
            self.broken |= wrong
            torch.where(wide(wrong), self.now, self.found, out=self.found)
        reviewed = iteration <= self.pace.last_review
        if reviewed or not self.verdicts:
            self._keep_best(losses, gradient=reviewed)
        if reviewed:
            self.pace.observe(losses)
            back = self.pace.review(iteration, self.best_losses, self.best)
            if back is not None:
                torch.where(wide(back), self.best, self.now, out=self.now)
                self.grad = torch.where(wide(back), self.best_grad, self.grad)

    def _keep_best(self, losses: Tensor, *, gradient: bool) -> None:
        better = losses > self.best_losses
        torch.where(wide(better), self.now, self.best, out=self.best)
        if gradient:
            torch.where(wide(better), self.grad, self.best_grad, out=self.best_grad)
        self.best_losses = torch.where(better, losses, self.best_losses)

    def _store(self, broken: Tensor, found: Tensor) -> None:
        broken[self.rows], found[self.rows] = self.broken, self.found
