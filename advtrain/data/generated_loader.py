"""Batches of which a fixed part comes from a pool of generated images on disk."""

from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from torch import Tensor

from advtrain.data.arrays import ArraySplit, Presentation
from advtrain.data.base import Batch, rows_of
from advtrain.data.generated_set import SETTING, GeneratedSet
from advtrain.data.shuffle import endless
from advtrain.random import stream_seed
from advtrain.types import SettingError

READERS = 4  # threads: batches that are read at the same time, since a disk answers many questions as fast as one
AHEAD = 8  # batches read or being read before they are wanted


class GeneratedLoader:
    """Real and generated images in fixed parts of every batch, spread evenly over its rows.

    Step s of epoch e, counted over the run as t, takes images t·G … (t+1)·G - 1 of an endless stream that goes through
    the generated set in a new order each time (G generated rows per batch), and the rest of its rows from such a
    stream of the real training set. So nothing repeats within a pass, whatever an epoch's length, and a resumed run
    goes on where it stopped by its step counter.

    Args:
        split: the real training images.
        generated: the pool.
        generated_rows: G.
        class_balanced: generated images of all classes in turn, each class shuffled by itself, instead of all alike.
        presentation: how stored images become a batch.
        steps_per_epoch: batches that are called an epoch.
        batch_size: images per step over all processes.
        seed: names orders and augmentation.
        rank, world_size: which rows of each batch are wanted. No others are read.
        device: where the batches go.

    Raises:
        SettingError: the pool, or a class of it, is smaller than its part of a batch.
    """

    def __init__(
        self,
        split: ArraySplit,
        generated: GeneratedSet,
        *,
        generated_rows: int,
        class_balanced: bool,
        presentation: Presentation,
        steps_per_epoch: int,
        batch_size: int,
        seed: int,
        rank: int,
        world_size: int,
        device: torch.device | str,
    ) -> None:
        self.steps_per_epoch = steps_per_epoch
        self._split, self._generated, self._presentation = split, generated, presentation
        self._generated_rows, self._batch_size = generated_rows, batch_size
        self._seed, self._device = seed, torch.device(device)
        self._rows = rows_of(batch_size, rank, world_size)
        self._parts = presentation.parts(self._rows, batch_size)
        _check_enough(generated, generated_rows, class_balanced)
        # Made here and not by the threads that read, which would each begin to make it.
        self._by_class = generated.by_class if class_balanced else None

    def epoch(self, epoch: int, start_step: int = 0) -> Iterator[Batch]:
        with ThreadPoolExecutor(READERS, thread_name_prefix="generated") as readers:
            first = range(start_step, min(start_step + AHEAD, self.steps_per_epoch))
            ahead = deque(readers.submit(self._read, epoch, step) for step in first)
            for step in range(start_step, self.steps_per_epoch):
                images, labels = ahead.popleft().result()
                if step + AHEAD < self.steps_per_epoch:
                    ahead.append(readers.submit(self._read, epoch, step + AHEAD))
                yield self._presentation.batch(
                    images.to(self._device, non_blocking=True),
                    labels.to(self._device, non_blocking=True),
                    rows=self._rows,
                    batch_size=self._batch_size,
                    seed=self._seed,
                    epoch=epoch,
                    step=step,
                )

    def _read(self, epoch: int, step: int) -> tuple[Tensor, Tensor]:
        """The images (uint8, shape (n, c, h, w)) and labels (int64) of the rows of a step that this process needs."""
        done = (epoch - 1) * self.steps_per_epoch + step
        rows = np.concatenate([np.arange(part.start, part.stop) for part in self._parts])
        before = rows * self._generated_rows // self._batch_size  # generated rows above each
        is_generated = (rows + 1) * self._generated_rows // self._batch_size > before
        generated = self._generated_at(done * self._generated_rows + before[is_generated])
        real_rows = self._batch_size - self._generated_rows
        real = self._real_at(done * real_rows + (rows - before)[~is_generated])

        mask = torch.from_numpy(is_generated)
        pinned = self._device.type == "cuda"
        shape = self._split.images.shape[1:]
        images = torch.empty((len(rows), *shape), dtype=torch.uint8, pin_memory=pinned)
        labels = torch.empty(len(rows), dtype=torch.int64, pin_memory=pinned)
        images[mask] = torch.from_numpy(self._generated.images.read(generated)).permute(0, 3, 1, 2)
        labels[mask] = torch.from_numpy(self._generated.labels[generated].astype(np.int64))
        images[~mask] = self._split.images[self._split.members[real]]
        labels[~mask] = self._split.labels[real]
        return images, labels

    def _generated_at(self, positions: np.ndarray) -> np.ndarray:
        """Which generated images stand at these positions of their stream."""
        seed = stream_seed(self._seed, "generated order")
        if self._by_class is None:
            return endless(positions, len(self._generated), seed)
        counts = self._generated.class_counts
        turns, classes = np.divmod(positions, len(counts))
        first = (np.cumsum(counts) - counts)[classes]
        return self._by_class[first + endless(turns, counts[classes], seed, classes)].astype(np.int64)

    def _real_at(self, positions: np.ndarray) -> Tensor:
        """Which real images stand at these positions of their stream."""
        return torch.from_numpy(endless(positions, len(self._split), stream_seed(self._seed, "real order")))


def generated_rows(fraction: float, batch_size: int) -> int:
    """How many rows of a batch are generated: ⌊fraction · batch_size⌋, as in the code of arXiv:2302.04638.

    Raises:
        SettingError: none are, or all.
    """
    rows = int(fraction * batch_size + 1e-9)  # 0.29 · 100 is a little below 29
    if not 0 < rows < batch_size:
        raise SettingError(
            f"trainer.batch_size: expected real and generated images in every batch, got {rows} generated ones of "
            f"{batch_size} by data.generated_fraction={fraction:g}; change one of them"
        )
    return rows


def _check_enough(generated: GeneratedSet, rows: int, class_balanced: bool) -> None:
    if len(generated) < rows:
        raise SettingError(
            f"{SETTING}: expected at least the {rows} generated images of a batch, got {len(generated)}; "
            "give a larger set, or lower data.generated_fraction or trainer.batch_size"
        )
    needed = -(-rows // generated.num_classes)
    if class_balanced and generated.class_counts.min() < needed:
        poorest = int(generated.class_counts.argmin())
        raise SettingError(
            f"data.class_balanced: expected at least {needed} generated images of every class, got "
            f"{generated.class_counts[poorest]} of class {poorest}; use data.class_balanced=false or a larger set"
        )
