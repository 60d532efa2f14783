"""Small things that APGD and Square share: tensors with one entry per image, and norms of images."""

from typing import Self

import torch
from torch import Tensor

TINY = 1e-12  # upstream's guard of divisions


class PerImage:
    """An object whose tensors, and whose parts' tensors, all have one entry per image along their first axis."""

    def select(self, rows: Tensor) -> Self:
        """Keeps the images with these indices; the others leave. Changes the object and returns it."""
        for name, value in vars(self).items():
            if isinstance(value, Tensor):
                setattr(self, name, value[rows])
            elif isinstance(value, PerImage):
                value.select(rows)
        return self


def wide(values: Tensor) -> Tensor:
    """One number per image, shape (n,), as (n, 1, 1, 1)."""
    return values.view(-1, 1, 1, 1)


def length(images: Tensor, norm: str, scratch: Tensor) -> Tensor:
    """Norm of each image, shape (n, 1, 1, 1), with upstream's rounding.

    Args:
        images: contiguous, shape (n, c, h, w).
        norm: linf, l2 or l1.
        scratch: of the same shape; overwritten.
    """
    if norm == "l2":
        return wide(torch.mul(images, images, out=scratch).flatten(1).sum(1).sqrt_())
    sizes = torch.abs(images, out=scratch).flatten(1)
    return wide(sizes.amax(1) if norm == "linf" else sizes.sum(1))


def normalised(images: Tensor, norm: str, scratch: Tensor) -> Tensor:
    """Each image divided by its norm, in place."""
    return images.div_(length(images, norm, scratch).add_(TINY))
