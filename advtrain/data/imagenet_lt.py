"""Long-tailed and other parts of an image folder, listed in index files as ImageNet-LT is published."""

import os
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from advtrain.data.base import held_out
from advtrain.data.folders import FolderSplit
from advtrain.data.imagenet import ImageFolder
from advtrain.types import SettingError


class ImageNetLT(ImageFolder):
    """Images below a folder that index files choose and label (Liu et al., arXiv:1904.05160, for ImageNet-LT).

    A line of an index is a path relative to `root`, a space and a class number, e.g.
    `train/n01440764/n01440764_190.JPEG 0`. Classes may be rare in the training index or absent from it.

    Args:
        root: folder that the paths in the index files are relative to.
        index: of the training images, e.g. ImageNet_LT_train.txt.
        test_index: of the test images, e.g. ImageNet_LT_test.txt.
        validation_index: of the images on which checkpoints are chosen, e.g. ImageNet_LT_val.txt; None holds
            `validation_size` images out of the training index, which are then as long-tailed as those.
        num_classes: C; class numbers are below.
        settings: of the split, the images' size, augmentation and workers, see `ImageFolder`.
    """

    name = "imagenet_lt"

    def __init__(
        self,
        *,
        root: str,
        index: str,
        test_index: str,
        validation_index: str | None = None,
        **settings: Any,
    ) -> None:
        super().__init__(root=root, **settings)
        self.index, self.test_index = Path(index).expanduser(), Path(test_index).expanduser()
        self.validation_index = None if validation_index is None else Path(validation_index).expanduser()

    def check(self) -> None:
        self._read("index", self.index)
        if self.validation_index is not None:
            self._read("validation_index", self.validation_index)
        self.check_test()

    def check_test(self) -> None:
        self._read("test_index", self.test_index)

    @cached_property
    def _train_and_validation(self) -> tuple[FolderSplit, FolderSplit]:
        train = self._read("index", self.index)
        if self.validation_index is not None:
            return self.thinned(train), self._read("validation_index", self.validation_index)
        kept, held = held_out(train.labels, self.validation_size, self.split_seed)
        return self.thinned(train.part(kept)), train.part(held)

    @cached_property
    def _test(self) -> FolderSplit:
        return self._read("test_index", self.test_index)

    def _read(self, setting: str, index: Path) -> FolderSplit:
        """The images of an index file. That the first one of each class is there stands for the others.

        Raises:
            SettingError: the file is missing, a line is none, or an image is not below `root`.
        """
        if not index.is_file():
            raise SettingError(f"data.{setting}: expected an index file, got no file {index}; check the path")
        lines = [line for line in index.read_bytes().splitlines() if line.strip()]
        pairs = [line.rsplit(maxsplit=1) for line in lines]
        classes = {str(label).encode() for label in range(self.num_classes or 0)}
        for line, pair in zip(lines, pairs, strict=True):
            if len(pair) != 2 or pair[1] not in classes:
                raise SettingError(
                    f"data.{setting}: expected lines of a path and a class below {self.num_classes}, got "
                    f"{os.fsdecode(line)!r} in {index}; correct it or set data.num_classes"
                )
        if not pairs:
            raise SettingError(f"data.{setting}: expected lines of a path and a class, got none in {index}; check it")
        files, labels = np.array([pair[0] for pair in pairs]), np.array([int(pair[1]) for pair in pairs])
        for first in np.unique(labels, return_index=True)[1]:
            image = self.root / os.fsdecode(pairs[first][0])
            if not image.is_file():
                raise SettingError(
                    f"data.root: expected the folder that the paths in {index} are relative to, got no {image}; "
                    "change data.root"
                )
        return FolderSplit(self.root, files, torch.from_numpy(labels), self._plain_transform(), self.workers)
