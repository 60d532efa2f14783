"""Augmentations of whole batches of uint8 images, on the device where they live.

    augment = augmentation("autoaugment", padding=4)
    augmented = augment(images, source)  # uint8 of shape (n, c, h, w), in and out

`placement` moves, mirrors and hides parts of images; `policies` draws operations for each image, and `operations` has
torchvision compute them for all images that drew the same. The number of draws per image is fixed and all are made on
the CPU through a `Source`, so neither the device nor the division of a batch among processes changes a pixel.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from torch import Tensor

from advtrain.data.augmentations import placement
from advtrain.random import Source

Augmentation = Callable[..., Tensor]  # (images, source) -> images

WORDS = (
    "none",
    "crop_flip",
    "cutout",
    "autoaugment",
    "randaugment",
    "trivialaugment",
    "idbh_weak",
    "idbh_strong",
)


@dataclass(frozen=True)
class Chain:
    """Augmentations one after the other; without any, the images as they are."""

    steps: tuple[Augmentation, ...] = ()

    def __call__(self, images: Tensor, source: Source = None) -> Tensor:
        for step in self.steps:
            images = step(images, source)
        return images


def augmentation(
    word: str,
    *,
    padding: int = 4,
    cutout_size: int = 16,
    randaugment_ops: int = 2,
    randaugment_magnitude: int = 9,
) -> Augmentation:
    """The augmentation that `data.augment=word` means.

    All but "none" and IDBH begin with crop and flip; what they are is said at the functions that they are made of.

    Args:
        word: one of `WORDS`.
        padding: zero pixels on each side before the crop.
        cutout_size: side of the hidden square, in pixels.
        randaugment_ops: operations per image (the paper's N).
        randaugment_magnitude: their strength, 0 … 30 (the paper's M).
    """
    crop_flip = partial(placement.random_crop_flip, padding=padding)
    match word:
        case "none":
            return Chain()
        case "crop_flip":
            return Chain((crop_flip,))
        case "cutout":
            return Chain((crop_flip, partial(placement.cutout, size=cutout_size)))
    from advtrain.data.augmentations import policies  # and torchvision, which takes a second

    match word:
        case "autoaugment":
            return Chain((crop_flip, policies.auto_augment))
        case "randaugment":
            draw = partial(policies.rand_augment, ops=randaugment_ops, magnitude=randaugment_magnitude)
            return Chain((crop_flip, draw))
        case "trivialaugment":
            return Chain((crop_flip, policies.trivial_augment))
        case "idbh_weak" | "idbh_strong":
            # Li & Spratling, ICLR 2023, arXiv:2301.09879: the two settings for CIFAR-10 of the published code.
            erasing = partial(placement.random_erasing, probability=0.5 if word == "idbh_weak" else 1.0)
            return Chain((placement.random_flip, placement.crop_shift, policies.color_shape, erasing))
    raise ValueError(f"expected one of {', '.join(WORDS)}, got {word!r}")
