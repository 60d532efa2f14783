"""The state in which a model is evaluated, restored on exit: frozen, in eval mode, in exact float32."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from advtrain.types import SettingError


@contextmanager
def frozen(model: nn.Module) -> Iterator[None]:
    """Eval mode, and parameters that take no gradient: attacks need that of the images only.

    Raises:
        SettingError: a parameter is not float32; robust accuracy is reported for float32.
    """
    for name, parameter in model.named_parameters():
        if parameter.dtype != torch.float32:
            raise SettingError(f"{name}: expected float32 parameters, got {parameter.dtype}; call model.float() first")
    modes = [(module, module.training) for module in model.modules()]
    learning = [parameter for parameter in model.parameters() if parameter.requires_grad]
    try:
        model.eval()
        for parameter in learning:
            parameter.requires_grad_(False)
        yield
    finally:
        for parameter in learning:
            parameter.requires_grad_(True)
        for module, training in modes:
            module.training = training


@contextmanager
def exact_float32() -> Iterator[None]:
    """No TF32, no autocast, and convolutions that give the same bits twice. Concerns GPUs; CPUs do so anyway."""
    cudnn: Any = torch.backends.cudnn
    matmul = torch.backends.cuda.matmul
    before = (cudnn.allow_tf32, cudnn.deterministic, cudnn.benchmark, matmul.allow_tf32)
    try:
        cudnn.allow_tf32, cudnn.deterministic, cudnn.benchmark, matmul.allow_tf32 = False, True, False, False
        with torch.autocast("cuda", enabled=False), torch.autocast("cpu", enabled=False):
            yield
    finally:
        cudnn.allow_tf32, cudnn.deterministic, cudnn.benchmark, matmul.allow_tf32 = before


def eager(model: nn.Module) -> nn.Module:
    """The model behind `torch.compile`: AutoAttack takes a compiled one for a model that optimises as it predicts."""
    return getattr(model, "_orig_mod", model)
