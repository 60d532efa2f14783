"""Datasets that fit on the device as uint8: one gather makes a batch."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from advtrain.data.augmentations import Augmentation
from advtrain.data.base import Batch, permutation, rows_of, steps_per_epoch, subset_indices
from advtrain.data.mixing import Mixing, NoMixing
from advtrain.random import BatchRows, seeded_generator
from advtrain.types import Images


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


class ArrayLoader:
    """Batches of an `ArraySplit`, whose array is copied to the device once.

    Args:
        split: the training images.
        augment: what every image goes through; see `augmentation`.
        second_view: what makes second views of the images; None for one view.
        mixing: of images and labels after augmentation.
        batch_size: images per step over all processes.
        seed: names permutation, augmentation and mixing, with epoch and step.
        rank, world_size: which rows of each batch are wanted.
        device: where the images live.
    """

    def __init__(
        self,
        split: ArraySplit,
        *,
        augment: Augmentation,
        second_view: Augmentation | None = None,
        mixing: NoMixing | Mixing | None = None,
        batch_size: int,
        seed: int,
        rank: int,
        world_size: int,
        device: torch.device | str,
    ) -> None:
        self.steps_per_epoch = steps_per_epoch(len(split), batch_size, world_size)
        self._split = split
        self._images = split.images.to(device)
        self._augment, self._second_view, self._mixing = augment, second_view, mixing or NoMixing()
        self._batch_size, self._seed, self._device = batch_size, seed, device
        self._rows = rows_of(batch_size, rank, world_size)
        self._parts = self._mixing.parts(self._rows, batch_size)

    def epoch(self, epoch: int, start_step: int = 0) -> Iterator[Batch]:
        batches = permutation(len(self._split), self._seed, epoch).split(self._batch_size)
        for step in range(start_step, self.steps_per_epoch):
            batch = batches[step]
            labels = torch.cat([self._split.labels[batch[part]] for part in self._parts])
            x = self._view(batch, self._augment, "augment", epoch, step)
            y = labels.to(self._device, non_blocking=True)
            x, y = self._mixing(x, y, self._seed, epoch, step)
            second = self._second_view and self._view(batch, self._second_view, "second view", epoch, step)
            yield Batch(x, y, self._rows, second)

    def _view(self, batch: Tensor, augment: Augmentation, stream: str, epoch: int, step: int) -> Images:
        """The wanted rows of the global batch, augmented by draws from the stream of that name."""
        augmented = []
        for part in self._parts:
            members = self._split.members[batch[part]].to(self._device, non_blocking=True)
            generator = seeded_generator(self._seed, stream, epoch, step)
            augmented.append(augment(self._images[members], BatchRows(generator, self._batch_size, part)))
        return pixels(torch.cat(augmented))
