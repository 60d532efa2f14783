"""A dataset whose training batches are mixed with generated images."""

from pathlib import Path

import torch

from advtrain import checks, distributed
from advtrain.data.array_dataset import ArrayDataset
from advtrain.data.arrays import ArraySplit
from advtrain.data.base import Dataset, TrainLoader, steps_per_epoch
from advtrain.data.generated_loader import GeneratedLoader, generated_rows
from advtrain.data.generated_set import GeneratedSet, open_generated, verify_generated
from advtrain.types import SettingError


class Generated(Dataset):
    """Base of the sets that wrap another and train on generated images besides its own (arXiv:2302.04638).

    Held-out and test images are the real ones alone. An epoch is as many steps as the official training set has
    batches, ⌈50000 / batch size⌉ for CIFAR, so that schedules mean what they mean without generated images. The
    published code draws generated images with replacement; here every image of the set is seen once before any is
    seen twice.

    Args:
        base: the real images.
        generated: path of an .npz file with uncompressed arrays `image` (uint8, shape (n, h, w, c)) and `label`
            (integers, shape (n,)), or of a folder that `python -m advtrain.data.convert` made. Images stay on disk;
            a process keeps one byte per image for its label, and four more when classes are balanced.
        generated_fraction: of every batch.
        class_balanced: equally many generated images of each class, whatever the set holds.
        verify_manifest: read all of the set before training and compare it with its sums.
    """

    def __init__(
        self,
        base: ArrayDataset,
        *,
        generated: str,
        generated_fraction: float,
        class_balanced: bool,
        verify_manifest: bool,
    ) -> None:
        self.base = base
        self.num_classes, self.image_shape = base.num_classes, base.image_shape
        self.mix, self.second_view = base.mix, base.second_view
        self.generated = Path(generated).expanduser()
        self.generated_fraction = checks.number("data.generated_fraction", generated_fraction, above=0)
        if self.generated_fraction >= 1:
            raise SettingError(
                f"data.generated_fraction: expected a number above 0 and below 1, got {generated_fraction}; "
                "data=npz trains on one set of images alone"
            )
        self.class_balanced = checks.flag("data.class_balanced", class_balanced)
        self.verify_manifest = checks.flag("data.verify_manifest", verify_manifest)
        self._pool: GeneratedSet | None = None

    def check(self) -> None:
        self.base.check()
        self._open()
        if self.verify_manifest and distributed.local_rank() == 0:
            verify_generated(self.generated)

    def check_test(self) -> None:
        self.base.check_test()

    def split(self, name: str) -> ArraySplit:
        return self.base.split(name)

    def remarks(self) -> list[str]:
        counts = self._open().class_counts
        return [
            *self.base.remarks(),
            f"{self.generated_fraction:.0%} of each batch from {len(self._open()):,} generated images, "
            f"{counts.min():,} to {counts.max():,} per class{', drawn equally' if self.class_balanced else ''}",
        ]

    def train_loader(
        self,
        *,
        batch_size: int,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
        device: torch.device | str = "cpu",
    ) -> TrainLoader:
        official = len(self.split("train")) + len(self.split("validation"))
        whole_batches = steps_per_epoch(official, batch_size, world_size)
        return GeneratedLoader(
            self.split("train"),
            self._open(),
            generated_rows=generated_rows(self.generated_fraction, batch_size),
            class_balanced=self.class_balanced,
            presentation=self.base.presentation,
            steps_per_epoch=whole_batches + (official % batch_size > 0),
            batch_size=batch_size,
            seed=seed,
            rank=rank,
            world_size=world_size,
            device=device,
        )

    def _open(self) -> GeneratedSet:
        if self._pool is None:
            assert self.num_classes is not None
            self._pool = open_generated(self.generated, image_shape=self.image_shape, num_classes=self.num_classes)
        return self._pool
