"""The geometry of a threat model: steepest step, projection onto the ball, uniform draw from it; one class per norm."""

from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from advtrain.random import Source, normal_like, uniform_like
from advtrain.types import Images

NORMS = ("linf", "l2", "l1")  # the words of threat.norm and attack.norm


@runtime_checkable
class Norm(Protocol):
    """What an attack needs to know of a norm. All of it works on batches and per image."""

    def step(self, x: Images, gradient: Images, length: float | Tensor) -> Images:
        """`x` after a step along the steepest direction; `x` itself where the gradient is zero.

        Args:
            x: a point in [0, 1].
            gradient: of the objective at that point.
            length: of the step in this norm, of all images or one each, shape (n, 1, 1, 1).
        """
        ...

    def project(self, perturbation: Images, eps: float | Tensor) -> Images:
        """The nearest point of the ball of radius `eps`, a number or a scalar tensor, around zero."""
        ...

    def inside(self, x: Images, x_adv: Images, eps: float | Tensor) -> Images:
        """A point of [0, 1] in the ball of radius `eps` around `x`, near `x_adv` (Linf and L1: the nearest)."""
        ...

    def uniform(self, x: Images, eps: float, generator: Source) -> Images:
        """A draw from the ball of radius `eps` around zero, shaped like `x`."""
        ...

    def length(self, perturbation: Images) -> Tensor:
        """The norm of each image's perturbation, shape (n,)."""
        ...


class Linf:
    def step(self, x: Images, gradient: Images, length: float | Tensor) -> Images:
        return x + length * gradient.sign()

    def project(self, perturbation: Images, eps: float | Tensor) -> Images:
        return torch.clamp(perturbation, -eps, eps)  # pyright: ignore[reportCallIssue, reportArgumentType]

    def inside(self, x: Images, x_adv: Images, eps: float | Tensor) -> Images:
        return (x + self.project(x_adv - x, eps)).clamp(0, 1)

    def uniform(self, x: Images, eps: float, generator: Source) -> Images:
        return uniform_like(x, -1, 1, generator) * eps

    def length(self, perturbation: Images) -> Tensor:
        return perturbation.abs().flatten(1).amax(1)


class L2:
    def step(self, x: Images, gradient: Images, length: float | Tensor) -> Images:
        # Scaling by the largest entry first keeps the squares of tiny gradients from underflowing to a zero norm.
        largest = gradient.abs().flatten(1).amax(1).view(-1, 1, 1, 1)
        scaled = gradient / largest.where(largest > 0, 1)
        return x + length * (scaled / self._length(scaled).clamp_min(1e-12))

    def project(self, perturbation: Images, eps: float | Tensor) -> Images:
        return perturbation * (eps / self._length(perturbation).clamp_min(1e-12)).clamp(max=1)

    def inside(self, x: Images, x_adv: Images, eps: float | Tensor) -> Images:
        # Clipping after the projection moves every pixel towards x, so it does not leave the ball.
        return (x + self.project(x_adv - x, eps)).clamp(0, 1)

    def uniform(self, x: Images, eps: float, generator: Source) -> Images:
        # A Gaussian direction times U^(1/d) is uniform in the ball; for images the radius is eps but for a hair.
        direction = normal_like(x, generator)
        dimensions = x[0].numel()
        shrink = uniform_like(x[:, :1, :1, :1], 0, 1, generator) ** (1 / dimensions)
        return direction / self._length(direction).clamp_min(1e-12) * shrink * eps

    def length(self, perturbation: Images) -> Tensor:
        return self._length(perturbation).flatten()

    @staticmethod
    def _length(x: Images) -> Tensor:
        return x.flatten(1).norm(dim=1).view(-1, 1, 1, 1)


