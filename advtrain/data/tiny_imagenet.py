"""Tiny-ImageNet: 200 classes of ImageNet at 64 × 64 pixels (Le & Yang, "Tiny ImageNet visual recognition challenge",
2015)."""

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from advtrain import checks, distributed
from advtrain.data.array_dataset import ArrayDataset
from advtrain.data.base import fixed_classes
from advtrain.data.npz_member import member
from advtrain.types import SettingError

FOLDER = "tiny-imagenet-200"
SIZE = 64
ANNOTATIONS = "val_annotations.txt"


class TinyImageNet(ArrayDataset):
    """100,000 training images of 200 classes, and as test split the 10,000 official validation images, whose labels
    are public. Classes are numbered in the order of their WordNet names.

    The JPEG files are decoded once, by threads, and kept beside them as train.npz and val.npz (uncompressed arrays
    `image` and `label`, 1.2 GB and 0.1 GB, which data=npz reads as well); later runs read those. Where the folder
    cannot be written, every run decodes. Remove the two files when images have changed.

    Args:
        root: folder that holds tiny-imagenet-200/ as the official zip file makes it.
        num_classes: 200; here because models take it from the data's config.
        workers: threads that decode.
        validation_size: training images held out for choosing checkpoints.
        settings: of the split and of augmentation, see `ArrayDataset`.
    """

    name = "tiny_imagenet"
    image_shape = (3, SIZE, SIZE)

    def __init__(
        self,
        *,
        root: str = "data",
        num_classes: int | None = None,
        workers: int = 8,
        validation_size: int = 2000,
        **settings: Any,
    ) -> None:
        super().__init__(num_classes=fixed_classes(num_classes, 200), validation_size=validation_size, **settings)
        self.folder = Path(root).expanduser() / FOLDER
        self.workers = checks.integer("data.workers", workers, low=1)

    def check(self) -> None:
        super().check()
        if all(self._cache(part).is_file() for part in ("train", "val")):
            return
        for needed in (self.folder / "train", self.folder / "val" / "images", self.folder / "val" / ANNOTATIONS):
            if not needed.exists():
                raise SettingError(
                    f"data.root: expected {FOLDER}/ with train/, val/images/ and val/{ANNOTATIONS}, got no {needed}; "
                    "unpack tiny-imagenet-200.zip of cs231n.stanford.edu there"
                )
        if len(self._classes()) != self.num_classes:
            raise SettingError(
                f"data.root: expected {self.num_classes} class folders in {self.folder / 'train'}, "
                f"got {len(self._classes())}; unpack tiny-imagenet-200.zip anew"
            )

    def read(self, train: bool) -> tuple[Tensor, Tensor]:
        cache = self._cache("train" if train else "val")
        # One process of a machine decodes for all of them.
        if distributed.local_rank() == 0 and not cache.is_file() and os.access(self.folder, os.W_OK):
            images, labels = self._decoded(train)
            unfinished = cache.with_name(f"{cache.name}.unfinished")
            with unfinished.open("wb") as file:
                np.savez(file, image=images, label=labels)
            os.replace(unfinished, cache)
        distributed.barrier()
        images, labels = _cached(cache) if cache.is_file() else self._decoded(train)
        return torch.from_numpy(images).permute(0, 3, 1, 2), torch.from_numpy(labels)

    def _cache(self, part: str) -> Path:
        return self.folder / f"{part}.npz"

    def _classes(self) -> list[str]:
        return sorted(entry.name for entry in os.scandir(self.folder / "train") if entry.is_dir())

    def _decoded(self, train: bool) -> tuple[np.ndarray, np.ndarray]:
        files, labels = self._train_files() if train else self._test_files()
        images = np.empty((len(files), SIZE, SIZE, 3), np.uint8)

        def decode(i: int) -> None:
            with Image.open(files[i]) as image:
                if image.size != (SIZE, SIZE):
                    got = "×".join(map(str, image.size))
                    raise SettingError(f"data.root: expected {files[i]} of {SIZE}×{SIZE}, got {got}; unpack it anew")
                images[i] = np.asarray(image.convert("RGB"))

        with ThreadPoolExecutor(self.workers) as pool:
            list(pool.map(decode, range(len(files))))
        return images, labels

    def _train_files(self) -> tuple[Sequence[Path], np.ndarray]:
        """Images by class and name, and their labels."""
        files, labels = [], []
        for label, name in enumerate(self._classes()):
            found = sorted((self.folder / "train" / name / "images").glob("*.JPEG"))
            if not found:
                raise SettingError(
                    f"data.root: expected images in {self.folder / 'train' / name / 'images'}, got none; "
                    "unpack tiny-imagenet-200.zip anew"
                )
            files += found
            labels += [label] * len(found)
        return files, np.array(labels, np.int64)

    def _test_files(self) -> tuple[Sequence[Path], np.ndarray]:
        """Images in the order of the annotations, each line of which has a file, its class and a box, and labels."""
        label_of = {name: label for label, name in enumerate(self._classes())}
        path = self.folder / "val" / ANNOTATIONS
        lines = [line.split("\t") for line in path.read_text().splitlines() if line.strip()]
        unknown = [line for line in lines if len(line) < 2 or line[1] not in label_of]
        if unknown:
            raise SettingError(
                f"data.root: expected a file and a class of train/ in each line of {path}, got {unknown[0]}; "
                "unpack tiny-imagenet-200.zip anew"
            )
        files = [self.folder / "val" / "images" / line[0] for line in lines]
        return files, np.array([label_of[line[1]] for line in lines], np.int64)


def _cached(path: Path) -> tuple[np.ndarray, np.ndarray]:
    shape = member("data.root", path, "image").shape
    if shape[1:] != (SIZE, SIZE, 3):
        raise SettingError(f"data.root: expected images of 64×64×3 in {path}, got shape {shape}; remove that file")
    with np.load(path) as arrays:
        return arrays["image"], arrays["label"]
