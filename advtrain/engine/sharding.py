"""How the state of training lies on the processes: all of it on each, or a part on each.

`Replicated` is data parallelism (DDP): each process holds everything, and gradients are averaged. `FullySharded`
(FSDP2, in a file of its own) leaves each process its part of every weight, gradient, optimiser state and average.
Both give the same numbers and the same checkpoints.
"""

import math
from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import nn

from advtrain import distributed


class Sharding(Protocol):
    def __str__(self) -> str:
        """What the opening lines of a run put behind the number of processes."""
        ...

    def spread(self, *models: nn.Module) -> None:
        """Leaves to each process what it shall hold of the models, in place, before an optimiser is built on them.

        Raises:
            SettingError: a model cannot be spread.
        """
        ...

    def replica(self, outer: nn.Module, device: torch.device) -> nn.Module:
        """`outer`, a module with the bare model as `.model`, such that a backward pass averages gradients."""
        ...

    def local_gradients(self, replica: nn.Module, active: bool) -> AbstractContextManager[None]:
        """Leaves the averaging to a later pass while `active`: all but the last accumulation pass."""
        ...

    def gathered(self, model: nn.Module) -> AbstractContextManager[None]:
        """Inside, the bare model can be called any number of times, by each process as it likes."""
        ...

    def whole(self, state: Any) -> Any:
        """A state dict as it would be without sharding, for the main process; every process must call it."""
        ...

    def load_model(self, model: nn.Module, state: dict[str, Any]) -> None:
        """The model's `load_state_dict` for such a whole state."""
        ...

    def load_optimizer(self, optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
        """The optimiser's `load_state_dict` for such a whole state."""
        ...


class Replicated:
    """Everything on each process."""

    def __str__(self) -> str:
        return ""

    def spread(self, *models: nn.Module) -> None:
        pass

    def replica(self, outer: nn.Module, device: torch.device) -> nn.Module:
        return distributed.replicate(outer, device)

    def local_gradients(self, replica: nn.Module, active: bool) -> AbstractContextManager[None]:
        return distributed.local_gradients(replica, active)

    def gathered(self, model: nn.Module) -> AbstractContextManager[None]:
        return nullcontext()

    def whole(self, state: Any) -> Any:
        return state

    def load_model(self, model: nn.Module, state: dict[str, Any]) -> None:
        model.load_state_dict(state)

    def load_optimizer(self, optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
        optimizer.load_state_dict(state)


REPLICATED = Replicated()


def sharding_named(word: str, device: torch.device) -> Sharding:
    """What `trainer.sharding` means. Without torchrun there is one process, which holds everything either way."""
    if word == "none" or not distributed.launched():
        return REPLICATED
    from advtrain.engine.fully_sharded import FullySharded  # brings DTensor, which is slow to import

    return FullySharded(device)


def gradient_bytes(model: nn.Module) -> int:
    """Bytes of the gradient of `model`: what one optimiser step averages over the processes.

    A ring all-reduce over n processes sends 2 (n - 1)/n times as much from each of them, whatever their number.
    Accumulation does not change it; a weight perturbation doubles it.
    """
    return _bytes(parameter for parameter in model.parameters() if parameter.requires_grad)


@dataclass(frozen=True)
class StateBytes:
    """What a process holds of the training state, in bytes; activations and buffers are not in it.

    Attributes:
        weights, gradients, optimizer, average: of the parameters; gradients at the end of the backward pass.
        gathered: further bytes while an attack runs, when all weights are at hand.
    """

    weights: int
    gradients: int
    optimizer: int
    average: int
    gathered: int

    @property
    def held(self) -> int:
        """In mid-step, when all but the gathered weights are there."""
        return self.weights + self.gradients + self.optimizer + self.average


def state_bytes(model: nn.Module, *, processes: int = 1, moments: int = 1, averaged: bool = True) -> StateBytes:
    """What the largest share of the state takes when it is spread over so many processes; with 1, what all takes.

    FSDP2 cuts each tensor along its first dimension into parts of ⌈d/processes⌉ rows.

    Args:
        model: any device will do, "meta" too.
        processes: that hold a part each.
        moments: tensors per parameter in the optimiser: 1 for SGD with momentum, 2 for AdamW.
        averaged: whether there is an average of the weights.
    """
    part = sum(
        math.ceil(p.shape[0] / processes) * p[0].numel() * p.element_size() if p.dim() else p.element_size()
        for p in model.parameters()
    )
    everything = _bytes(model.parameters())
    return StateBytes(part, part, moments * part, part * averaged, everything if processes > 1 else 0)


def _bytes(tensors: Iterable[torch.Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)
