"""The passes of a training step, run as an `Acceleration` says."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from torch import nn

from advtrain.attacks.ascent import Ascent, Eager
from advtrain.engine.acceleration.compiled import Compiled, CompiledModel
from advtrain.engine.acceleration.graphs import CudaGraphs, Replayed
from advtrain.losses import Teacher


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
        model: the bare model, where it is trained.
        acceleration: how its passes are run.
        teacher: of the loss, where it holds one: run so, too, inside `teaching`.

    Attributes:
        ascent: for attacks: `attack.using(passes.ascent)`.
        attacked: the model that attacks see (frozen, in the mode of attacks).
        trained: the model that the training loss sees.

    Raises:
        SettingError: there are no CUDA graphs where the model is.
    """

    ascent: Ascent
    attacked: nn.Module
    trained: nn.Module

    def __init__(self, model: nn.Module, acceleration: Acceleration, teacher: Teacher | None = None) -> None:
        self.acceleration = acceleration
        self._teacher = teacher
        self._taught_by = None if teacher is None or acceleration.compile == "off" else CompiledModel(teacher.model)
        self.attacked, self.trained = model, model
        if acceleration.compile != "off":
            self.attacked, self.trained = CompiledModel(model), CompiledModel(model)
        steps = Compiled() if acceleration.compile == "step" else Eager()
        self.ascent = steps
        if acceleration.cuda_graph:
            self.ascent = Replayed(model, steps, CudaGraphs(next(model.parameters()).device))

    @contextmanager
    def teaching(self) -> Iterator[None]:
        """Inside, whoever asks the teacher, the step, the loss or the attack, has its compiled passes."""
        if self._teacher is None or self._taught_by is None:
            yield
            return
        plain, self._teacher.model = self._teacher.model, self._taught_by
        try:
            yield
        finally:
            self._teacher.model = plain
