"""Epochs that come again: images and augmentations of a few epochs, over and over (`trainer.replay_epochs`)."""

from collections.abc import Iterator

from advtrain.config import TrainerSettings
from advtrain.data.base import Batch, TrainLoader


class EpochCycle:
    """Another loader whose epochs come again: epoch e holds the batches of epoch 1 + (e - 1) mod R.

    Order, augmentation, mixing and the second view are all those of that epoch. What is drawn elsewhere (an attack's
    starts, dropout) goes on by the true epoch. Not to be confused with `advtrain.engine.free.ReplayedLoader`, which
    repeats each batch within its epoch.

    Args:
        loader: of any dataset.
        epochs: R, at least 1.
    """

    def __init__(self, loader: TrainLoader, epochs: int) -> None:
        self._loader, self.epochs = loader, epochs
        self.steps_per_epoch = loader.steps_per_epoch

    def shown_in(self, epoch: int) -> int:
        """The epoch whose batches `epoch` holds, both counted from 1."""
        return 1 + (epoch - 1) % self.epochs

    def epoch(self, epoch: int, start_step: int = 0) -> Iterator[Batch]:
        """The batches of an epoch from `start_step` on."""
        return self._loader.epoch(self.shown_in(epoch), start_step)


def remarks(settings: TrainerSettings) -> list[str]:
    """What a reader should know of epochs that come again, one line each."""
    cycle, epochs = settings.replay_epochs, settings.epochs
    if cycle is None:
        return []
    if cycle >= epochs:
        return [f"replay    trainer.replay_epochs={cycle} of {epochs} epochs: no epoch comes again"]
    return [
        f"replay    epoch e shows the images of epoch 1 + (e - 1) mod {cycle} again, augmented alike",
        f"warning   after epoch {cycle} of {epochs} no image is new: the network overfits sooner than without that",
    ]
