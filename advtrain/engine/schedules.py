"""Learning-rate schedules: a factor of the peak rate as a function of how far training is.

A schedule has no state, so a resumed run continues on the same curve. `progress` is in epochs, 0 at the start and
`epochs` at the end, with a fraction inside an epoch.
"""

import math
from collections.abc import Sequence
from typing import Protocol

from advtrain import checks
from advtrain.types import SettingError


class Schedule(Protocol):
    def factor(self, progress: float, epochs: int) -> float:
        """What the peak learning rate is multiplied by at `progress` epochs of `epochs`."""
        ...


class Constant:
    """The peak rate, after a linear warm-up.

    Args:
        warmup_epochs: length of the warm-up in epochs.
    """

    def __init__(self, *, warmup_epochs: float = 0) -> None:
        self.warmup_epochs = checks.number("schedule.warmup_epochs", warmup_epochs, low=0)

    def factor(self, progress: float, epochs: int) -> float:
        return warmed_up(progress, self.warmup_epochs, 1.0)


class Cosine:
    """Half a cosine from the peak to `final_factor` of it, after a linear warm-up.

    Args:
        warmup_epochs: length of the warm-up in epochs.
        final_factor: the factor at the end.
        per_epoch: hold the rate within an epoch and take ½(1 + cos(π e/(E+1))) in epoch e of E, as the published IKL
            code does; without it the rate falls from step to step.
    """

    def __init__(self, *, warmup_epochs: float = 0, final_factor: float = 0.0, per_epoch: bool = False) -> None:
        self.warmup_epochs = checks.number("schedule.warmup_epochs", warmup_epochs, low=0)
        self.final_factor = checks.number("schedule.final_factor", final_factor, low=0, high=1)
        self.per_epoch = checks.flag("schedule.per_epoch", per_epoch)

    def factor(self, progress: float, epochs: int) -> float:
        fraction = (math.floor(progress) + 1) / (epochs + 1) if self.per_epoch else progress / epochs
        cosine = 0.5 * (1 + math.cos(math.pi * min(fraction, 1.0)))
        return warmed_up(progress, self.warmup_epochs, self.final_factor + (1 - self.final_factor) * cosine)


class Step:
    """The peak rate multiplied by `gamma` at each milestone, after a linear warm-up.

    Args:
        milestones: rising fractions of training in (0, 1), e.g. [0.5, 0.75].
        gamma: factor at each milestone.
        warmup_epochs: length of the warm-up in epochs.
    """

    def __init__(
        self, *, milestones: Sequence[float] = (0.5, 0.75), gamma: float = 0.1, warmup_epochs: float = 0
    ) -> None:
        self.milestones = [checks.number("schedule.milestones", m, above=0, high=1) for m in milestones]
        if self.milestones != sorted(self.milestones):
            raise SettingError(f"schedule.milestones: expected rising fractions, got {milestones}; sort them")
        self.gamma = checks.number("schedule.gamma", gamma, above=0)
        self.warmup_epochs = checks.number("schedule.warmup_epochs", warmup_epochs, low=0)

    def factor(self, progress: float, epochs: int) -> float:
        passed = sum(progress / epochs >= milestone for milestone in self.milestones)
        return warmed_up(progress, self.warmup_epochs, self.gamma**passed)


class OneCycle:
    """Linearly up to the peak and linearly down again (Smith & Topin, arXiv:1708.07120).

    Args:
        peak_at: where the peak is, as a fraction of training.
        start_factor: factor at the start.
        final_factor: factor at the end.
    """

    def __init__(self, *, peak_at: float = 0.3, start_factor: float = 0.04, final_factor: float = 0.0) -> None:
        self.peak_at = checks.number("schedule.peak_at", peak_at, above=0, high=1)
        self.start_factor = checks.number("schedule.start_factor", start_factor, low=0, high=1)
        self.final_factor = checks.number("schedule.final_factor", final_factor, low=0, high=1)

    def factor(self, progress: float, epochs: int) -> float:
        fraction = min(progress / epochs, 1.0)
        if fraction <= self.peak_at:
            return self.start_factor + (1 - self.start_factor) * fraction / self.peak_at
        return self.final_factor + (1 - self.final_factor) * (1 - fraction) / (1 - self.peak_at)


def warmed_up(progress: float, warmup_epochs: float, factor: float) -> float:
    """`factor`, or the linear rise from 0 to 1 while the warm-up lasts."""
    return factor if progress >= warmup_epochs else factor * progress / warmup_epochs
