"""Policies: which operations each image of a batch gets.

AutoAugment, RandAugment and TrivialAugment have the distribution of the classes of the same names in
`torchvision.transforms.v2`; torchvision's numbers are followed where they differ from the papers' (nearest pixels, and
black where an image is moved away).
"""

import math

from torch import Tensor

from advtrain.data.augmentations import operations
from advtrain.data.augmentations.operations import COMMON, STANDARD, WIDE, Operation
from advtrain.data.augmentations.placement import draws
from advtrain.random import Source

LEVELS = 31  # of RandAugment and TrivialAugment
POLICY_LEVELS = 10  # of AutoAugment

# AutoAugment's policy for CIFAR-10 (arXiv:1805.09501, appendix): pairs of (operation, probability, level).
CIFAR_POLICY = (
    (("invert", 0.1, 0), ("contrast", 0.2, 6)),
    (("rotate", 0.7, 2), ("translate_x", 0.3, 9)),
    (("sharpness", 0.8, 1), ("sharpness", 0.9, 3)),
    (("shear_y", 0.5, 8), ("translate_y", 0.7, 9)),
    (("auto_contrast", 0.5, 0), ("equalize", 0.9, 0)),
    (("shear_y", 0.2, 7), ("posterize", 0.3, 7)),
    (("color", 0.4, 3), ("brightness", 0.6, 7)),
    (("sharpness", 0.3, 9), ("brightness", 0.7, 9)),
    (("equalize", 0.6, 0), ("equalize", 0.5, 0)),
    (("contrast", 0.6, 7), ("sharpness", 0.6, 5)),
    (("color", 0.7, 7), ("translate_x", 0.5, 8)),
    (("equalize", 0.3, 0), ("auto_contrast", 0.4, 0)),
    (("translate_y", 0.4, 3), ("sharpness", 0.2, 6)),
    (("brightness", 0.9, 6), ("color", 0.2, 8)),
    (("solarize", 0.5, 2), ("invert", 0.0, 0)),
    (("equalize", 0.2, 0), ("auto_contrast", 0.6, 0)),
    (("equalize", 0.2, 0), ("equalize", 0.6, 0)),
    (("color", 0.9, 9), ("equalize", 0.6, 0)),
    (("auto_contrast", 0.8, 0), ("solarize", 0.2, 8)),
    (("brightness", 0.1, 3), ("color", 0.7, 0)),
    (("solarize", 0.4, 5), ("auto_contrast", 0.9, 0)),
    (("translate_y", 0.9, 9), ("translate_y", 0.7, 9)),
    (("auto_contrast", 0.9, 0), ("solarize", 0.8, 3)),
    (("equalize", 0.8, 0), ("invert", 0.1, 0)),
    (("translate_y", 0.7, 9), ("auto_contrast", 0.9, 0)),
)

# IDBH's color-biased ColorShape for CIFAR (arXiv:2301.09879 and its published code): each with probability 1/8; the
# range of its factor, or of its angle in radians (shear) or whole degrees (rotate).
COLOR_SHAPE = (
    ("color", 0.1, 1.9),
    ("brightness", 0.5, 1.9),
    ("contrast", 0.5, 1.9),
    ("sharpness", 0.1, 1.9),
    ("auto_contrast", 0.0, 0.0),
    ("equalize", 0.0, 0.0),
    ("shear", 0.05, 0.15),
    ("rotate", 1.0, 11.0),
)
RADIAN = math.degrees(1)


def auto_augment(images: Tensor, source: Source = None) -> Tensor:
    """AutoAugment with the policy for CIFAR-10 (Cubuk et al., arXiv:1805.09501).

    Each image draws one of 25 pairs; each operation of the pair happens with its own probability, at its own level.

    Args:
        images: uint8, shape (n, c, h, w), c = 1 or 3.
        source: of five draws per image.

    Returns:
        uint8 images of the same shape and device, contiguous.
    """
    size = _size(images)
    drawn = draws(len(images), 5, source).tolist()
    for place in (0, 1):
        chosen = []
        for pair, *rest in drawn:
            name, probability, level = CIFAR_POLICY[int(pair * len(CIFAR_POLICY))][place]
            happens, sign = rest[2 * place : 2 * place + 2]
            word = name if happens < probability else "identity"
            chosen.append(operations.operation(STANDARD, word, level, POLICY_LEVELS, sign < 0.5, size))
        images = operations.apply_each(images, chosen)
    return images


def rand_augment(images: Tensor, source: Source = None, *, ops: int, magnitude: int) -> Tensor:
    """RandAugment (Cubuk et al., arXiv:1909.13719): `ops` operations, each any of 14, all at one level.

    Args:
        images: uint8, shape (n, c, h, w), c = 1 or 3.
        source: of 2·ops draws per image.
        ops: operations per image (N).
        magnitude: their level, 0 … 30 (M).
    """
    names, size = ("identity", *COMMON), _size(images)
    drawn = draws(len(images), 2 * ops, source).view(len(images), ops, 2).tolist()
    for place in range(ops):
        chosen = [
            operations.operation(STANDARD, names[int(kind * len(names))], magnitude, LEVELS, sign < 0.5, size)
            for kind, sign in (row[place] for row in drawn)
        ]
        images = operations.apply_each(images, chosen)
    return images


def trivial_augment(images: Tensor, source: Source = None) -> Tensor:
    """TrivialAugment, wide (Müller & Hutter, arXiv:2103.10158): one operation, any of 14, at any of 31 levels.

    Args:
        images: uint8, shape (n, c, h, w), c = 1 or 3.
        source: of three draws per image.
    """
    names, size = ("identity", *COMMON), _size(images)
    chosen = [
        operations.operation(WIDE, names[int(kind * len(names))], int(level * LEVELS), LEVELS, sign < 0.5, size)
        for kind, level, sign in draws(len(images), 3, source).tolist()
    ]
    return operations.apply_each(images, chosen)


def color_shape(images: Tensor, source: Source = None) -> Tensor:
    """The color-biased ColorShape of IDBH (Li & Spratling, ICLR 2023, arXiv:2301.09879): one of eight operations.

    Args:
        images: uint8, shape (n, c, h, w), c = 1 or 3.
        source: of four draws per image.
    """
    chosen: list[Operation] = []
    for kind, strength, sign, axis in draws(len(images), 4, source).tolist():
        name, low, high = COLOR_SHAPE[int(kind * len(COLOR_SHAPE))]
        value = low + strength * (high - low)
        way = -1 if sign < 0.5 else 1
        match name:
            case "shear":
                chosen.append(("centre_shear_x" if axis < 0.5 else "centre_shear_y", way * value * RADIAN))
            case "rotate":
                chosen.append((name, float(way * int(value))))
            case _:
                chosen.append((name, value))
    return operations.apply_each(images, chosen)


def _size(images: Tensor) -> tuple[int, int]:
    height, width = images.shape[-2:]
    return height, width
