"""Which logits a file holds: a row for each training image, or one for each place in epochs that come again."""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import numpy as np
import torch

import advtrain
from advtrain import distributed
from advtrain.config import TrainerSettings
from advtrain.data.base import Batch, Dataset, TrainLoader
from advtrain.engine.epoch_cycle import EpochCycle
from advtrain.types import Images

VERSIONS = ("torch", "torchvision", "numpy")


@dataclass(frozen=True)
class Stretch:
    """Rows of the file that follow each other, and this process's part of the work on them.

    Attributes:
        rows: how many all processes fill together.
        own: which of them this process fills.
        images: for those, on the device.
    """

    rows: int
    own: slice
    images: Images


class Layout(ABC):
    """What stands in which row.

    Attributes:
        word: for people and for the description of the file.
        rows: of the file.
    """

    word: str
    rows: int

    @abstractmethod
    def facts(self) -> dict[str, Any]:
        """What the file belongs to, besides the teacher and the images."""

    @abstractmethod
    def stretches(self) -> Iterator[Stretch]:
        """All rows in order; every process gets the same stretches, each with its part."""

    @abstractmethod
    def of_batch(self, batch: Batch, epoch: int, step: int) -> slice | np.ndarray:
        """The rows that belong to the images of a batch."""


class ByImage(Layout):
    """Row i belongs to training image i: for images that are the same in every epoch, of any seed and batch size.

    Args:
        data: whose training images are shown as they are stored.
        batch_size: images that go through the teacher together, over all processes.
        device: where.
    """

    word = "by image"

    def __init__(self, data: Dataset, batch_size: int, device: Any) -> None:
        self._split, self._device = data.split("train"), device
        self._share = max(1, batch_size // distributed.world_size())
        self.rows = len(self._split)

    def facts(self) -> dict[str, Any]:
        return {}

    def stretches(self) -> Iterator[Stretch]:
        whole = self._share * distributed.world_size()
        for start in range(0, self.rows, whole):
            rows = min(whole, self.rows - start)
            first = min(distributed.rank() * self._share, rows)
            own = slice(first, min(first + self._share, rows))
            indices = torch.arange(start + own.start, start + own.stop)
            yield Stretch(rows, own, self._split.fetch(indices, self._device))

    def of_batch(self, batch: Batch, epoch: int, step: int) -> np.ndarray:
        assert batch.indices is not None, "check_stored_logits asks for images that are named"
        return batch.indices.numpy()


class ByPlace(Layout):
    """Row ((e - 1) · S + s) · B + b belongs to row b of the batch of step s in epoch e of the cycle.

    Args:
        cycle: of R epochs of S steps.
        settings: of the trainer.
        seed: of the run.
    """

    word = "by epoch and place"

    def __init__(self, cycle: EpochCycle, settings: TrainerSettings, seed: int) -> None:
        self._cycle, self._batch_size, self._seed = cycle, settings.images_per_step, seed
        self.rows = cycle.epochs * cycle.steps_per_epoch * self._batch_size

    def facts(self) -> dict[str, Any]:
        facts = {"seed": self._seed, "batch_size": self._batch_size, "replay_epochs": self._cycle.epochs}
        # Random augmentation is only the same in the same release.
        return facts | {name: installed for name, installed in versions().items() if name != "numpy"}

    def stretches(self) -> Iterator[Stretch]:
        for epoch in range(1, self._cycle.epochs + 1):
            for batch in self._cycle.epoch(epoch):
                yield Stretch(self._batch_size, batch.rows, batch.x)

    def of_batch(self, batch: Batch, epoch: int, step: int) -> slice:
        epochs_before = self._cycle.shown_in(epoch) - 1
        first = (epochs_before * self._cycle.steps_per_epoch + step) * self._batch_size
        return slice(first + batch.rows.start, first + batch.rows.stop)


def layout_of(
    loader: TrainLoader, data: Dataset, settings: TrainerSettings, *, seed: int, device: Any
) -> ByImage | ByPlace:
    """The layout that needs fewer rows, of those that can be.

    Args:
        loader: of the run.
        data: of the run; see `advtrain.engine.stored_logits.check_stored_logits`.
        settings: of the trainer.
        seed: of the run.
        device: of the run.
    """
    if data.shows_stored_images:
        return ByImage(data, settings.images_per_step, device)
    assert isinstance(loader, EpochCycle), "check_stored_logits asks for epochs that come again"
    return ByPlace(loader, settings, seed)


def versions() -> dict[str, str]:
    """Of what computes."""
    return {"advtrain": advtrain.__version__} | {name: version(name) for name in VERSIONS}