class L1:
    """The L1 ball, whose intersection with [0, 1] has a steepest step and a projection of its own.

    Croce & Hein, "Mind the box: l1-APGD for sparse adversarial attacks on image classifiers", arXiv:2103.01208:
    clipping to [0, 1] after projecting onto the ball alone wastes most of a small L1 budget.
    """

    def step(self, x: Images, gradient: Images, length: float | Tensor) -> Images:
        """The step δ of that L1 length with x + δ in [0, 1] on which <gradient, δ> is largest.

        It spends the length on the pixels of largest slope that can still move, each up to 0 or 1, and is therefore
        sparse. A pixel that stands at its end takes no share.
        """
        slope = gradient.flatten(1)
        x_flat = x.flatten(1)
        room = torch.where(slope > 0, 1 - x_flat, x_flat).clamp_min(0) * (slope != 0)
        order = slope.abs().argsort(dim=1, descending=True, stable=True)
        spendable = room.gather(1, order)
        before = _running_sums(spendable) - spendable
        left = (torch.as_tensor(length, dtype=x.dtype, device=x.device).view(-1, 1) - before).clamp_min(0)
        spent = torch.minimum(spendable, left)
        moved = torch.zeros_like(x_flat).scatter_(1, order, spent) * slope.sign()
        return x + moved.view_as(x)

    def project(self, perturbation: Images, eps: float | Tensor) -> Images:
        flat = perturbation.flatten(1)
        kept = _shrunk(flat.abs(), torch.full_like(flat, torch.inf), eps)
        return (kept * flat.sign()).view_as(perturbation)

    def inside(self, x: Images, x_adv: Images, eps: float | Tensor) -> Images:
        """The nearest point of the intersection of ball and [0, 1]."""
        flat = (x_adv - x).flatten(1)
        room = torch.where(flat > 0, 1 - x.flatten(1), x.flatten(1))
        kept = _shrunk(flat.abs(), room, eps)
        return (x + (kept * flat.sign()).view_as(x)).clamp(0, 1)

    def uniform(self, x: Images, eps: float, generator: Source) -> Images:
        # Exponential lengths with random signs, over their sum, are uniform on the sphere; U^(1/d) fills the ball.
        signed = uniform_like(x, -1, 1, generator)
        # -1 itself comes up once in 2^24 draws; its length would be infinite, and the image nan.
        exponential = -torch.log1p(-signed.abs().clamp(max=1 - torch.finfo(x.dtype).eps / 2))
        shrink = uniform_like(x[:, :1, :1, :1], 0, 1, generator) ** (1 / x[0].numel())
        total = exponential.flatten(1).sum(1).clamp_min(1e-12).view(-1, 1, 1, 1)
        return exponential * signed.sign() / total * shrink * eps

    def length(self, perturbation: Images) -> Tensor:
        return perturbation.abs().flatten(1).sum(1)


def _shrunk(size: Tensor, room: Tensor, eps: float | Tensor) -> Tensor:
    """The projection of non-negative sizes onto {0 ≤ δ ≤ room, Σ δ ≤ eps}: δ = clip(size - λ, 0, room).

    λ is zero where the sum is small enough anyway, otherwise the root of a decreasing function that is linear between
    the sorted values of `size` and of `size - room`: O(d log d), no iteration.

    Args:
        size: shape (n, d).
        room: shape (n, d), ∞ where there is no bound.
        eps: of all rows.
    """
    start = (size - room).clamp_min(0).double()  # from here on a pixel shrinks as λ grows, until `end`
    end = size.double()
    order = torch.cat([start, end], 1).sort(dim=1)
    places = order.values
    # The slope of the sum right of each place: one less for each pixel that starts, one more for each that ends.
    change = torch.where(order.indices < size.shape[1], -1.0, 1.0).to(places)
    slope = _running_sums(change)
    fall = _running_sums(slope[:, :-1] * places.diff(dim=1))
    total = (end - start).sum(1, keepdim=True)
    sums = torch.cat([total, total + fall], 1)  # Σ δ at each place
    last = (sums >= eps).sum(1, keepdim=True).sub(1).clamp_min(0)  # the place from which the sum falls below eps
    steep = slope.gather(1, last).clamp(max=-1)
    root = places.gather(1, last) + (sums.gather(1, last) - eps) / steep.abs()
    shift = torch.where(total > eps, root, torch.zeros_like(root))
    return torch.minimum((end - shift).clamp_min(0), room.double()).to(size.dtype)


def _running_sums(rows: Tensor) -> Tensor:
    """`rows.cumsum(1)`, which PyTorch refuses on a GPU where only deterministic algorithms are allowed."""
    if rows.is_cuda and torch.are_deterministic_algorithms_enabled():
        return doubling_sums(rows)
    return rows.cumsum(1)


def doubling_sums(rows: Tensor) -> Tensor:
    """Sums of the first 1, 2, … numbers of each row (n, d), by log₂ d additions of rows (Hillis & Steele, 1986)."""
    reach = 1  # how many numbers each sum holds so far
    while reach < rows.shape[1]:
        rows = torch.cat([rows[:, :reach], rows[:, reach:] + rows[:, :-reach]], 1)
        reach *= 2
    return rows


def norm_named(word: str) -> Norm:
    """The geometry for a word of `NORMS`."""
    return {"linf": Linf, "l2": L2, "l1": L1}[word]()
