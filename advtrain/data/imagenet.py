"""ImageNet and any other folder of images with train/<class>/ and val/<class>/."""

import os
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torchvision.transforms import v2

from advtrain import checks
from advtrain.data.base import SPLITS, Dataset, TrainLoader, fewer, held_out
from advtrain.data.folders import FolderLoader, FolderSplit
from advtrain.data.mixing import mixing
from advtrain.types import SettingError

AUGMENTATIONS = ("none", "resized_crop", "autoaugment", "randaugment", "trivialaugment")
EXTENSIONS = (".jpeg", ".jpg", ".png", ".webp", ".bmp", ".ppm")


class ImageFolder(Dataset):
    """Images in class folders. Classes are numbered in the order of their folders' names; val/ is the test split.

    Args:
        root: folder that holds train/ and val/, each with one folder of images per class.
        num_classes: how many class folders there are.
        validation_size: training images held out for choosing checkpoints.
        train_size: how many of the others are trained on, see `base.fewer`; None for all.
        split_seed: chooses them; independent of the run's seed.
        size: side of the square that the model sees, in pixels.
        resize: shorter side to which an image is scaled before its central square is cut out, outside training.
        augment: "none" (as outside training), "resized_crop" (a random part of the image, scaled to the square, and
            flipped half of the time), or that and torchvision's "autoaugment" (with the policy for ImageNet),
            "randaugment" or "trivialaugment".
        min_scale: smallest share of an image's area that a random part may have.
        randaugment_ops: operations per image of "randaugment".
        randaugment_magnitude: their strength, 0 … 30.
        mix: how pairs of images and their labels are mixed, one of `mixing.WORDS`; labels are then soft.
        mix_alpha: the share of an image is drawn from Beta(mix_alpha, mix_alpha).
        workers: processes that decode training images, and threads that decode others, for each process of the run.
    """

    name = "imagenet"

    def __init__(
        self,
        *,
        root: str,
        num_classes: int = 1000,
        validation_size: int = 10000,
        train_size: int | None = None,
        split_seed: int = 0,
        size: int = 224,
        resize: int = 256,
        augment: str = "resized_crop",
        min_scale: float = 0.08,
        randaugment_ops: int = 2,
        randaugment_magnitude: int = 9,
        mix: str = "none",
        mix_alpha: float = 0.2,
        workers: int = 8,
    ) -> None:
        self.root = Path(root).expanduser()
        self.num_classes = checks.integer("data.num_classes", num_classes, low=2)
        self.validation_size = checks.integer("data.validation_size", validation_size, low=1)
        self.train_size = None if train_size is None else checks.integer("data.train_size", train_size, low=1)
        self.split_seed = checks.integer("data.split_seed", split_seed)
        self.size = checks.integer("data.size", size, low=1)
        self.resize = checks.integer("data.resize", resize, low=self.size)
        self.augment = checks.choice("data.augment", augment, AUGMENTATIONS)
        self.min_scale = checks.number("data.min_scale", min_scale, above=0, high=1)
        self.randaugment_ops = checks.integer("data.randaugment_ops", randaugment_ops, low=1)
        self.randaugment_magnitude = checks.integer("data.randaugment_magnitude", randaugment_magnitude, low=0, high=30)
        self.mix, self.mixing = mix, mixing(mix, mix_alpha, self.num_classes)
        self.workers = checks.integer("data.workers", workers, low=0)
        self.image_shape = (3, self.size, self.size)

    def check(self) -> None:
        classes, others = self._class_folders("train"), self._class_folders("val")
        if len(classes) != self.num_classes:
            raise SettingError(
                f"data.num_classes: expected the {len(classes)} class folders of {self.root / 'train'}, "
                f"got {self.num_classes}; use data.num_classes={len(classes)}"
            )
        if classes != others:
            name = sorted(set(classes) ^ set(others))[0]
            raise SettingError(
                f"data.root: expected the same class folders in train/ and val/ of {self.root}, got {name} in one; "
                "add it to the other"
            )

    @property
    def shows_stored_images(self) -> bool:
        return self.augment == self.mix == "none"

    def split(self, name: str) -> FolderSplit:
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
        return FolderLoader(
            self.split("train"),
            transform=self._train_transform(),
            mixing=self.mixing,
            batch_size=batch_size,
            seed=seed,
            rank=rank,
            world_size=world_size,
            device=device,
        )

    @cached_property
    def _train_and_validation(self) -> tuple[FolderSplit, FolderSplit]:
        official = self._scan("train")
        kept, held = held_out(official.labels, self.validation_size, self.split_seed)
        return self.thinned(official.part(kept)), official.part(held)

    def thinned(self, train: FolderSplit) -> FolderSplit:
        """What is trained on of the images that are not held out."""
        return train.part(fewer(train.labels, self.train_size, self.split_seed))

    @cached_property
    def _test(self) -> FolderSplit:
        return self._scan("val")

    def _train_transform(self) -> v2.Transform:
        if self.augment == "none":
            return self._plain_transform()
        crop = v2.RandomResizedCrop(self.size, scale=(self.min_scale, 1.0))
        policies = {
            "autoaugment": lambda: [v2.AutoAugment(v2.AutoAugmentPolicy.IMAGENET)],
            "randaugment": lambda: [v2.RandAugment(self.randaugment_ops, self.randaugment_magnitude)],
            "trivialaugment": lambda: [v2.TrivialAugmentWide()],
        }
        policy = policies.get(self.augment, list)()
        if policy:  # faster on Pillow's images, the way there and back included
            policy = [v2.ToPILImage(), *policy, v2.PILToTensor()]
        return v2.Compose([crop, v2.RandomHorizontalFlip(), *policy])

    def _plain_transform(self) -> v2.Transform:
        # Scaled by Pillow, as leaderboards do; on tensors one value in a thousand differs by a grey level or two.
        return v2.Compose([v2.ToPILImage(), v2.Resize(self.resize), v2.CenterCrop(self.size), v2.PILToTensor()])

    def _scan(self, part: str) -> FolderSplit:
        self.check()
        files, labels = _image_files(self.root / part, self._class_folders(part))
        return FolderSplit(self.root / part, files, labels, self._plain_transform(), self.workers)

    def _class_folders(self, part: str) -> list[str]:
        folder = self.root / part
        if not folder.is_dir():
            raise SettingError(
                f"data.root: expected a folder with train/ and val/, got no folder {folder}; check data.root"
            )
        return sorted(entry.name for entry in os.scandir(folder) if entry.is_dir() and not entry.name.startswith("."))


def _image_files(folder: Path, classes: Sequence[str]) -> tuple[np.ndarray, Tensor]:
    """The images below `folder` by class and name, as bytes "class/name", and their labels.

    Raises:
        SettingError: a class has none.
    """
    files: list[bytes] = []
    counts = []
    for name in classes:
        images = sorted(entry.name for entry in os.scandir(folder / name) if entry.name.lower().endswith(EXTENSIONS))
        if not images:
            raise SettingError(
                f"data.root: expected images ({', '.join(EXTENSIONS)}) in {folder / name}, got none; "
                "add them or remove the folder"
            )
        files += [os.fsencode(f"{name}/{image}") for image in images]
        counts.append(len(images))
    # One flat array instead of a million Python strings, which every worker would copy by touching them.
    return np.array(files), torch.arange(len(classes)).repeat_interleave(torch.tensor(counts))
