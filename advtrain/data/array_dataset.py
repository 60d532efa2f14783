"""What datasets that fit in memory share: the held-out split, augmentation, the loader, the cache of decoded arrays."""

from abc import abstractmethod
from functools import cached_property

import torch
from torch import Tensor

from advtrain import checks
from advtrain.data.arrays import ArrayLoader, ArraySplit, Presentation, whole
from advtrain.data.augmentations import WORDS, Augmentation, augmentation
from advtrain.data.augmentations.placement import CROP_SHIFT
from advtrain.data.base import SPLITS, Dataset, TrainLoader, fewer, held_out
from advtrain.data.mixing import WORDS as MIXES
from advtrain.data.mixing import mixing
from advtrain.types import SettingError


class ArrayDataset(Dataset):
    """Base of the datasets that are arrays of uint8.

    Args:
        num_classes: C.
        validation_size: training images held out for choosing checkpoints.
        train_size: how many of the others are trained on, see `base.fewer`; None for all.
        split_seed: chooses them; independent of the run's seed, so that runs are compared on the same images.
        augment: what training images go through, one of `augmentations.WORDS`.
        padding: zero pixels on each side before the crop.
        cutout_size: side of the square that "cutout" hides, in pixels.
        randaugment_ops: operations per image of "randaugment".
        randaugment_magnitude: their strength, 0 … 30.
        mix: how pairs of images and their labels are mixed, one of `mixing.WORDS`; labels are then soft.
        mix_alpha: the share of an image is drawn from Beta(mix_alpha, mix_alpha).
        second_view: what a second view of every image goes through, one of `augmentations.WORDS`; "none" for one view.
    """

    def __init__(
        self,
        *,
        num_classes: int | None,
        validation_size: int = 1000,
        train_size: int | None = None,
        split_seed: int = 0,
        augment: str = "crop_flip",
        padding: int = 4,
        cutout_size: int = 16,
        randaugment_ops: int = 2,
        randaugment_magnitude: int = 9,
        mix: str = "none",
        mix_alpha: float = 1.0,
        second_view: str = "none",
    ) -> None:
        self.num_classes = num_classes
        self.validation_size = checks.integer("data.validation_size", validation_size, low=1)
        self.train_size = None if train_size is None else checks.integer("data.train_size", train_size, low=1)
        self.split_seed = checks.integer("data.split_seed", split_seed)
        self.augment = checks.choice("data.augment", augment, WORDS)
        self.second_view = checks.choice("data.second_view", second_view, WORDS)
        self.padding = checks.integer("data.padding", padding, low=0)
        self.cutout_size = checks.integer("data.cutout_size", cutout_size, low=1)
        self.randaugment_ops = checks.integer("data.randaugment_ops", randaugment_ops, low=1)
        self.randaugment_magnitude = checks.integer("data.randaugment_magnitude", randaugment_magnitude, low=0, high=30)
        self.mix = checks.choice("data.mix", mix, MIXES)
        self.mixing = mixing(mix, mix_alpha, num_classes)
        if "none" not in (mix, second_view):
            raise SettingError(
                f"data.mix={mix} with data.second_view={second_view}: expected one of the two, since mixed images "
                "have no second view; choose data.mix=none or data.second_view=none"
            )

    def check(self) -> None:
        """Confirms that the augmentations fit the images; datasets add what they need."""
        side = min(self.image_shape[1:])
        for key, word in (("augment", self.augment), ("second_view", self.second_view)):
            if word == "cutout" and self.cutout_size > side:
                raise SettingError(
                    f"data.cutout_size: expected at most the images' side of {side} pixels with data.{key}=cutout, "
                    f"got {self.cutout_size}; lower it"
                )
            if word.startswith("idbh") and side <= CROP_SHIFT:
                raise SettingError(
                    f"data.{key}={word}: expected images of at least {CROP_SHIFT + 1} pixels a side, since it cuts off "
                    f"up to {CROP_SHIFT}, got {side}; choose another augmentation"
                )

    @property
    def shows_stored_images(self) -> bool:
        return self.augment == self.mix == self.second_view == "none"

    @property
    def presentation(self) -> Presentation:
        """How training images become batches; for every loader of them."""

        def augment(word: str) -> Augmentation:
            return augmentation(
                word,
                padding=self.padding,
                cutout_size=self.cutout_size,
                randaugment_ops=self.randaugment_ops,
                randaugment_magnitude=self.randaugment_magnitude,
            )

        second_view = None if self.second_view == "none" else augment(self.second_view)
        return Presentation(augment(self.augment), second_view, self.mixing)

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
        train = self.thinned(official.part(kept))
        return train.part(fewer(train.labels, self.train_size, self.split_seed)), official.part(held)

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
            presentation=self.presentation,
            batch_size=batch_size,
            seed=seed,
            rank=rank,
            world_size=world_size,
            device=device,
        )
