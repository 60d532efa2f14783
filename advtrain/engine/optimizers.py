"""Optimisers as settings: built once the model exists.

On a GPU an update is one fused kernel that reads and writes each number once; it is the same formula, whose roundings
may differ in the last bit. On a CPU PyTorch's plain loop stays: fused updates would save 12 ms of a step that takes
seconds (PreActResNet-18), and AdamW's change the last bit.
"""

from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from advtrain import checks

Optimizer = TypeVar("Optimizer", bound=torch.optim.Optimizer)


class SGD:
    """torch.optim.SGD.

    Args:
        lr: peak learning rate; the schedule multiplies it.
        momentum: of the velocity.
        nesterov: Nesterov's form of momentum.
        weight_decay: L2 coefficient.
        decay_norms: whether the decay also applies to biases and normalisation parameters, as in most published
            adversarial-training code.
    """

    def __init__(
        self,
        *,
        lr: float,
        momentum: float = 0.9,
        nesterov: bool = False,
        weight_decay: float = 5e-4,
        decay_norms: bool = True,
    ) -> None:
        self.lr = checks.number("optimizer.lr", lr, above=0)
        self.momentum = checks.number("optimizer.momentum", momentum, low=0, high=1)
        self.nesterov = checks.flag("optimizer.nesterov", nesterov)
        self.weight_decay = checks.number("optimizer.weight_decay", weight_decay, low=0)
        self.decay_norms = checks.flag("optimizer.decay_norms", decay_norms)

    def build(self, model: nn.Module) -> torch.optim.Optimizer:
        groups = parameter_groups(model, self.weight_decay, self.decay_norms)
        settings = {"momentum": self.momentum, "nesterov": self.nesterov, "fused": fusible(model)}
        return resumable(torch.optim.SGD(groups, lr=self.lr, **settings))


class AdamW:
    """torch.optim.AdamW.

    Args:
        lr: peak learning rate; the schedule multiplies it.
        beta1, beta2: decay of the first and second moments.
        weight_decay: decoupled decay.
        decay_norms: whether the decay also applies to biases and normalisation parameters.
    """

    def __init__(
        self,
        *,
        lr: float,
        beta1: float = 0.9,
        beta2: float = 0.999,
        weight_decay: float = 0.05,
        decay_norms: bool = False,
    ) -> None:
        self.lr = checks.number("optimizer.lr", lr, above=0)
        self.betas = (
            checks.number("optimizer.beta1", beta1, low=0, high=1),
            checks.number("optimizer.beta2", beta2, low=0, high=1),
        )
        self.weight_decay = checks.number("optimizer.weight_decay", weight_decay, low=0)
        self.decay_norms = checks.flag("optimizer.decay_norms", decay_norms)

    def build(self, model: nn.Module) -> torch.optim.Optimizer:
        groups = parameter_groups(model, self.weight_decay, self.decay_norms)
        return resumable(torch.optim.AdamW(groups, lr=self.lr, betas=self.betas, fused=fusible(model)))


def parameter_groups(model: nn.Module, weight_decay: float, decay_norms: bool) -> list[dict]:
    """All trainable parameters, those of at most one dimension without decay unless `decay_norms`."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    if decay_norms:
        return [{"params": parameters, "weight_decay": weight_decay}]
    matrices = [p for p in parameters if p.dim() > 1]
    vectors = [p for p in parameters if p.dim() <= 1]
    groups = [{"params": matrices, "weight_decay": weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]


def fusible(model: nn.Module) -> bool | None:
    """True where the update of all parameters can be one kernel; None leaves the choice to PyTorch.

    Parameters that are sharded over processes are no plain tensors; PyTorch has no fused SGD for them.
    """
    learning = [p for p in model.parameters() if p.requires_grad]
    plain = all(type(p.data) is Tensor and p.is_cuda and p.is_floating_point() for p in learning)
    return True if learning and plain else None


def resumable(optimizer: Optimizer) -> Optimizer:
    """Makes `optimizer` keep its own form of update when it loads a state, which may be one of another machine.

    A state dict has the form among its hyperparameters, and loading it would take that over; nothing else of the state
    depends on it.
    """

    def keep(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> dict[str, Any]:
        own = {form: optimizer.param_groups[0].get(form) for form in ("fused", "foreach")}  # alike in all groups
        return {**state, "param_groups": [group | own for group in state["param_groups"]]}

    optimizer.register_load_state_dict_pre_hook(keep)
    return optimizer
