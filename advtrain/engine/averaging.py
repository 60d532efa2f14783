"""Averages of the weights over training. The averaged model is the one that is validated, evaluated and exported.

BatchNorm's running statistics are averaged with the weights they belong to.
"""

import copy
from typing import Protocol

import torch
from torch import Tensor, nn

from advtrain import checks


class Averaging(Protocol):
    def attach(self, model: nn.Module) -> nn.Module:
        """Starts from the model as it is and returns the model to evaluate (the same object from then on)."""
        ...

    def after_step(self, step: int) -> None:
        """Called after optimiser step `step`, counted from 1 over the whole run."""
        ...

    def after_epoch(self, epoch: int) -> None:
        """Called after epoch `epoch`, counted from 1."""
        ...


class NoAveraging:
    """The model as it is."""

    def attach(self, model: nn.Module) -> nn.Module:
        return model

    def after_step(self, step: int) -> None:
        pass

    def after_epoch(self, epoch: int) -> None:
        pass


class EMA:
    """Exponential moving average per optimiser step: w̄ ← w̄ + (1 - decay_t)(w - w̄).

    Args:
        decay: of each step.
        warmup: whether the decay starts small, min(decay, (1 + t) / (10 + t)) at step t, so that the average forgets
            the initial weights quickly.
    """

    def __init__(self, *, decay: float = 0.995, warmup: bool = True) -> None:
        self.decay = checks.number("averaging.decay", decay, low=0, high=1)
        self.warmup = checks.flag("averaging.warmup", warmup)

    def attach(self, model: nn.Module) -> nn.Module:
        self._source = model
        self._average = frozen_copy(model)
        return self._average

    def after_step(self, step: int) -> None:
        decay = min(self.decay, (1 + step) / (10 + step)) if self.warmup else self.decay
        move_average(self._average, self._source, 1 - decay)

    def after_epoch(self, epoch: int) -> None:
        pass


class EpochEMA:
    """Exponential moving average of the weights at the end of each epoch (IKL's released models: decay 0.9).

    Args:
        decay: of each epoch; the first epoch's weights start the average.
    """

    def __init__(self, *, decay: float = 0.9) -> None:
        self.decay = checks.number("averaging.decay", decay, low=0, high=1)

    def attach(self, model: nn.Module) -> nn.Module:
        self._source = model
        self._average = frozen_copy(model)
        return self._average

    def after_step(self, step: int) -> None:
        pass

    def after_epoch(self, epoch: int) -> None:
        move_average(self._average, self._source, 1.0 if epoch == 1 else 1 - self.decay)


def frozen_copy(model: nn.Module) -> nn.Module:
    """A copy in eval mode whose parameters take no gradient."""
    return copy.deepcopy(model).eval().requires_grad_(False)


@torch.no_grad()
def move_average(average: nn.Module, source: nn.Module, weight: float) -> None:
    """average ← average + weight · (source - average), for parameters and floating buffers; counters are copied."""
    averages, sources = _tensors(average), _tensors(source)
    floating = [name for name, tensor in sources.items() if tensor.is_floating_point()]
    torch._foreach_lerp_([averages[n] for n in floating], [sources[n] for n in floating], weight)
    for name in sources.keys() - set(floating):
        averages[name].copy_(sources[name])


def _tensors(model: nn.Module) -> dict[str, Tensor]:
    return dict(model.named_parameters()) | dict(model.named_buffers())
