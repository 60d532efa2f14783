"""The passes of an attack, recorded once on tensors that stay where they are and replayed for each batch.

A replay launches all kernels of the attack at once, where one by one the host may be slower than a small network. What
is recorded reads weights where they lie, so it stays valid while optimisers, perturbations and checkpoints write to
them; all else that changes from batch to batch (images, labels, natural logits, radius, step size) is copied in first.
"""

from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields, is_dataclass, replace
from itertools import chain
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from advtrain.attacks.norms import Norm
from advtrain.losses.objectives import ModelObjective
from advtrain.types import Images, Objective, PerImage, SettingError

Outputs = tuple[Tensor, ...]
Replay = Callable[[], Outputs]  # runs what was recorded; its outputs are overwritten by the next replay
Record = Callable[[Callable[[], Outputs]], Replay]

WARM_UP = 3  # passes before recording: libraries choose their kernels, torch.compile builds its graphs


class Steps(Protocol):
    """How the passes that are recorded are run: `Eager` or `Compiled`."""

    def value_and_gradient(self, objective: Objective, x: Images) -> tuple[PerImage, Images]: ...

    def ascend(
        self, objective: Objective, geometry: Norm, x: Images, x_adv: Images, eps: Tensor, step_size: Tensor
    ) -> Images: ...


class CudaGraphs:
    """Records functions as CUDA graphs, which share their memory: each replay's outputs are taken before the next.

    Args:
        device: where everything recorded lies.

    Raises:
        SettingError: it is no GPU.
    """

    def __init__(self, device: torch.device) -> None:
        if device.type != "cuda":
            raise SettingError(
                f"trainer.cuda_graph: expected false or null on {device.type}, which has no CUDA graphs, got true; "
                "use trainer.cuda_graph=null"
            )
        self._device = device
        self._pool = torch.cuda.graph_pool_handle()

    def __call__(self, function: Callable[[], Outputs]) -> Replay:
        """Records what `function` launches; it must read and write the same tensors at each call.

        Raises:
            SettingError: something in it cannot be recorded, such as waiting for the device.
        """
        with torch.cuda.device(self._device), _stream_kept(), recording_clearly(), casts_recorded():
            self._warm_up(function)
            graph = torch.cuda.CUDAGraph()
            # Other threads (loaders, NCCL's watchdog) may go on calling CUDA meanwhile.
            with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
                outputs = function()

        def replay() -> Outputs:
            graph.replay()
            return outputs

        return replay

    def _warm_up(self, function: Callable[[], Outputs]) -> None:
        """On a stream of its own, as PyTorch asks for, and without a trace in the stream of random numbers."""
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream), torch.random.fork_rng([self._device]):
            for _ in range(WARM_UP):
                function()
        torch.cuda.current_stream().wait_stream(stream)


class Replayed:
    """An `Ascent` that records its passes once for each kind of attack and shape of batch.

    Args:
        model: whose weights the passes read. Tensors that take the place of its parameters or buffers are noticed, and
            everything is recorded anew.
        steps: how the recorded passes are run.
        record: `CudaGraphs`, or what a test has in its place.
    """

    def __init__(self, model: nn.Module, steps: Steps, record: Record) -> None:
        self._model, self._steps, self._record = model, steps, record
        self._recordings: dict[Hashable, _Recording] = {}
        self._places: tuple[int, ...] = ()

    def value_and_gradient(self, objective: Objective, x: Images) -> tuple[PerImage, Images]:
        batch = _Batch(objective)

        def passes(x: Tensor, *tensors: Tensor) -> Outputs:
            return self._steps.value_and_gradient(batch.objective_of(tensors), x)

        value, gradient = self._replayed(("gradient", *batch.kind), passes, [x, *batch.tensors])
        return value, gradient

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
        batch = _Batch(objective)

        def passes(x: Tensor, x_adv: Tensor, radius: Tensor, length: Tensor, *tensors: Tensor) -> Outputs:
            recorded = batch.objective_of(tensors)
            for _ in range(steps):
                x_adv = self._steps.ascend(recorded, geometry, x, x_adv, radius, length)
            return (x_adv,)

        radius, length = (torch.full((), value, dtype=x.dtype, device=x.device) for value in (eps, step_size))
        kind = ("climb", type(geometry), steps, *batch.kind)
        (found,) = self._replayed(kind, passes, [x, x_adv, radius, length, *batch.tensors])
        return found

    def _replayed(self, kind: tuple[Any, ...], passes: Callable[..., Outputs], inputs: list[Tensor]) -> Outputs:
        places = tuple(tensor.data_ptr() for tensor in chain(self._model.parameters(), self._model.buffers()))
        if places != self._places:
            self._recordings.clear()
            self._places = places
        device = inputs[0].device.type
        casting = torch.is_autocast_enabled(device) and torch.get_autocast_dtype(device)
        layouts = tuple((tuple(t.shape), t.stride(), t.dtype, t.device) for t in inputs)
        key = (kind, self._model.training, casting, layouts)
        if key not in self._recordings:
            self._recordings[key] = _Recording(passes, inputs, self._record)
        return self._recordings[key](inputs)


