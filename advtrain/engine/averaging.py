"""Averages of the weights over training. The averaged model is the one that is validated, evaluated and exported.

BatchNorm's running statistics belong to the weights under which they were gathered; no average of weights has any of
its own. `batchnorm` says what the averaged model uses instead:

    averaged    the average of the running statistics, with the same coefficients as the weights (as IKL's released
                models, whose checkpoints are averaged whole)
    copied      those of the current model (as the published code of Wang et al. 2023, arXiv:2302.04638)
    recomputed  those of the averaged weights themselves, from a pass over natural training images before each use (as
                Izmailov et al., arXiv:1803.05407, algorithm 1); see `advtrain.engine.batchnorm`

For a model without BatchNorm the three are the same and cost nothing. Buffers other than BatchNorm's are averaged,
counters copied.
"""

import copy
from typing import Protocol

import torch
from torch import Tensor, nn

from advtrain import checks, distributed
from advtrain.engine.batchnorm import NaturalImages, batchnorm_layers, recompute_statistics
from advtrain.engine.foreach import copy_all

BATCHNORM = ("averaged", "copied", "recomputed")


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

    def before_use(self, images: NaturalImages) -> None:
        """Called on every process before the average is validated or saved: the last word on its statistics.

        A second call without a step or an epoch in between must change nothing and cost nothing.

        Args:
            images: natural training images, in case the average needs to see some.
        """
        ...


class NoAveraging:
    """The model as it is."""

    def attach(self, model: nn.Module) -> nn.Module:
        return model

    def after_step(self, step: int) -> None:
        pass

    def after_epoch(self, epoch: int) -> None:
        pass

    def before_use(self, images: NaturalImages) -> None:
        pass


class _Average:
    """What the averages share: the copy of the model and its BatchNorm statistics.

    The copy's state dict is all that a resumed run needs: coefficients follow from the number of the step or epoch,
    and statistics that are recomputed never enter another computation.

    Args:
        batchnorm: see the top of this file.
        batchnorm_images: training images that "recomputed" sees, all of them where there are fewer.
        batchnorm_batch_size: of that pass, over all processes alike.
    """

    def __init__(self, *, batchnorm: str, batchnorm_images: int, batchnorm_batch_size: int) -> None:
        self.batchnorm = checks.choice("averaging.batchnorm", batchnorm, BATCHNORM)
        self.batchnorm_images = checks.integer("averaging.batchnorm_images", batchnorm_images, low=2)
        self.batchnorm_batch_size = checks.integer("averaging.batchnorm_batch_size", batchnorm_batch_size, low=2)
        self._stale = False  # whether weights moved since the statistics were recomputed

    def attach(self, model: nn.Module) -> nn.Module:
        self._copy = frozen_copy(model)
        self._follower = Follower(self._copy, model, copy_statistics=self.batchnorm == "copied")
        return self._copy

    def after_step(self, step: int) -> None:
        pass

    def after_epoch(self, epoch: int) -> None:
        pass

    def before_use(self, images: NaturalImages) -> None:
        if self._stale and self.batchnorm == "recomputed":
            recompute_statistics(self._copy, images(self.batchnorm_images, self.batchnorm_batch_size))
        self._stale = False

    def _take_over(self) -> None:
        """Makes the copy the model as it is, with its own statistics."""
        self._follower.move(1)
        self._stale = False

    def _move(self, weight: float) -> None:
        """Moves the copy by `weight` towards the model."""
        self._follower.move(weight)
        self._stale = True


class EMA(_Average):
    """Exponential moving average per optimiser step: w̄ ← w̄ + (1 - decay_t)(w - w̄).

    Args:
        decay: of each step.
        warmup: whether the decay starts small, min(decay, (1 + t) / (10 + t)) at step t, so that the average forgets
            the initial weights quickly.
        batchnorm, batchnorm_images, batchnorm_batch_size: see `_Average`.
    """

    def __init__(
        self,
        *,
        decay: float = 0.995,
        warmup: bool = True,
        batchnorm: str = "averaged",
        batchnorm_images: int = 10000,
        batchnorm_batch_size: int = 500,
    ) -> None:
        super().__init__(
            batchnorm=batchnorm, batchnorm_images=batchnorm_images, batchnorm_batch_size=batchnorm_batch_size
        )
        self.decay = checks.number("averaging.decay", decay, low=0, high=1)
        self.warmup = checks.flag("averaging.warmup", warmup)

    def after_step(self, step: int) -> None:
        decay = min(self.decay, (1 + step) / (10 + step)) if self.warmup else self.decay
        self._move(1 - decay)


