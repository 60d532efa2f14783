"""The geometry of a threat model: steepest step, projection onto the ball, uniform draw from it; one class per norm."""

from typing import Protocol

from torch import Tensor

from advtrain.random import Source, normal_like, uniform_like
from advtrain.types import Images

NORMS = ("linf", "l2")  # the words of threat.norm and attack.norm


class Norm(Protocol):
    """What an attack needs to know of a norm. All of it works on batches and per image."""

    def direction(self, gradient: Images) -> Images:
        """The step of length 1 that climbs fastest; zero where the gradient is zero."""
        ...

    def project(self, perturbation: Images, eps: float) -> Images:
        """The nearest point of the ball of radius `eps` around zero."""
        ...

    def uniform(self, x: Images, eps: float, generator: Source) -> Images:
        """A draw from the ball of radius `eps` around zero, shaped like `x`."""
        ...

    def length(self, perturbation: Images) -> Tensor:
        """The norm of each image's perturbation, shape (n,)."""
        ...


class Linf:
    def direction(self, gradient: Images) -> Images:
        return gradient.sign()

    def project(self, perturbation: Images, eps: float) -> Images:
        return perturbation.clamp(-eps, eps)

    def uniform(self, x: Images, eps: float, generator: Source) -> Images:
        return uniform_like(x, -1, 1, generator) * eps

    def length(self, perturbation: Images) -> Tensor:
        return perturbation.abs().flatten(1).amax(1)


class L2:
    def direction(self, gradient: Images) -> Images:
        # Scaling by the largest entry first keeps the squares of tiny gradients from underflowing to a zero norm.
        largest = gradient.abs().flatten(1).amax(1).view(-1, 1, 1, 1)
        scaled = gradient / largest.where(largest > 0, 1)
        return scaled / self._length(scaled).clamp_min(1e-12)

    def project(self, perturbation: Images, eps: float) -> Images:
        return perturbation * (eps / self._length(perturbation).clamp_min(1e-12)).clamp(max=1)

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


def norm_named(word: str) -> Norm:
    """The geometry for a word of `NORMS`."""
    return {"linf": Linf, "l2": L2}[word]()
