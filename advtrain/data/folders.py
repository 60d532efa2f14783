"""Images that stay in files: decoded when wanted, for training by worker processes ahead of time."""

import os
import signal
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, default_collate

from advtrain.data.arrays import pixels
from advtrain.data.base import Batch, permutation, rows_of, steps_per_epoch, subset_indices
from advtrain.data.decoding import read_rgb
from advtrain.data.mixing import Mixing, NoMixing
from advtrain.random import seeded_generator, stream_seed
from advtrain.types import FileError, Images

Transform = Callable[[Tensor], Tensor]  # from a decoded image to what the model sees, both uint8, shape (3, h, w)


@dataclass(frozen=True)
class FolderSplit:
    """Image files and their labels.

    Attributes:
        folder: that `files` are relative to.
        files: bytes, shape (n,).
        labels: int64, shape (n,).
        transform: outside training.
        workers: threads that decode, and processes that decode for training; 0 for this thread.
    """

    folder: Path
    files: np.ndarray
    labels: Tensor
    transform: Transform
    workers: int

    def __len__(self) -> int:
        return len(self.files)

    def fetch(self, indices: Tensor, device: torch.device | str) -> Images:
        with ThreadPoolExecutor(max(1, self.workers)) as pool:
            images = list(pool.map(lambda index: self.transform(self.decode(index)), indices.tolist()))
        return pixels(torch.stack(images).to(device))

    def subset(self, n_examples: int | None) -> Tensor:
        return subset_indices(self.labels, n_examples)

    def part(self, indices: Tensor) -> "FolderSplit":
        """The split of the images at `indices` of this one."""
        return replace(self, files=self.files[indices.numpy()], labels=self.labels[indices])

    def decode(self, index: int) -> Tensor:
        """The image at `index` as RGB, uint8, shape (3, h, w).

        Raises:
            FileError: its file is damaged.
        """
        return read_rgb(self.folder / os.fsdecode(self.files[index]))


class FolderLoader:
    """Batches of a `FolderSplit`, decoded and augmented by worker processes that live as long as the loader.

    Args:
        split: the training images.
        transform: the augmentation; may draw from torch's global CPU generator, which is seeded for every image.
        mixing: of images and labels after augmentation.
        batch_size: images per step over all processes.
        seed: names permutation, augmentation (with epoch and image) and mixing (with epoch and step).
        rank, world_size: which rows of each batch are wanted.
        device: where the batches go.
    """

    def __init__(
        self,
        split: FolderSplit,
        *,
        transform: Transform,
        mixing: NoMixing | Mixing,
        batch_size: int,
        seed: int,
        rank: int,
        world_size: int,
        device: torch.device | str,
    ) -> None:
        self.steps_per_epoch = steps_per_epoch(len(split), batch_size, world_size)
        self._labels, self._device = split.labels, torch.device(device)
        self._batch_size, self._seed = batch_size, seed
        self._rows = rows_of(batch_size, rank, world_size)
        self._mixing, self._parts = mixing, mixing.parts(self._rows, batch_size)
        self._plan = _Plan()
        self._images = DataLoader(
            _Augmented(split, transform, seed),
            batch_sampler=self._plan,
            num_workers=split.workers,
            persistent_workers=split.workers > 0,
            prefetch_factor=2 if split.workers > 0 else None,
            collate_fn=_batch_or_error,
            pin_memory=self._device.type == "cuda",
            worker_init_fn=_ignore_interrupt,
            generator=seeded_generator(seed, "workers"),  # not the global one: nothing of ours depends on it
        )

    def epoch(self, epoch: int, start_step: int = 0) -> Iterator[Batch]:
        order = permutation(len(self._labels), self._seed, epoch)
        whole = order.split(self._batch_size)[start_step : self.steps_per_epoch]
        batches = [torch.cat([batch[part] for part in self._parts]) for batch in whole]
        self._plan.set(epoch, batches)
        for step, (chosen, images) in enumerate(zip(batches, self._images, strict=True), start_step):
            if isinstance(images, FileError):
                raise images
            x = pixels(images.to(self._device, non_blocking=True))
            y = self._labels[chosen].to(self._device, non_blocking=True)
            x, y = self._mixing(x, y, self._seed, epoch, step)
            yield Batch(x, y, self._rows, indices=whole[step - start_step][self._rows])


class _Plan:
    """What the workers make next: lists of (epoch, image). Persistent workers learn the epoch from here."""

    def __init__(self) -> None:
        self.set(0, [])

    def set(self, epoch: int, batches: list[Tensor]) -> None:
        self._epoch, self._batches = epoch, batches

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        epoch = self._epoch
        for batch in self._batches:
            yield [(epoch, index) for index in batch.tolist()]

    def __len__(self) -> int:
        return len(self._batches)


class _Augmented(Dataset):
    """Augmented images by (epoch, index), each drawn from a stream of its own."""

    def __init__(self, split: FolderSplit, transform: Transform, seed: int) -> None:
        self.split, self.transform, self.seed = split, transform, seed

    def __getitem__(self, key: tuple[int, int]) -> Tensor | FileError:
        epoch, index = key
        try:
            image = self.split.decode(index)
        except FileError as error:
            return error
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(stream_seed(self.seed, "augment", epoch, index))
            return self.transform(image)


def _batch_or_error(images: list[Tensor | FileError]) -> Tensor | FileError:
    """The images as one tensor, or what was wrong with one: raised in a worker, its one line would become a page."""
    return next((image for image in images if isinstance(image, FileError)), None) or default_collate(images)


def _ignore_interrupt(worker: int) -> None:
    """Ctrl-C reaches workers, too; the main process decides when to stop."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
