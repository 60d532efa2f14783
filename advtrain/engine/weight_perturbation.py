"""Perturbing the weights while the loss is computed, so that training looks for flat minima.

A perturbation is a context manager around the loss of a step: `with perturbation(model, ascent): accumulate()`.
`ascent()` leaves in `.grad` the gradient of the training loss over the whole batch, summed over accumulation passes
and averaged over processes, so every process perturbs alike. On exit the weights are what they were, bit for bit; the
optimiser steps after that.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Protocol

import torch
from torch import nn

from advtrain import checks


class WeightPerturbation(Protocol):
    def for_epoch(self, epoch: int) -> "WeightPerturbation":
        """The perturbation of that epoch, counted from 1."""
        ...

    @contextmanager
    def __call__(self, model: nn.Module, ascent: Callable[[], None]) -> Iterator[None]: ...


class NoPerturbation:
    """The weights as they are."""

    def for_epoch(self, epoch: int) -> "NoPerturbation":
        return self

    @contextmanager
    def __call__(self, model: nn.Module, ascent: Callable[[], None]) -> Iterator[None]:
        yield


class AWP:
    """Adversarial weight perturbation: one normalised ascent step per weight tensor.

    Wu et al., "Adversarial Weight Perturbation Helps Robust Generalization", NeurIPS 2020, arXiv:2004.05884. Each
    convolution and linear weight w moves by γ·‖w‖·g/‖g‖, with g the gradient of the whole training loss. The published
    code lets the optimiser step on the perturbed weights and then takes the perturbation off; here the weights are
    restored before the step, which differs only in the weight decay of the perturbation (lr · wd · γ‖w‖).

    Args:
        gamma: γ, the relative size of the perturbation.
        start_epoch: the first epoch, counted from 1, in which weights are perturbed.
    """

    def __init__(self, *, gamma: float = 0.005, start_epoch: int = 1) -> None:
        self.gamma = checks.number("weight_perturbation.gamma", gamma, low=0)
        self.start_epoch = checks.integer("weight_perturbation.start_epoch", start_epoch, low=1)

    def for_epoch(self, epoch: int) -> WeightPerturbation:
        return self if epoch >= self.start_epoch else NoPerturbation()

    @contextmanager
    def __call__(self, model: nn.Module, ascent: Callable[[], None]) -> Iterator[None]:
        ascent()
        weights = [p for p in model.parameters() if p.grad is not None and p.dim() > 1]
        gradients = [p.grad for p in weights if p.grad is not None]
        originals = [p.detach().clone() for p in weights]
        try:
            with torch.no_grad():
                for weight, gradient in zip(weights, gradients, strict=True):
                    weight.add_(gradient * (self.gamma * weight.norm() / gradient.norm().clamp_min(1e-20)))
            model.zero_grad(set_to_none=True)
            yield
        finally:
            with torch.no_grad():
                for weight, original in zip(weights, originals, strict=True):
                    weight.copy_(original)
