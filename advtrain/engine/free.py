"""Free adversarial training: minibatches that are replayed, and the perturbation that is carried from step to step.

One replay is one optimiser step. Its only backward pass gives the gradient that moves the weights and the one that
moves the perturbation (`advtrain.attacks.Free`), so learning rate, averaging, log and checkpoints go on per replay.
"""

import itertools
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from advtrain import distributed
from advtrain.attacks import Free
from advtrain.data.base import Batch, TrainLoader, rows_of
from advtrain.engine.weight_perturbations import NoPerturbation, WeightPerturbation
from advtrain.losses import PGDAT, Loss
from advtrain.random import BatchRows
from advtrain.types import Attack, Images, Objective, SettingError


class ReplayedLoader:
    """Each batch of another loader `replays` times in succession; a step of an epoch is one replay."""

    def __init__(self, loader: TrainLoader, replays: int) -> None:
        self._loader, self._replays = loader, replays
        self.steps_per_epoch = loader.steps_per_epoch * replays

    def epoch(self, epoch: int, start_step: int = 0) -> Iterator[Batch]:
        """The batches of an epoch from the replay `start_step` on."""
        first, seen = divmod(start_step, self._replays)
        for batch in self._loader.epoch(epoch, first):
            yield from itertools.repeat(batch, self._replays - seen)
            seen = 0


class WarmStart(Attack):
    """The attack of a step of free adversarial training: the image plus the perturbation that the last step left.

    Row i of the perturbation belongs to row i of every global batch. Each process moves the rows that it holds; a
    checkpoint has all of them, so any number of processes can go on from it.

    Args:
        attack: the radius and the step.
        shape: of the global batch, (B, c, h, w).
        device, dtype: of the images.
    """

    def __init__(
        self, attack: Free, shape: tuple[int, int, int, int], *, device: torch.device, dtype: torch.dtype
    ) -> None:
        self.attack = attack
        self.perturbation = torch.zeros(shape, device=device, dtype=dtype)
        self._rows = rows_of(shape[0], distributed.rank(), distributed.world_size())
        self._shown = self.perturbation[:0]

    def carrying(self, attack: Attack) -> "WarmStart":
        """The same perturbation with the radius of another epoch's attack."""
        assert isinstance(attack, Free)
        self.attack = attack
        return self

    def __call__(self, objective: Objective, x: Images, *, generator: Any = None) -> Images:
        """Images that gather the gradient of the training loss. The objective is not asked: that loss is it.

        Raises:
            ValueError: `x` is not all that this process holds of the global batch.
        """
        if not isinstance(generator, BatchRows) or generator.rows != self._rows or len(x) != len(self._own):
            raise ValueError(f"expected all rows {self._rows} of the batch, got {len(x)} images of {generator}")
        self._shown = self.attack.applied(x.detach(), self._own).requires_grad_()
        return self._shown

    def after_backward(self) -> None:
        """Moves the perturbation along the gradient that the backward pass of the training loss has left."""
        if self._shown.grad is None:
            raise RuntimeError("expected the training loss to depend on the adversarial images, got no gradient")
        moved = self.attack.ascended(self._shown.detach(), self._own, self._shown.grad)
        self.perturbation[self._rows] = moved

    def synchronise(self) -> None:
        """Gathers the rows of all processes in each of them; called on every process before the main one saves."""
        if distributed.world_size() > 1:
            whole = torch.zeros_like(self.perturbation)
            whole[self._rows] = self._own
            self.perturbation = distributed.all_reduce_sum(whole)

    def state_dict(self) -> dict[str, Tensor]:
        return {"perturbation": self.perturbation}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        self.perturbation.copy_(state["perturbation"])

    @property
    def _own(self) -> Tensor:
        return self.perturbation[self._rows]


def free_attack(attack: Attack | None, epochs: int) -> Free | None:
    """The free attack that is configured, by itself or in a schedule; None for every other attack."""
    first = None if attack is None else attack.for_epoch(1, epochs)
    return first if isinstance(first, Free) else None


def check_free(loss: Loss, perturbation: WeightPerturbation, accumulation: int) -> None:
    """Confirms that one backward pass can serve weights and perturbation.

    Raises:
        SettingError: it cannot.
    """
    if not isinstance(loss, PGDAT) or loss.inner_objective != "ce":
        raise SettingError(
            f"attack=free with loss {type(loss).__name__} and loss.inner={loss.inner_objective}: expected loss=pgd_at "
            "with loss.inner=ce, the one loss whose backward pass is that of the attack as well (one that compares "
            "with the natural prediction has no gradient at the image, where the attack starts); choose loss=pgd_at "
            "or attack=fgsm_rs"
        )
    if not isinstance(perturbation, NoPerturbation):
        raise SettingError(
            f"attack=free with weight_perturbation {type(perturbation).__name__}: expected none, since its extra "
            "passes would not be free and the gradient would belong to other weights; choose weight_perturbation=none "
            "or attack=pgd"
        )
    if accumulation != 1:
        raise SettingError(
            f"attack=free with trainer.accumulation={accumulation}: expected 1, since each pass is a replay of the "
            "whole batch; lower trainer.batch_size or choose attack=fgsm_rs"
        )
