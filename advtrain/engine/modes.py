"""Temporary states of a model, restored on exit."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm


@contextmanager
def attack_mode(model: nn.Module, batchnorm: str = "eval") -> Iterator[None]:
    """The state in which training attacks run: parameters take no gradient, and nothing that runs leaves a trace.

    Args:
        model: the bare model, not its DDP wrapper.
        batchnorm: "eval" puts the whole model in eval mode. "train" puts it in train mode, so that attacks see batch
            statistics. BatchNorm then leaves its running averages alone; other buffers that change are put back.
    """
    modes = [(module, module.training) for module in model.modules()]
    learning = [parameter for parameter in model.parameters() if parameter.requires_grad]
    buffers, tracking = {}, []
    if batchnorm == "train":
        buffers = buffer_copies(model)
        # torch.func, by which attack steps are compiled, does not let a pass write to the buffers of the model.
        tracking = [m for m, _ in modes if isinstance(m, _BatchNorm) and m.track_running_stats]
    try:
        for parameter in learning:
            parameter.requires_grad_(False)
        model.train(batchnorm == "train")
        for layer in tracking:
            layer.track_running_stats = False
        yield
    finally:
        for parameter in learning:
            parameter.requires_grad_(True)
        for module, training in modes:
            module.training = training
        for layer in tracking:
            layer.track_running_stats = True
        restore_buffers(model, buffers)


@contextmanager
def buffers_kept(model: nn.Module) -> Iterator[None]:
    """Puts the buffers (running statistics) back on exit."""
    buffers = buffer_copies(model)
    try:
        yield
    finally:
        restore_buffers(model, buffers)


@contextmanager
def evaluating(*modules: nn.Module) -> Iterator[None]:
    """Eval mode, with each module's own mode back on exit."""
    modes = [(module, module.training) for root in modules for module in root.modules()]
    try:
        for root in modules:
            root.eval()
        yield
    finally:
        for module, training in modes:
            module.training = training


def buffer_copies(model: nn.Module) -> dict[str, Tensor]:
    return {name: buffer.clone() for name, buffer in model.named_buffers()}


@torch.no_grad()
def restore_buffers(model: nn.Module, copies: dict[str, Tensor]) -> None:
    """Copies back what `buffer_copies` kept, into whichever tensors are the model's buffers now."""
    pairs: dict[torch.dtype, tuple[list[Tensor], list[Tensor]]] = {}  # one launch per type, where there are kernels
    for name, buffer in model.named_buffers() if copies else ():
        if name in copies:
            buffers, originals = pairs.setdefault(buffer.dtype, ([], []))
            buffers.append(buffer)
            originals.append(copies[name])
    for buffers, originals in pairs.values():
        torch._foreach_copy_(buffers, originals)
