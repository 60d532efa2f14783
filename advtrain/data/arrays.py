"""Datasets that fit on the device as uint8: one gather makes a batch."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from advtrain.data.augment import Augmentation, random_crop_flip
from advtrain.data.base import Batch, permutation, rows_of, steps_per_epoch, subset_indices
from advtrain.random import BatchRows, Source, seeded_generator
from advtrain.types import Images

AUGMENTATIONS = ("crop_flip", "none")


@dataclass(frozen=True)
class ArraySplit:
    """Some of the images of an array in memory. Splits of one array share it.

    Attributes:
        images: uint8, shape (m, c, h, w); all images, whatever the split.
        labels: int64, shape (n,); of the split.
        members: int64, shape (n,); where the split's images are in `images`.
    """

    images: Tensor
    labels: Tensor
    members: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def fetch(self, indices: Tensor, device: torch.device | str) -> Images:
        return pixels(self.images[self.members[indices]].to(device))

    def subset(self, n_examples: int | None) -> Tensor:
        return subset_indices(self.labels, n_examples)

    def part(self, indices: Tensor) -> "ArraySplit":
        """The split of the images at `indices` of this one."""
        return ArraySplit(self.images, self.labels[indices], self.members[indices])


def whole(images: Tensor, labels: Tensor) -> ArraySplit:
    """The split of all images."""
    return ArraySplit(images, labels, torch.arange(len(labels)))


def pixels(images: Tensor) -> Images:
    """uint8 images as contiguous float32 in [0, 1]."""
    # By a tensor: CUDA divides by a Python number through its rounded reciprocal, one bit off in half of the levels.
    return images.contiguous().float().div_(torch.full((), 255.0, device=images.device))


def augmentation(augment: str, padding: int) -> Augmentation:
    """The augmentation that the settings of `ArrayDataset` name."""

    def crop_flip(images: Tensor, source: Source) -> Tensor:
        return random_crop_flip(images, padding, source)

    return crop_flip if augment == "crop_flip" else lambda images, source: images


class ArrayLoader:
    """Batches of an `ArraySplit`, whose array is copied to the device once.

    Args:
        split: the training images.
        augment: "crop_flip" or "none".
        padding: zero pixels on each side before the crop.
        batch_size: images per step over all processes.
        seed: names permutation and augmentation, with epoch and step.
        rank, world_size: which rows of each batch are wanted.
        device: where the images live.
    """

    def __init__(
        self,
        split: ArraySplit,
        *,
        augment: str,
        padding: int,
        batch_size: int,
        seed: int,
        rank: int,
        world_size: int,
        device: torch.device | str,
    ) -> None:
        self.steps_per_epoch = steps_per_epoch(len(split), batch_size, world_size)
        self._split = split
        self._images = split.images.to(device)
        self._augment = augmentation(augment, padding)
        self._batch_size, self._seed, self._device = batch_size, seed, device
        self._rows = rows_of(batch_size, rank, world_size)

    def epoch(self, epoch: int, start_step: int = 0) -> Iterator[Batch]:
        batches = permutation(len(self._split), self._seed, epoch).split(self._batch_size)
        for step in range(start_step, self.steps_per_epoch):
            chosen = batches[step][self._rows]
            images = self._images[self._split.members[chosen].to(self._device, non_blocking=True)]
            generator = seeded_generator(self._seed, "augment", epoch, step)
            images = self._augment(images, BatchRows(generator, self._batch_size, self._rows))
            labels = self._split.labels[chosen].to(self._device, non_blocking=True)
            yield Batch(pixels(images), labels, self._rows)
