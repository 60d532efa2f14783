"""APGD's starts and steps in the three norms.

A step is x' = P(x + η s(∇)), then P(x + α (x' - x) + (1 - α)(x - x_before)) with α = 0.75, 1 for the first
(arXiv:2003.01690, section 3.1); L1 has no momentum (arXiv:2103.01208). The order of operations is upstream's wherever
it matters for rounding; products with 1, ±1 and 0.25 are exact and may be fused.
"""

from abc import ABC, abstractmethod

import torch
from torch import Tensor

from advtrain.evaluation.autoattack.exact.draws import Draws
from advtrain.evaluation.autoattack.exact.l1_ball import l1_correction
from advtrain.evaluation.autoattack.exact.paces import Halving, Pace, Sparsity
from advtrain.evaluation.autoattack.exact.per_image import TINY, PerImage, length, normalised, wide


class Geometry(ABC, PerImage):
    """The ball around each image.

    Args:
        x: clean images in [0, 1], shape (n, c, h, w), contiguous.
        eps: radius.
    """

    def __init__(self, x: Tensor, eps: float) -> None:
        self.x = x
        self.eps = eps

    @abstractmethod
    def start(self, draws: Draws) -> Tensor:
        """A random point of each ball; not yet clamped to [0, 1]."""

    @abstractmethod
    def move(self, now: Tensor, before: Tensor, grad: Tensor, pace: Pace, weight: float, out: Tensor) -> Tensor:
        """One step.

        Args:
            now: the images.
            before: the images one step earlier; overwritten.
            grad: the gradient at `now`, contiguous.
            pace: step sizes.
            weight: α.
            out: takes the new images.

        Returns:
            `out`.
        """

    def pace(self, iterations: int, losses: Tensor, start: Tensor | None) -> Pace:
        """How steps adapt in a run; `start` as of `Sparsity`."""
        return Halving(self.eps, iterations, losses)


class Linf(Geometry):
    def __init__(self, x: Tensor, eps: float) -> None:
        super().__init__(x, eps)
        # Clamping to [x - ε, x + ε] and then to [0, 1] is clamping to these.
        self.low, self.high = (x - eps).clamp_(0.0, 1.0), (x + eps).clamp_(0.0, 1.0)

    def start(self, draws: Draws) -> Tensor:
        noise = draws.uniform(self.x.shape).to(self.x.device).mul_(2).sub_(1)
        return normalised(noise, "linf", torch.empty_like(noise)).mul_(self.eps).add_(self.x)

    def move(self, now: Tensor, before: Tensor, grad: Tensor, pace: Pace, weight: float, out: Tensor) -> Tensor:
        change = torch.sub(now, before, out=before)
        torch.sign(grad, out=out)
        torch.addcmul(now, out, pace.step, out=out)
        torch.clamp(out, self.low, self.high, out=out)
        return torch.clamp(_with_momentum(out, now, change, weight), self.low, self.high, out=out)


class L2(Geometry):
    def __init__(self, x: Tensor, eps: float) -> None:
        super().__init__(x, eps)
        self.scratch = torch.empty_like(x)

    def start(self, draws: Draws) -> Tensor:
        noise = draws.normal(self.x.shape).to(self.x.device)
        return normalised(noise, "l2", self.scratch).mul_(self.eps).add_(self.x)

    def move(self, now: Tensor, before: Tensor, grad: Tensor, pace: Pace, weight: float, out: Tensor) -> Tensor:
        change = torch.sub(now, before, out=before)
        torch.div(grad, length(grad, "l2", self.scratch).add_(TINY), out=out)
        self._project(out.mul_(pace.step).add_(now))
        return self._project(_with_momentum(out, now, change, weight))

    def _project(self, images: Tensor) -> Tensor:
        """Into the ball, then into the box; in place."""
        shift = images.sub_(self.x)
        size = length(shift, "l2", self.scratch)
        radius = size.clamp(max=self.eps)
        return shift.div_(size.add_(TINY)).mul_(radius).add_(self.x).clamp_(0.0, 1.0)


class L1(Geometry):
    def start(self, draws: Draws) -> Tensor:
        noise = draws.normal(self.x.shape).to(self.x.device)
        return self._projected(noise, out=torch.empty_like(noise))

    def move(self, now: Tensor, before: Tensor, grad: Tensor, pace: Pace, weight: float, out: Tensor) -> Tensor:
        assert isinstance(pace, Sparsity)
        size = grad.abs()
        rank = torch.clamp((1.0 - pace.share) * pace.pixels, min=0, max=pace.pixels - 1).long()
        threshold = _ascending(size.flatten(1).clone()).gather(1, rank[:, None])
        torch.sign(grad, out=out).mul_(size >= wide(threshold))
        step = pace.step / (wide(out.count_nonzero((1, 2, 3))) + 1e-10)
        torch.addcmul(now, out, step, out=out)
        return self._projected(out.sub_(self.x), out=out)

    def _projected(self, shift: Tensor, out: Tensor) -> Tensor:
        correction = l1_correction(self.x, shift, self.eps)
        return torch.add(self.x, shift, out=out).add_(correction)

    def pace(self, iterations: int, losses: Tensor, start: Tensor | None) -> Pace:
        return Sparsity(self.eps, iterations, self.x, start)


GEOMETRIES: dict[str, type[Geometry]] = {"linf": Linf, "l2": L2, "l1": L1}


def _with_momentum(plain: Tensor, now: Tensor, change: Tensor, weight: float) -> Tensor:
    """now + α (plain - now) + (1 - α) change, in place of `plain`."""
    return plain.sub_(now).mul_(weight).add_(now).add_(change, alpha=1 - weight)


def _ascending(rows: Tensor) -> Tensor:
    """Each row sorted, in place on a CPU, where NumPy is several times faster than torch.sort."""
    if rows.device.type != "cpu":
        return rows.sort(1)[0]
    rows.numpy().sort(axis=1)
    return rows
