"""Datasets that fit on the device as uint8: one gather makes a batch."""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace

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


@dataclass(frozen=True)
class Presentation:
    """How stored images become a training batch: augmented once, or twice for two views, and mixed or not.

    Attributes:
        augment: what every image goes through.
        second_view: what a second view of it goes through; None for one view.
        mixing: of images and labels after augmentation.
    """

    augment: Augmentation
    second_view: Augmentation | None = None
    mixing: NoMixing | Mixing = field(default_factory=NoMixing)

    def parts(self, rows: slice, batch_size: int) -> list[slice]:
        """The rows of the global batch that `batch` wants in order to make `rows`."""
        return self.mixing.parts(rows, batch_size)

    def batch(
        self, images: Tensor, labels: Tensor, *, rows: slice, batch_size: int, seed: int, epoch: int, step: int
    ) -> Batch:
        """This process's rows of a step.

        Args:
            images: uint8, shape (m, c, h, w), on the device; the rows of `parts`, one part after the other.
            labels: int64, shape (m,), of the same.
            rows: to be made.
            batch_size: of the global batch.
            seed, epoch, step: name the draws.
        """
        parts = self.parts(rows, batch_size)

        def view(augment: Augmentation, stream: str) -> Images:
            augmented = []
            for part, piece in zip(parts, images.split([part.stop - part.start for part in parts]), strict=True):
                generator = seeded_generator(seed, stream, epoch, step)
                augmented.append(augment(piece, BatchRows(generator, batch_size, part)))
            return pixels(torch.cat(augmented))

        x, y = self.mixing(view(self.augment, "augment"), labels, seed, epoch, step)
        second = None if self.second_view is None else view(self.second_view, "second view")
        return Batch(x, y, rows, second)


class ArrayLoader:
    """Batches of an `ArraySplit`, whose array is copied to the device once.

    Args:
        split: the training images.
        presentation: how they become batches.
        batch_size: images per step over all processes.
        seed: names permutation, augmentation and mixing, with epoch and step.
        rank, world_size: which rows of each batch are wanted.
        device: where the images live.
    """

    def __init__(
        self,
        split: ArraySplit,
        *,
        presentation: Presentation,
        batch_size: int,
        seed: int,
        rank: int,
        world_size: int,
        device: torch.device | str,
    ) -> None:
        self.steps_per_epoch = steps_per_epoch(len(split), batch_size, world_size)
        self._split, self._presentation = split, presentation
        self._images = split.images.to(device)
        self._batch_size, self._seed, self._device = batch_size, seed, device
        self._rows = rows_of(batch_size, rank, world_size)

    def epoch(self, epoch: int, start_step: int = 0) -> Iterator[Batch]:
        batches = permutation(len(self._split), self._seed, epoch).split(self._batch_size)
        parts = self._presentation.parts(self._rows, self._batch_size)
        for step in range(start_step, self.steps_per_epoch):
            chosen = torch.cat([batches[step][part] for part in parts])
            batch = self._presentation.batch(
                self._images[self._split.members[chosen].to(self._device, non_blocking=True)],
                self._split.labels[chosen].to(self._device, non_blocking=True),
                rows=self._rows,
                batch_size=self._batch_size,
                seed=self._seed,
                epoch=epoch,
                step=step,
            )
            yield replace(batch, indices=batches[step][self._rows])
