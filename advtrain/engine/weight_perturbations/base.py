"""Perturbing the weights while the loss is computed, so that training looks for flat minima.

A perturbation is a context manager around the loss of a step: `with perturbation(model, ascent): accumulate()`. Of
each optimiser step:

1. The adversarial images are made at the unperturbed weights and serve both passes below.
2. `ascent()` leaves in `.grad` the gradient of the whole training loss over the whole batch: summed over accumulation
   passes and averaged over processes. So every process moves its weights alike, and neither the number of processes
   nor that of passes changes the perturbation. (Foret et al. let each device perturb by its own part of the batch.)
3. Inside the block the weights are perturbed and `.grad` is empty; the gradient that training uses is computed there.
4. On exit, also after an error, the weights are what they were, bit for bit. The gradient stays; gradient clipping
   and the optimiser step, weight decay included, come after that and see the unperturbed weights.

The ascent pass runs in train mode, by batch statistics, but leaves no trace: BatchNorm's running statistics and the
class prior are put back. They take in the perturbed pass alone, as in the published AWP code. (Common SAM code does
the reverse: it takes in the first pass and freezes the statistics in the second.)

A perturbation costs one more forward and backward pass of the loss, and a copy of the weights that it moves. The
displacements take the place of the ascent's gradients, and all weights go through each operation together: a handful
of launches for a whole network, and no number that the host waits for.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Protocol

import torch
from torch import Tensor, nn

from advtrain import checks
from advtrain.engine.foreach import add_all, copies, copy_all

TINY = 1e-20  # keeps 0/0 from becoming NaN: a zero gradient moves nothing


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


class AscentStep(ABC):
    """Base of the perturbations that are one step along the gradient; `moves` says how far each weight goes.

    Args:
        start_epoch: the first epoch, counted from 1, in which weights are perturbed.
    """

    def __init__(self, *, start_epoch: int) -> None:
        self.start_epoch = checks.integer("weight_perturbation.start_epoch", start_epoch, low=1)

    @abstractmethod
    def moves(self, weights: Mapping[str, Tensor], gradients: dict[str, Tensor]) -> dict[str, Tensor]:
        """The displacement of each weight that moves, by name.

        Args:
            weights: of the parameters that have a gradient, by name.
            gradients: of the training loss, by the same names. They may be overwritten, since nobody needs them
                afterwards: a displacement that is made of its gradient in place takes no memory of its own.
        """

    def for_epoch(self, epoch: int) -> WeightPerturbation:
        return self if epoch >= self.start_epoch else NoPerturbation()

    @contextmanager
    def __call__(self, model: nn.Module, ascent: Callable[[], None]) -> Iterator[None]:
        ascent()
        weights = {name: p for name, p in model.named_parameters() if p.grad is not None}
        gradients = {name: p.grad for name, p in weights.items() if p.grad is not None}
        moving: list[Tensor] = []
        originals: list[Tensor] = []
        try:
            with torch.no_grad():
                moves = self.moves(weights, gradients)
                moving = [weights[name] for name in moves]
                originals = copies(moving)
                add_all(moving, list(moves.values()))
            del moves, gradients  # or they would live as long as the block
            model.zero_grad(set_to_none=True)
            yield
        finally:
            with torch.no_grad():  # copied back, since taking the move off again would round
                copy_all(moving[: len(originals)], originals)
