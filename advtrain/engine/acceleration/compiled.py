"""Passes through torch.compile: a model's, or whole steps of an attack.

Shapes are static: graphs for one shape are the fastest, and training has one batch size, or two with accumulation.
"""

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FunctionType
from typing import Any

import torch
from torch import Tensor, nn
from torch._dynamo.exc import BackendCompilerFailed, TorchDynamoException

from advtrain.attacks.norms import Norm
from advtrain.types import Images, Objective, PerImage, Scalar, SettingError

BACKEND = "inductor"

# Of the compiler, on GPUs: float32 products without TF32 are asked for, by trainer.precision, and of fewer than eight
# classes it computes the softmax in the ordinary way.
MISPLACED_ADVICE = ("TensorFloat32 tensor cores", r"\s*Online softmax is disabled on the fly")


class Compiled:
    """An `Ascent` of which each step, forward, backward and projection, is one graph for all batches and radii."""

    def __init__(self) -> None:
        self._ascend = compiled(ascend, fullgraph=True)
        self._value_and_gradient = compiled(value_and_gradient, fullgraph=True)

    def value_and_gradient(self, objective: Objective, x: Images) -> tuple[PerImage, Images]:
        with failing_clearly(), torch.no_grad():
            return self._value_and_gradient(objective, x)

    def ascend(
        self, objective: Objective, geometry: Norm, x: Images, x_adv: Images, eps: Tensor, step_size: Tensor
    ) -> Images:
        """As `advtrain.attacks.ascent.ascend`."""
        # No gradient but torch.func's own: weights that ask for one, too, get none.
        with failing_clearly(), torch.no_grad():
            return self._ascend(objective, geometry, x, x_adv, eps, step_size)

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
            x_adv = self.ascend(objective, geometry, x, x_adv, radius, length)
        return x_adv


class CompiledModel(nn.Module):
    """`model` behind torch.compile: the same parameters, buffers and modes, another way of calling it.

    In the backward pass only those gradients are computed that the parameters ask for when it is called.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self._call = compiled(call, fullgraph=False)

    def forward(self, *inputs: Any, **settings: Any) -> Any:
        if torch.compiler.is_compiling():  # part of a larger graph
            return self.model(*inputs, **settings)
        with failing_clearly():
            return self._call(self.model, *inputs, **settings)

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("model"), name)

    @property
    def training(self) -> bool:
        return self.model.training

    @training.setter
    def training(self, mode: bool) -> None:
        pass  # `train` and `eval` go on to the model, whose mode counts


def call(model: nn.Module, *inputs: Any, **settings: Any) -> Any:
    return model(*inputs, **settings)


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


def compiled(function: Callable, *, fullgraph: bool) -> Callable:
    """`function` behind torch.compile, apart from whatever else is compiled from the same source.

    torch.compile keeps its graphs, and counts them against a limit of 8, per code object. With one of its own a
    function neither looks through the graphs of another mode or run, nor gives up because of their number.

    Args:
        function: without a closure.
        fullgraph: whether it must become one graph.
    """
    for advice in MISPLACED_ADVICE:
        warnings.filterwarnings("ignore", advice, UserWarning)
    own = FunctionType(function.__code__.replace(), function.__globals__, function.__name__)
    return torch.compile(own, fullgraph=fullgraph, dynamic=False, backend=BACKEND)


@contextmanager
def failing_clearly() -> Iterator[None]:
    """Errors of torch.compile as one line. Those of the code that it runs stay what they are.

    Raises:
        SettingError: something cannot be traced, or there is no working compiler.
        torch.OutOfMemoryError: as without compilation.
    """
    try:
        yield
    except TorchDynamoException as error:
        cause = error.inner_exception if isinstance(error, BackendCompilerFailed) else error
        if isinstance(cause, torch.OutOfMemoryError):
            raise cause from None
        lines = [line.strip() for line in str(cause).splitlines() if line.strip()]
        # PyTorch 2.11 hides an error of the traced code itself in an explanation; later versions raise it as it is.
        hidden = [line.rpartition(": got ")[2] for line in lines if "): got " in line]
        reason = [*hidden, *lines, "no reason"][0].rstrip(".;")
        places = [line for line in lines if line.startswith("File ")]  # of the code that was traced, outermost first
        place = f" at {places[-1]}" if places else ""
        raise SettingError(
            "trainer.compile: expected model, loss and attack that torch.compile can build, got "
            f"{type(cause).__name__}: {reason}{place}; use trainer.compile=off"
        ) from error
