"""Handwritten digits that come with scikit-learn: 1,797 real images, nothing to download."""

from typing import Any

import torch
from torch import Tensor

from advtrain.data.array_dataset import ArrayDataset
from advtrain.data.base import fixed_classes, held_out

TEST_SIZE = 360  # a fifth, the classes in proportion, the same in every run
TEST_SEED = 0


class Digits(ArrayDataset):
    """8 × 8 grey images of ten digits (the test part of UCI's optical recognition set, Alpaydin & Kaynak, 1998).

    Grey levels 0 … 16 are stored as round(255 · level / 16). The test split is fixed.

    Args:
        num_classes: 10; here because models take it from the data's config.
        validation_size, augment, padding, cutout_size, settings: see `ArrayDataset`.
    """

    name = "digits"
    image_shape = (1, 8, 8)

    def __init__(
        self,
        *,
        num_classes: int | None = None,
        validation_size: int = 100,
        augment: str = "none",
        padding: int = 1,
        cutout_size: int = 4,
        **settings: Any,
    ) -> None:
        super().__init__(
            num_classes=fixed_classes(num_classes, 10),
            validation_size=validation_size,
            augment=augment,
            padding=padding,
            cutout_size=cutout_size,
            **settings,
        )

    def read(self, train: bool) -> tuple[Tensor, Tensor]:
        from sklearn.datasets import load_digits

        levels, target = (torch.from_numpy(array) for array in load_digits(return_X_y=True))
        labels = target.long()
        members = held_out(labels, TEST_SIZE, TEST_SEED)[0 if train else 1]
        images = (levels * (255 / 16)).round().to(torch.uint8).view(-1, *self.image_shape)
        return images[members], labels[members]
