"""What gradient attacks share: where they start, which way is up, and how they are described."""

import copy
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from advtrain.attacks.norms import Norm
from advtrain.random import Source, normal_like
from advtrain.types import Attack, Images, Objective, PerImage

INITS = ("none", "uniform", "gaussian")


def start(
    geometry: Norm, x: Images, eps: float, init: str, generator: Source = None, gaussian_scale: float = 0.0
) -> Images:
    """The first point of an attack: the image, a uniform draw from the ball, or x + gaussian_scale · N(0, 1)."""
    if init == "none":
        return x.clone()
    if init == "gaussian":
        return geometry.inside(x, x + gaussian_scale * normal_like(x, generator), eps)
    return geometry.inside(x, x + geometry.uniform(x, eps, generator), eps)


def value_and_gradient(objective: Objective, x: Images) -> tuple[PerImage, Images]:
    """The objective of each image, detached, and its gradient at that image; nothing else takes a gradient."""
    # The sum, not the mean: an image's gradient must not shrink with the size of the batch around it.
    with torch.enable_grad():
        leaf = x.detach().requires_grad_()
        values = objective(leaf)
        (gradient,) = torch.autograd.grad(values.sum(), leaf)
    return values.detach(), gradient


def ascend(
    objective: Objective, geometry: Norm, x: Images, x_adv: Images, eps: float | Tensor, step_size: float | Tensor
) -> Images:
    """`x_adv` after one step of projected gradient ascent.

    Args:
        objective: images (n, c, h, w) → loss per image (n,).
        geometry: of the ball around `x`.
        x: clean images in [0, 1].
        x_adv: where the gradient is taken.
        eps, step_size: radius and length of the step; as scalar tensors where they change without a new compilation.
    """
    _, gradient = value_and_gradient(objective, x_adv)
    return geometry.inside(x, geometry.step(x_adv, gradient, step_size), eps)


@runtime_checkable
class Ascent(Protocol):
    """How gradient attacks run their passes: as written (`Eager`), compiled or replayed, by the same mathematics."""

    def value_and_gradient(self, objective: Objective, x: Images) -> tuple[PerImage, Images]:
        """As the function `value_and_gradient`."""
        ...

    def climb(
        self,
        objective: Objective,
        geometry: Norm,
        x: Images,
        x_adv: Images,
        *,
        eps: float,
        step_size: float,
        steps: int,
    ) -> Images:
        """`x_adv` after `steps` times `ascend`."""
        ...


class Eager:
    """One operation after the other."""

    def value_and_gradient(self, objective: Objective, x: Images) -> tuple[PerImage, Images]:
        return value_and_gradient(objective, x)

    def ascend(
        self, objective: Objective, geometry: Norm, x: Images, x_adv: Images, eps: Tensor, step_size: Tensor
    ) -> Images:
        """As the function `ascend`."""
        return ascend(objective, geometry, x, x_adv, eps, step_size)

    def climb(
        self,
        objective: Objective,
        geometry: Norm,
        x: Images,
        x_adv: Images,
        *,
        eps: float,
        step_size: float,
        steps: int,
    ) -> Images:
        for _ in range(steps):
            x_adv = ascend(objective, geometry, x, x_adv, eps, step_size)
        return x_adv


class GradientAttack(Attack):
    """Base of the attacks whose passes can be compiled."""

    _ascent: Ascent = Eager()

    def using(self, ascent: Ascent) -> "GradientAttack":
        """The same attack, whose passes `ascent` runs."""
        other = copy.copy(self)
        other._ascent = ascent
        return other


@torch.no_grad()
def values(objective: Objective, x: Images) -> PerImage:
    """The objective of each image."""
    return objective(x)


def per_image(mask: Tensor, yes: Images, no: Images) -> Images:
    """`yes` for the images where the mask, bool (n,), is true, `no` for the others."""
    return torch.where(mask.view(-1, 1, 1, 1), yes, no)


def ball(norm: str, eps: float) -> str:
    """The ball around x, for people."""
    return f"‖x' - x‖_{norm.removeprefix('l')} ≤ {eps:.5g}"
