"""How APGD adapts its step size to its progress."""

from abc import ABC, abstractmethod

import torch
from torch import Tensor

from advtrain.evaluation.autoattack.exact.per_image import PerImage, wide


class Pace(ABC, PerImage):
    """Step sizes of a run.

    Attributes:
        step: step size of each image, shape (n, 1, 1, 1).
        last_review: the last iteration after which `review` does something, -1 if none; nobody needs the best images
            or losses later. A review after the run's last iteration would change nothing.
    """

    step: Tensor
    last_review: int

    @abstractmethod
    def observe(self, losses: Tensor) -> None:
        """Takes the losses after an iteration, shape (n,)."""

    @abstractmethod
    def review(self, iteration: int, best_losses: Tensor, best: Tensor) -> Tensor | None:
        """At a checkpoint adapts the steps and says which images go on from their best point, (n,) bool; else None."""


class Halving(Pace):
    """Linf and L2: halves the step at a checkpoint where progress is slow (arXiv:2003.01690, section 3.2).

    Args:
        eps: radius; the first step is twice as long.
        iterations: of the run.
        best_losses: losses at the start, shape (n,).
    """

    def __init__(self, eps: float, iterations: int, best_losses: Tensor) -> None:
        self.step = wide(torch.full_like(best_losses, 2.0 * eps))
        self.windows = checkpoints(iterations)
        self.last_review = max(self.windows, default=-1)
        self.rises = torch.zeros_like(best_losses)
        self.last_losses = torch.zeros_like(best_losses)  # upstream compares the first losses with zeros
        self.halved = torch.ones_like(best_losses, dtype=torch.bool)
        self.checked_losses = best_losses.clone()

    def observe(self, losses: Tensor) -> None:
        self.rises += losses > self.last_losses
        self.last_losses = losses

    def review(self, iteration: int, best_losses: Tensor, best: Tensor) -> Tensor | None:
        window = self.windows.get(iteration)
        if window is None:
            return None
        stuck = ~self.halved & (self.checked_losses >= best_losses)
        self.halved = (self.rises <= 0.75 * window) | stuck
        self.checked_losses = best_losses.clone()
        self.rises = torch.zeros_like(self.rises)
        self.step = torch.where(wide(self.halved), self.step / 2.0, self.step)
        return self.halved


class Sparsity(Pace):
    """L1: adapts the step and the share of coordinates that it moves to how sparse the best perturbation is
    (arXiv:2103.01208, section 3.3).

    Args:
        eps: radius; the first step is as long.
        iterations: of the run.
        x: clean images.
        start: the points of start where they come from a run with a larger ε; None for random ones.
    """

    SHRINK, SHORTEST = 1.5, 10.0

    def __init__(self, eps: float, iterations: int, x: Tensor, start: Tensor | None) -> None:
        self.eps = eps
        self.x = x
        self.pixels = x[0].numel()
        self.step = x.new_full((len(x), 1, 1, 1), eps)
        self.every = max(int(0.04 * iterations), 1)
        self.last_review = (iterations - 1) // self.every * self.every - 1
        if start is None:
            self.share = x.new_full((len(x),), 0.2)
            self.support = x.new_full((len(x),), self.pixels)
        else:
            self.support = self._support(start)
            self.share = self.support / self.pixels / 1.5

    def observe(self, losses: Tensor) -> None:
        pass

    def review(self, iteration: int, best_losses: Tensor, best: Tensor) -> Tensor | None:
        if (iteration + 1) % self.every or iteration > self.last_review:
            return None
        support = self._support(best)
        sparser = support / self.support < 0.95
        self.share = support / self.pixels / 1.5
        step = torch.where(wide(sparser), self.eps, self.step / self.SHRINK)
        self.step = step.clamp_(self.eps / self.SHORTEST, self.eps)
        self.support = support
        return sparser

    def _support(self, images: Tensor) -> Tensor:
        """How many coordinates are perturbed, shape (n,)."""
        return (images != self.x).flatten(1).sum(1)


def checkpoints(iterations: int) -> dict[int, int]:
    """The iterations after which the step may be halved, each with the iterations since the one before; none after the
    last iteration."""
    window, shortest = max(int(0.22 * iterations), 1), max(int(0.06 * iterations), 1)
    shorter = max(int(0.03 * iterations), 1)
    windows, next_check = {}, window - 1
    while next_check < iterations - 1:
        windows[next_check] = window
        window = max(window - shorter, shortest)
        next_check += window
    return windows