class _Recording:
    """A function of tensors, recorded on copies of them that stay where they are.

    Args:
        function: of as many tensors as there are `inputs`.
        inputs: like those of every later call.
        record: how.
    """

    def __init__(self, function: Callable[..., Outputs], inputs: Sequence[Tensor], record: Record) -> None:
        self._inputs = [tensor.detach().clone() for tensor in inputs]
        self._replay = record(lambda: function(*self._inputs))

    def __call__(self, inputs: Sequence[Tensor]) -> Outputs:
        for static, tensor in zip(self._inputs, inputs, strict=True):
            static.copy_(tensor)
        return tuple(output.clone() for output in self._replay())


class _Batch:
    """An objective, taken apart into the tensors of its batch and what is the same for every batch.

    Attributes:
        tensors: of the measure.
        kind: hashable; equal for objectives that differ in the contents of their tensors alone.

    Raises:
        SettingError: it is of another make than the objectives of `advtrain.losses`.
    """

    def __init__(self, objective: Objective) -> None:
        if not isinstance(objective, ModelObjective) or not is_dataclass(objective.measure):
            raise SettingError(
                "trainer.cuda_graph: expected an objective whose tensors are known (losses.objectives.ModelObjective "
                f"with a dataclass for its measure), got {type(objective).__name__}; use trainer.cuda_graph=false"
            )
        self._objective = objective
        values = {field.name: getattr(objective.measure, field.name) for field in fields(objective.measure)}
        self._names = [name for name, value in values.items() if isinstance(value, Tensor)]
        self.tensors = [values[name] for name in self._names]
        settings = tuple((name, value) for name, value in values.items() if name not in self._names)
        self.kind = (objective.model, type(objective.measure), settings)

    def objective_of(self, tensors: Sequence[Tensor]) -> Objective:
        """The same objective of other tensors."""
        measure: Any = self._objective.measure
        return replace(self._objective, measure=replace(measure, **dict(zip(self._names, tensors, strict=True))))


@contextmanager
def _stream_kept() -> Iterator[None]:
    """Goes back to the current stream also where recording fails: PyTorch then stays on that of the recording."""
    with torch.cuda.stream(torch.cuda.current_stream()):
        yield


@contextmanager
def casts_recorded() -> Iterator[None]:
    """Makes autocast cast weights at each use: what it keeps of an earlier cast would be replayed for ever."""
    kept = torch.is_autocast_cache_enabled()
    torch.set_autocast_cache_enabled(False)
    try:
        yield
    finally:
        torch.set_autocast_cache_enabled(kept)


@contextmanager
def recording_clearly() -> Iterator[None]:
    """Errors of recording as one line.

    Raises:
        SettingError: something cannot be recorded.
        torch.OutOfMemoryError: as without.
    """
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        reason = next(iter(str(error).strip().splitlines()), "no reason given")
        raise SettingError(
            "trainer.cuda_graph: expected an attack that can be recorded, got "
            f"{type(error).__name__}: {reason.rstrip('.;')}; use trainer.cuda_graph=false"
        ) from error
