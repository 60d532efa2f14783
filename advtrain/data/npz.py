"""Image arrays in .npz files, the form in which generated CIFAR sets are published."""

import zipfile
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.lib import format as npy
from torch import Tensor

from advtrain import checks
from advtrain.data.array_dataset import ArrayDataset
from advtrain.types import SettingError

HEADERS = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}


class Npz(ArrayDataset):
    """Two files, each with `image` (uint8, shape (n, h, w, c), c = 1 or 3) and `label` (integers, shape (n,)).

    Args:
        train, test: the files.
        num_classes: C; None leaves it open, and then neither labels nor model can be checked against it.
        settings: of the split and of augmentation, see `ArrayDataset`.
    """

    name = "npz"

    def __init__(
        self,
        *,
        train: str,
        test: str,
        num_classes: int | None = None,
        **settings: Any,
    ) -> None:
        super().__init__(
            num_classes=None if num_classes is None else checks.integer("data.num_classes", num_classes, low=2),
            **settings,
        )
        self.files = {"train": Path(train).expanduser(), "test": Path(test).expanduser()}

    @cached_property
    def image_shape(self) -> tuple[int, int, int]:
        height, width, channels = self._image_header("train")[1:]
        return channels, height, width

    def check(self) -> None:
        super().check()
        shapes = {part: self._image_header(part) for part in self.files}
        if shapes["train"][1:] != shapes["test"][1:]:
            expected, got = ("×".join(map(str, shapes[part][1:])) for part in ("train", "test"))
            raise SettingError(f"data.test: expected images of {expected} as in data.train, got {got}; resize them")
        for part in self.files:
            self._labels(part)

    def read(self, train: bool) -> tuple[Tensor, Tensor]:
        part = "train" if train else "test"
        labels = self._labels(part)
        with np.load(self.files[part]) as arrays:
            return torch.from_numpy(arrays["image"]).permute(0, 3, 1, 2), labels

    def _image_header(self, part: str) -> tuple[int, ...]:
        """The shape of `image`, from the array's header; the pixels are not read."""
        shape, dtype = self._header(part, "image")
        if dtype != np.uint8 or len(shape) != 4 or shape[0] == 0 or shape[3] not in (1, 3):
            raise SettingError(
                f"data.{part}: expected image as uint8 of shape (n, h, w, 1 or 3), got {dtype} of shape {shape}; "
                f"convert {self.files[part]}"
            )
        return shape

    def _labels(self, part: str) -> Tensor:
        """The labels, int64."""
        shape, dtype = self._header(part, "label")
        images = self._image_header(part)[0]
        if dtype.kind not in "iu" or shape != (images,):
            raise SettingError(
                f"data.{part}: expected label as {images} integers, got {dtype} of shape {shape}; "
                f"convert {self.files[part]}"
            )
        with np.load(self.files[part]) as arrays:
            labels = torch.from_numpy(arrays["label"].astype(np.int64))
        low, high = int(labels.min()), int(labels.max())
        if low < 0 or (self.num_classes is not None and high >= self.num_classes):
            raise SettingError(
                f"data.{part}: expected labels from 0 to {'C' if self.num_classes is None else self.num_classes} - 1, "
                f"got {low} to {high}; use data.num_classes={high + 1} or convert {self.files[part]}"
            )
        return labels

    def _header(self, part: str, key: str) -> tuple[tuple[int, ...], np.dtype]:
        path = self.files[part]
        if not path.is_file():
            raise SettingError(f"data.{part}: expected an .npz file, got no file {path}; check the path")
        try:
            with zipfile.ZipFile(path) as archive, archive.open(f"{key}.npy") as file:
                shape, _, dtype = HEADERS[npy.read_magic(file)](file)
                return shape, dtype
        except (zipfile.BadZipFile, KeyError, ValueError) as error:
            raise SettingError(
                f"data.{part}: expected an .npz file with the arrays image and label, got {path} without a readable "
                f"{key}; write it with numpy.savez(path, image=…, label=…)"
            ) from error
