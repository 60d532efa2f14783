"""Activations are forgotten after the forward pass and computed again in the backward pass: memory for time."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from types import MethodType
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from advtrain.types import SettingError


def checkpoint_blocks(model: nn.Module, setting: str = "model.gradient_checkpointing") -> list[nn.Module]:
    """Makes each residual or attention block of `model` keep its input only; returns the blocks.

    Chen et al. (2016, arXiv:1604.06174). Values, gradients and BatchNorm's running statistics stay what they were, to
    the bit. It costs one more forward pass per backward pass: a training step takes 4/3 of its operations, an attack
    step 3/2. The state dict, `copy.deepcopy` and the model's class do not change.

    Blocks are those of `blocks_of`; where there is none, each nn.Sequential among the model's children (the stages of
    a VGG). A second call changes nothing. timm's own `set_grad_checkpointing` is not used: it does not work with
    `torch.autograd.grad`, by which attacks differentiate, and it updates BatchNorm's running statistics twice per step.

    The model must be in the same mode, and have the same weights, in the backward pass as in the forward pass.

    Args:
        model: of any class.
        setting: that asks for it, for the message.

    Raises:
        SettingError: there are no blocks.
    """
    blocks = blocks_of(model) or [stage for stage in model.children() if isinstance(stage, nn.Sequential)]
    if not blocks:
        raise SettingError(
            f"{setting}: expected a model with residual or attention blocks, got "
            f"{type(model).__name__} without; set it to false"
        )
    for block in blocks:
        block.forward = MethodType(_forward, block)
    return blocks


def blocks_of(model: nn.Module) -> list[nn.Module]:
    """The residual or attention blocks: members of an nn.Sequential or nn.ModuleList that are no single layer.

    One that has such members inside is a stage, not a block.
    """
    members = {
        id(member): member
        for container in model.modules()
        if isinstance(container, nn.Sequential | nn.ModuleList)
        for member in container
        if next(member.children(), None) is not None
    }
    return [m for m in members.values() if not any(id(inner) in members for inner in m.modules() if inner is not m)]


def _forward(block: nn.Module, *inputs: Any, **settings: Any) -> Any:
    """The forward pass of the block's class, checkpointed where there will be a backward pass."""
    forward = type(block).forward
    if not torch.is_grad_enabled():
        return forward(block, *inputs, **settings)
    if torch.compiler.is_compiling():  # a graph updates each buffer once, whatever of it is computed again
        return checkpoint(forward, block, *inputs, use_reentrant=False, **settings)
    spared = _buffers_spared if any(module.training for module in block.modules()) else nullcontext
    return checkpoint(
        forward, block, *inputs, use_reentrant=False, context_fn=lambda: (nullcontext(), spared(block)), **settings
    )


@contextmanager
def _buffers_spared(block: nn.Module) -> Iterator[None]:
    """Lends the block copies of its buffers: BatchNorm must not count the same images in its statistics twice."""
    owned = [(m, name, buffer) for m in block.modules() for name, buffer in m.named_buffers(recurse=False)]
    for module, name, buffer in owned:
        setattr(module, name, buffer.clone())
    try:
        yield
    finally:
        for module, name, buffer in owned:
            setattr(module, name, buffer)
