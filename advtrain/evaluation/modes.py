"""The state in which a model is evaluated, restored on exit: frozen, in eval mode, in exact float32."""

import warnings
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
    """No TF32, no autocast, and convolutions that give the same bits twice. Concerns GPUs; CPUs do so anyway.

    Where PyTorch's deterministic algorithms are asked for, running sums are let through, see `_running_sums`.
    """
    cudnn: Any = torch.backends.cudnn
    matmul = torch.backends.cuda.matmul
    before = (cudnn.allow_tf32, cudnn.deterministic, cudnn.benchmark, matmul.allow_tf32)
    try:
        cudnn.allow_tf32, cudnn.deterministic, cudnn.benchmark, matmul.allow_tf32 = False, True, False, False
        with torch.autocast("cuda", enabled=False), torch.autocast("cpu", enabled=False), _running_sums():
            yield
    finally:
        cudnn.allow_tf32, cudnn.deterministic, cudnn.benchmark, matmul.allow_tf32 = before


@contextmanager
def _running_sums() -> Iterator[None]:
    """torch.cumsum on a GPU, which FAB and every projection in L1 need, and which `torch.use_deterministic_algorithms`
    makes an error by its documentation.

    Operations that have a deterministic algorithm still use it; of those without one, all but this one say so in a
    warning.
    """
    if not torch.are_deterministic_algorithms_enabled():
        yield
        return
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    try:
        torch.use_deterministic_algorithms(True, warn_only=True)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="cumsum_cuda_kernel does not have a deterministic")
            yield
    finally:
        torch.use_deterministic_algorithms(True, warn_only=warn_only)


def eager(model: nn.Module) -> nn.Module:
    """The model behind `torch.compile`: AutoAttack takes a compiled one for a model that optimises as it predicts."""
    return getattr(model, "_orig_mod", model)
