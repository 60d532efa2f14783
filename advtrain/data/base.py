"""What a dataset offers: named splits, and batches whose content depends on the seed alone.

The global batch of step s of an epoch is rows s·B … (s+1)·B of that epoch's permutation; process r of W holds rows
r·B/W … (r+1)·B/W of it. Permutation and augmentation are drawn for whole batches or per image from streams named by
(seed, epoch, …), so neither the number of processes nor that of workers changes a pixel.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from advtrain import checks
from advtrain.random import seeded_generator, stream_seed
from advtrain.types import Images, Labels, Logits, SettingError, Targets

SPLITS = ("train", "validation", "test")


@dataclass(frozen=True)
class Batch:
    """This process's rows of a global batch.

    Attributes:
        x: augmented images in [0, 1], float32, shape (n, c, h, w), on the device.
        y: labels, int64, shape (n,), on the device; class probabilities, float32, shape (n, C), when images are mixed.
        rows: which rows of the global batch these are.
        second: the same images, augmented once more, as a second view of them.
        taught: what the teacher says of `x`, shape (n, C), where that was computed before.
        indices: which images of the training split these are (before mixing), int64, shape (n,), on the CPU; None from
            loaders of images that are no part of it.
    """

    x: Images
    y: Targets
    rows: slice
    second: Images | None = None
    taught: Logits | None = None
    indices: Tensor | None = None

    @property
    def views(self) -> list[Images]:
        """The views of the images: one or two."""
        return [self.x] if self.second is None else [self.x, self.second]


class Split(Protocol):
    """A part of a dataset, without augmentation."""

    @property
    def labels(self) -> Tensor:
        """int64, shape (len,), on the CPU."""
        ...

    def __len__(self) -> int: ...

    def fetch(self, indices: Tensor, device: torch.device | str) -> Images:
        """The images at `indices`, float32 in [0, 1], shape (n, c, h, w), contiguous, on `device`."""
        ...

    def subset(self, n_examples: int | None) -> Tensor:
        """Indices of the images that stand for the split when only `n_examples` are wanted; see `subset_indices`."""
        ...


class TrainLoader(Protocol):
    """Batches of the training split; the same for the same seed."""

    steps_per_epoch: int

    def epoch(self, epoch: int, start_step: int = 0) -> Iterator[Batch]:
        """The batches of an epoch (counted from 1) from `start_step` on, as in an uninterrupted pass."""
        ...


class Dataset(ABC):
    """A dataset with a training, a held-out validation and a test split.

    Attributes:
        name: as in the config.
        num_classes: C; None where the data do not say and the config leaves it open.
        image_shape: (channels, height, width) of what the model sees.
        mix: the word for how training images are mixed; "none" leaves labels hard.
        second_view: the word for the augmentation that makes second views; "none" for one view.
    """

    name: str
    num_classes: int | None
    image_shape: tuple[int, int, int]
    mix: str = "none"
    second_view: str = "none"

    @abstractmethod
    def check(self) -> None:
        """Looks for what the dataset needs, cheaply, before anything is decoded or built.

        Raises:
            SettingError: it is missing or is something else.
        """

    def check_test(self) -> None:
        """As `check`, where nothing but the test split is wanted.

        Raises:
            SettingError: what it needs is missing or is something else.
        """
        self.check()

    @property
    def shows_stored_images(self) -> bool:
        """Whether training batches hold images of the split "train" as `fetch` gives them, and say which they are."""
        return False

    @abstractmethod
    def split(self, name: str) -> Split:
        """The split "train", "validation" or "test"."""

    def remarks(self) -> list[str]:
        """What a reader should know of the training images besides their number, one line each."""
        counts = self.split("train").labels.bincount(minlength=self.num_classes or 0)
        least, most = int(counts.min()), int(counts.max())
        return [f"classes of {least:,} to {most:,} training images"] if most > 2 * least else []

    @abstractmethod
    def train_loader(
        self,
        *,
        batch_size: int,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
        device: torch.device | str = "cpu",
    ) -> TrainLoader:
        """Batches of `batch_size` images over all processes; what is left over at the end of an epoch is skipped.

        Raises:
            SettingError: no whole batch fits, or it does not divide over the processes.
        """


def fixed_classes(num_classes: int | None, classes: int) -> int:
    """The number of classes of a set that has `classes`; None leaves it to the set.

    Raises:
        SettingError: another number is asked for.
    """
    if num_classes not in (None, classes):
        raise SettingError(f"data.num_classes: expected {classes}, got {num_classes!r}; leave it at {classes}")
    return classes


def steps_per_epoch(n_images: int, batch_size: int, world_size: int) -> int:
    """Whole batches in an epoch.

    Raises:
        SettingError: there is none, or a batch does not divide over the processes.
    """
    checks.integer("trainer.batch_size", batch_size, low=1)
    if batch_size % world_size:
        raise SettingError(
            f"trainer.batch_size: expected a multiple of the {world_size} processes, got {batch_size}; change it"
        )
    if n_images < batch_size:
        raise SettingError(
            f"trainer.batch_size: expected at most the {n_images} training images, got {batch_size}; lower it"
        )
    return n_images // batch_size


def rows_of(batch_size: int, rank: int, world_size: int) -> slice:
    """The rows of a global batch that process `rank` of `world_size` holds."""
    share = batch_size // world_size
    return slice(rank * share, (rank + 1) * share)


def permutation(n_images: int, seed: int, epoch: int) -> Tensor:
    """The order of the training images in an epoch."""
    return torch.randperm(n_images, generator=seeded_generator(seed, "order", epoch))


def held_out(labels: Tensor, size: int, split_seed: int) -> tuple[Tensor, Tensor]:
    """Divides image indices at random into (kept, held out), every class in proportion (to within an image).

    Args:
        labels: int64, shape (n,).
        size: how many to hold out, exactly.
        split_seed: names the draw.

    Returns:
        Two ascending index tensors that together hold every index once.

    Raises:
        SettingError: `size` leaves nothing on one side.
    """
    if not 0 < size < len(labels):
        raise SettingError(
            f"data.validation_size: expected 1 to {len(labels) - 1} of the {len(labels)} training images, got {size}; "
            "change it"
        )
    shuffled = torch.randperm(len(labels), generator=seeded_generator(split_seed, "held out"))
    by_class = shuffled[labels[shuffled].argsort(stable=True)]
    counts = labels.bincount()
    place = torch.arange(len(labels)) - (counts.cumsum(0) - counts)[labels[by_class]]
    # The k-th of a class's n images (from 0) stands at (k + ½) / n; cutting [0, 1] anywhere takes from all alike.
    order = by_class[((place + 0.5) / counts[labels[by_class]]).argsort(stable=True)]
    return order[size:].sort().values, order[:size].sort().values


def fewer(labels: Tensor, train_size: int | None, split_seed: int) -> Tensor:
    """Indices of the `train_size` images that are trained on, drawn at random, every class in proportion; ascending.

    A larger number takes the same images and more. All of them when `train_size` is None.

    Args:
        labels: int64, shape (n,), of the images that are not held out.
        train_size: how many, exactly.
        split_seed: names the draw.

    Raises:
        SettingError: there are not so many.
    """
    n = len(labels)
    if train_size is None or train_size == n:
        return torch.arange(n)
    if train_size > n:
        raise SettingError(
            f"data.train_size: expected at most the {n} training images that are not held out, got {train_size}; "
            "lower it"
        )
    return held_out(labels, train_size, stream_seed(split_seed, "train_size"))[1]


def subset_indices(labels: Tensor, n_examples: int | None) -> Tensor:
    """Which images of a split stand for it when only some are used.

    The first `n_examples`, as is the custom for CIFAR. Of a split that is sorted by class (class folders are), evenly
    spaced ones, since the first would all be of one class. All of them, in order, when `n_examples` is None or more
    than there are.
    """
    n = len(labels)
    if n_examples is None or n_examples >= n:
        return torch.arange(n)
    sorted_by_class = bool((labels[1:] >= labels[:-1]).all())
    return torch.arange(n_examples) * n // n_examples if sorted_by_class else torch.arange(n_examples)


def evaluation_batches(
    split: Split, batch_size: int, device: torch.device | str, n_examples: int | None = None
) -> Iterator[tuple[Images, Labels]]:
    """Images and labels of `split`, or of its subset of `n_examples`, in order; the last batch may be smaller."""
    for indices in split.subset(n_examples).split(batch_size):
        yield split.fetch(indices, device), split.labels[indices].to(device)
