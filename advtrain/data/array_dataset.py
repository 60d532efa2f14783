"""What the datasets that fit in memory share: the held-out split, the loader, the cache of decoded arrays."""

from abc import abstractmethod
from functools import cached_property

import torch
from torch import Tensor

from advtrain import checks
from advtrain.data.arrays import AUGMENTATIONS, ArrayLoader, ArraySplit, whole
from advtrain.data.base import SPLITS, Dataset, TrainLoader, held_out


class ArrayDataset(Dataset):
    """Base of the datasets that are arrays of uint8.

    Args:
        num_classes: C.
        validation_size: training images held out for choosing checkpoints.
        split_seed: chooses them; independent of the run's seed, so that runs are compared on the same images.
        augment: "crop_flip" or "none".
        padding: zero pixels on each side before the crop.
    """

    def __init__(
        self, *, num_classes: int | None, validation_size: int, split_seed: int, augment: str, padding: int
    ) -> None:
        self.num_classes = num_classes
        self.validation_size = checks.integer("data.validation_size", validation_size, low=1)
        self.split_seed = checks.integer("data.split_seed", split_seed)
        self.augment = checks.choice("data.augment", augment, AUGMENTATIONS)
        self.padding = checks.integer("data.padding", padding, low=0)

    @abstractmethod
    def read(self, train: bool) -> tuple[Tensor, Tensor]:
        """All images (uint8, shape (n, c, h, w)) and labels (int64) of the official training or test set."""

    @cached_property
    def _official_train(self) -> ArraySplit:
        return whole(*self.read(train=True))

    @cached_property
    def _test(self) -> ArraySplit:
        return whole(*self.read(train=False))

    @cached_property
    def _train_and_validation(self) -> tuple[ArraySplit, ArraySplit]:
        official = self._official_train
        kept, held = held_out(official.labels, self.validation_size, self.split_seed)
        return self.thinned(official.part(kept)), official.part(held)

    def thinned(self, train: ArraySplit) -> ArraySplit:
        """What is trained on of the images that are not held out: all of them, unless a dataset says otherwise."""
        return train

    def split(self, name: str) -> ArraySplit:
        checks.choice("split", name, SPLITS)
        return self._test if name == "test" else self._train_and_validation[SPLITS.index(name)]

    def train_loader(
        self,
        *,
        batch_size: int,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
        device: torch.device | str = "cpu",
    ) -> TrainLoader:
        return ArrayLoader(
            self.split("train"),
            augment=self.augment,
            padding=self.padding,
            batch_size=batch_size,
            seed=seed,
            rank=rank,
            world_size=world_size,
            device=device,
        )
