"""What gradient attacks share: where they start, which way is up, and how they are described."""

import torch
from torch import Tensor

from advtrain.attacks.norms import Norm
from advtrain.random import Source, normal_like
from advtrain.types import Images, Objective, PerImage

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