class EpochEMA(_Average):
    """Exponential moving average of the weights at the end of each epoch (IKL's released models: decay 0.9).

    Args:
        decay: of each epoch; the first epoch's model starts the average as it is.
        batchnorm, batchnorm_images, batchnorm_batch_size: see `_Average`.
    """

    def __init__(
        self,
        *,
        decay: float = 0.9,
        batchnorm: str = "averaged",
        batchnorm_images: int = 10000,
        batchnorm_batch_size: int = 500,
    ) -> None:
        super().__init__(
            batchnorm=batchnorm, batchnorm_images=batchnorm_images, batchnorm_batch_size=batchnorm_batch_size
        )
        self.decay = checks.number("averaging.decay", decay, low=0, high=1)

    def after_epoch(self, epoch: int) -> None:
        if epoch == 1:
            self._take_over()
        else:
            self._move(1 - self.decay)


class SWA(_Average):
    """Stochastic weight averaging: the equal average of the weights at the end of each epoch from `start_epoch` on.

    Izmailov et al., "Averaging Weights Leads to Wider Optima and Better Generalization", UAI 2018, arXiv:1803.05407;
    in adversarial training Chen et al., "Robust Overfitting May Be Mitigated by Properly Learned Smoothening", ICLR
    2021. Through `start_epoch` the evaluated model is the current one, with its own BatchNorm statistics. The learning
    rate is the schedule's affair: the paper's is cyclic or constant while weights are averaged.

    Args:
        start_epoch: the first epoch, counted from 1, whose weights enter the average. How many have entered follows
            from the number of the epoch.
        batchnorm, batchnorm_images, batchnorm_batch_size: see `_Average`.
    """

    def __init__(
        self,
        *,
        start_epoch: int,
        batchnorm: str = "recomputed",
        batchnorm_images: int = 10000,
        batchnorm_batch_size: int = 500,
    ) -> None:
        super().__init__(
            batchnorm=batchnorm, batchnorm_images=batchnorm_images, batchnorm_batch_size=batchnorm_batch_size
        )
        self.start_epoch = checks.integer("averaging.start_epoch", start_epoch, low=1)

    def after_epoch(self, epoch: int) -> None:
        if epoch <= self.start_epoch:
            self._take_over()
        else:
            self._move(1 / (epoch - self.start_epoch + 1))


def frozen_copy(model: nn.Module) -> nn.Module:
    """A copy in eval mode whose parameters take no gradient."""
    return copy.deepcopy(model).eval().requires_grad_(False)


class Follower:
    """Moves a model towards another one of the same architecture, in one operation for all that moves.

    Where the tensors are is looked up once; the tensors themselves at each move, since a module may replace a buffer.

    Args:
        average: what moves.
        source: where to.
        copy_statistics: whether BatchNorm's buffers are copied; otherwise they move as the weights do.
    """

    def __init__(self, average: nn.Module, source: nn.Module, *, copy_statistics: bool = False) -> None:
        self._moved: list[tuple[dict, dict, str]] = []
        self._copied: list[tuple[dict, dict, str]] = []  # counters, too
        statistics = {layer for _, layer in batchnorm_layers(source)} if copy_statistics else set()
        known: set[Tensor] = set()  # what two modules share moves once
        for own, its in zip(average.modules(), source.modules(), strict=True):
            for here, there in ((own._parameters, its._parameters), (own._buffers, its._buffers)):
                copied = its in statistics and there is its._buffers
                for name, tensor in there.items():
                    if tensor is not None and tensor not in known:
                        known.add(tensor)
                        places = self._moved if tensor.is_floating_point() and not copied else self._copied
                        places.append((here, there, name))

    @torch.no_grad()
    def move(self, weight: float) -> None:
        """average ← average + weight · (source - average); 1 makes the two equal."""
        if self._moved:
            here, there = _tensors(self._moved)
            torch._foreach_lerp_(here, there, weight)
        copy_all(*_tensors(self._copied))


def _tensors(places: list[tuple[dict, dict, str]]) -> tuple[list[Tensor], list[Tensor]]:
    """What is there now; of sharded models, which are cut up alike, this process's parts."""
    own = [distributed.own_part(here[name]) for here, _, name in places]
    return own, [distributed.own_part(there[name]) for _, there, name in places]
