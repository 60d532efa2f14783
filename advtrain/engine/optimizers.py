"""Optimisers as settings: built once the model exists."""

import torch
from torch import nn

from advtrain import checks


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
        return torch.optim.SGD(groups, lr=self.lr, momentum=self.momentum, nesterov=self.nesterov)


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
        return torch.optim.AdamW(groups, lr=self.lr, betas=self.betas)


def parameter_groups(model: nn.Module, weight_decay: float, decay_norms: bool) -> list[dict]:
    """All trainable parameters, those of at most one dimension without decay unless `decay_norms`."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    if decay_norms:
        return [{"params": parameters, "weight_decay": weight_decay}]
    matrices = [p for p in parameters if p.dim() > 1]
    vectors = [p for p in parameters if p.dim() <= 1]
    groups = [{"params": matrices, "weight_decay": weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]
