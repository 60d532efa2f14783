"""A model whose weights are spread over the processes by FSDP2, and tensors of which each process holds a part.

Imported by those who spread a model only: DTensor is slow to import. Like the rest of this package it may know
torch.distributed; what a training step does with it is in `advtrain.engine.fully_sharded`.
"""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from advtrain.distributed import is_main, world_size


def spread(model: nn.Module, blocks: Iterable[nn.Module], device: torch.device) -> None:
    """Leaves a part of each parameter of `model`, cut along its first dimension, to this process; in place.

    The weights of one block are gathered for its forward pass, given up, gathered for its backward pass and given up;
    gradients are averaged and cut up as they come. What is in no block (stem, head) makes a group of its own. Buffers
    are not spread. Every process must call it, with equal weights.

    Args:
        model: its class becomes a subclass of its own, which `copy.deepcopy` refuses: copy it before.
        blocks: modules of it.
        device: of the parameters.
    """
    model.to(memory_format=torch.contiguous_format)  # FSDP2 flattens weights and refuses those in other layouts
    mesh = init_device_mesh(device.type, (world_size(),))
    for module in (*blocks, model):
        fully_shard(module, mesh=mesh)


@contextmanager
def gathered(model: nn.Module) -> Iterator[None]:
    """Every process holds all weights of `model`, once gathered and then at hand for any number of passes.

    No pass communicates in the meantime, so processes may run different numbers of them. Weights must not change.
    """
    groups = _groups(model)
    try:
        for module in groups:
            module.set_reshard_after_forward(False, recurse=False)
            module.set_reshard_after_backward(False, recurse=False)
            module.unshard()
        yield
    finally:
        for module in groups:
            module.reshard()
            module.set_reshard_after_forward(module is not model, recurse=False)  # the head's backward is next anyway
            module.set_reshard_after_backward(True, recurse=False)


def keep_gradients_local(model: nn.Module, active: bool) -> None:
    """While `active` every process sums its own gradients, whole, in place of averaging and cutting them up."""
    for module in _groups(model):
        module.set_requires_gradient_sync(not active, recurse=False)


def whole(tree: Any) -> Any:
    """`tree` with all spread tensors whole and on the CPU for the main process; None in their place for the others.

    Every process must call it. One tensor is gathered after the other, so there is room for them.

    Args:
        tree: tensors and plain values in dicts and lists, as in a state dict.
    """
    if isinstance(tree, DTensor):
        gathered_tensor = tree.full_tensor()
        return gathered_tensor.cpu() if is_main() else None
    if isinstance(tree, Mapping):
        return {key: whole(value) for key, value in tree.items()}
    return [whole(value) for value in tree] if isinstance(tree, list) else tree


def part_of(tensor: Any, like: Tensor) -> Any:
    """This process's part of `tensor` (which all hold whole), where `like` is spread and of the same shape.

    Anything else comes back as it is.
    """
    if not isinstance(like, DTensor) or not isinstance(tensor, Tensor) or tensor.shape != like.shape:
        return tensor
    placed = tensor.to(like.device).contiguous()
    return distribute_tensor(placed, like.device_mesh, like.placements, src_data_rank=None)


def _groups(model: nn.Module) -> list[FSDPModule]:
    return [module for module in model.modules() if isinstance(module, FSDPModule)]
