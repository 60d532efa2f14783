"""What a trainer is made of, where it is in its run, and how a run can fail."""

import math
from dataclasses import dataclass, field

from torch import nn

from advtrain.config import ThreatSettings
from advtrain.data.base import Dataset
from advtrain.engine.averaging import Averaging
from advtrain.engine.loggers import Logger
from advtrain.engine.optimizers import SGD, AdamW
from advtrain.engine.schedules import Schedule
from advtrain.engine.weight_perturbations import WeightPerturbation
from advtrain.losses import Loss
from advtrain.types import Attack


class Diverged(RuntimeError):
    """The loss is no longer a finite number."""


@dataclass
class Position:
    """Where training is: what a checkpoint counts.

    Attributes:
        epoch: completed epochs.
        step: completed steps of the epoch under way.
        best_epoch, best_robust, best_clean: the best validation so far, by robust accuracy; by clean accuracy where
            no attack is run, and `best_robust` is -1 then.
        seconds: spent in training by all sessions of this run.
    """

    epoch: int = 0
    step: int = 0
    best_epoch: int = 0
    best_robust: float = -1.0
    best_clean: float = -1.0
    seconds: float = 0.0


@dataclass(frozen=True)
class Ingredients:
    """The independent choices that a run composes; see the config groups of the same names."""

    data: Dataset
    model: nn.Module
    attack: Attack | None
    loss: Loss
    optimizer: SGD | AdamW
    schedule: Schedule
    weight_perturbation: WeightPerturbation
    averaging: Averaging
    logger: Logger
    threat: ThreatSettings = field(default_factory=ThreatSettings)


def check_finite(loss: float, epoch: int, step: int) -> None:
    """Confirms that training goes on.

    Raises:
        Diverged: the loss is NaN or infinite.
    """
    if not math.isfinite(loss):
        raise Diverged(
            f"expected a finite loss, got {loss} in epoch {epoch} by step {step}; "
            "lower optimizer.lr, set trainer.clip_norm=1, or use trainer.precision=fp32"
        )
