"""Training with weights, gradients, optimiser state and average in parts, one per process (FSDP2)."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from torch import nn

from advtrain import distributed
from advtrain.distributed import shards
from advtrain.models.gradient_checkpointing import blocks_of
from advtrain.types import SettingError


class FullySharded:
    """See `advtrain.engine.sharding.Sharding`.

    The weights are gathered once for all passes of an attack, since K steps would otherwise gather them 2 K times and
    nothing else of the training state is needed meanwhile: it costs the memory of the whole weights, that of the
    other processes' gradients, optimiser states and averages stays saved. The outer loss gathers block by block.

    Args:
        device: of the model.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def __str__(self) -> str:
        return " (fsdp)"

    def spread(self, *models: nn.Module) -> None:
        for model in {id(model): model for model in models}.values():
            scalars = [name for name, parameter in model.named_parameters() if parameter.dim() == 0]
            if scalars:
                raise SettingError(
                    f"trainer.sharding=fsdp: expected parameters with a dimension to cut along, got the number "
                    f"{scalars[0]} in {type(model).__name__}; choose trainer.sharding=none or another model="
                )
            shards.spread(model, [block for block in blocks_of(model) if block is not model], self.device)

    def replica(self, outer: nn.Module, device: torch.device) -> nn.Module:
        return _OuterPass(outer)

    @contextmanager
    def local_gradients(self, replica: nn.Module, active: bool) -> Iterator[None]:
        assert isinstance(replica, _OuterPass)
        shards.keep_gradients_local(replica.model, active)
        try:
            yield
        finally:
            shards.keep_gradients_local(replica.model, False)
            replica.starts_step = not active

    def gathered(self, model: nn.Module) -> AbstractContextManager[None]:
        return shards.gathered(model)

    def whole(self, state: Any) -> Any:
        return shards.whole(state)

    def load_model(self, model: nn.Module, state: dict[str, Any]) -> None:
        own = model.state_dict()
        model.load_state_dict({name: shards.part_of(value, own.get(name, value)) for name, value in state.items()})

    def load_optimizer(self, optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        parts = {
            i: {name: shards.part_of(value, parameters[i]) for name, value in of_one.items()}
            for i, of_one in state["state"].items()
        }
        optimizer.load_state_dict({**state, "state": parts})


class _OuterPass(nn.Module):
    """Shares the main process's buffers before the first pass of a step, as DDP does: the same run either way."""

    def __init__(self, outer: nn.Module) -> None:
        super().__init__()
        self.outer = outer
        self.starts_step = True

    @property
    def model(self) -> nn.Module:
        return self.outer.get_submodule("model")

    def forward(self, *inputs: Any) -> Any:
        if self.starts_step:
            distributed.share_buffers(self.model)
        return self.outer(*inputs)
