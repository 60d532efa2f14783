"""The passes of a training step, run as an `Acceleration` says."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from advtrain.attacks.ascent import Ascent, Eager
from advtrain.attacks.norms import Norm
from advtrain.types import Images, Objective, PerImage, Scalar


@dataclass(frozen=True)
class Acceleration:
    """How the passes of a step are run. None of it changes the mathematics; the order of rounding may change.

    Attributes:
        compile: "off", "model" (forward passes, and what autograd derives from them, by torch.compile) or "step" (each
            step of an attack, forward and backward, as one graph).
        cuda_graph: whether the steps of an attack are replayed as one CUDA graph.
    """

    compile: str = "off"
    cuda_graph: bool = False

    def __str__(self) -> str:
        return self.compile + (" + CUDA graph" if self.cuda_graph else "")


OFF = Acceleration()


class Passes:
    """What the trainer calls in place of the bare model.

    Attack and training have their own compiled variants, since the modes of the model differ.

    Args:
        model: the bare model.
        acceleration: how its passes are run.

    Attributes:
        ascent: for attacks: `attack.using(passes.ascent)`.
        attacked: the model that attacks see (eval mode, frozen).
        trained: the model that the training loss sees.
    """

    ascent: Ascent

    def __init__(self, model: nn.Module, acceleration: Acceleration) -> None:
        self.acceleration = acceleration
        self.ascent, self.attacked, self.trained = Eager(), model, model
        if acceleration.compile != "off":
            self.trained = compiled_module(model)
        if acceleration.compile == "model":
            self.attacked = compiled_module(model)
        if acceleration.compile == "step":
            self.ascent = Compiled()


class Compiled:
    """Each step of an attack, forward and backward, as one graph for all batches and radii."""

    def __init__(self) -> None:
        self._ascend = torch.compile(ascend, fullgraph=True)
        self._value_and_gradient = torch.compile(value_and_gradient, fullgraph=True)

    def value_and_gradient(self, objective: Objective, x: Images) -> tuple[PerImage, Images]:
        return self._value_and_gradient(objective, x)

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
        radius, length = (torch.full((), value, dtype=x.dtype, device=x.device) for value in (eps, step_size))
        for _ in range(steps):
            x_adv = self._ascend(objective, geometry, x, x_adv, radius, length)
        return x_adv


def value_and_gradient(objective: Objective, x: Images) -> tuple[PerImage, Images]:
    """As `advtrain.attacks.ascent.value_and_gradient`, in the form that torch.compile traces as one graph."""

    def total(images: Images) -> tuple[Scalar, PerImage]:
        values = objective(images)
        return values.sum(), values

    gradient, values = torch.func.grad(total, has_aux=True)(x)
    return values, gradient


def ascend(objective: Objective, geometry: Norm, x: Images, x_adv: Images, eps: Tensor, step_size: Tensor) -> Images:
    """As `advtrain.attacks.ascent.ascend`."""
    _, gradient = value_and_gradient(objective, x_adv)
    return geometry.inside(x, geometry.step(x_adv, gradient, step_size), eps)


def compiled_module(model: nn.Module) -> Any:
    """`model` behind torch.compile: the same parameters and buffers, another way of calling them."""
    return torch.compile(model)
