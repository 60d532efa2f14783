"""The operations that policies choose from, computed by torchvision's tensor kernels for whole batches.

An operation is a name and the value that torchvision's function takes (degrees, pixels, a factor, bits, a threshold).
Which value a level of a policy means is a `Space`. Images that drew the same operation are computed together; each
result is the one of `torchvision.transforms.v2` on that image alone, bit for bit.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as F

Operation = tuple[str, float]

WITHOUT_VALUE = ("identity", "auto_contrast", "equalize", "invert")
COMMON = (  # to all policies
    "shear_x",
    "shear_y",
    "translate_x",
    "translate_y",
    "rotate",
    "brightness",
    "color",
    "contrast",
    "sharpness",
    "posterize",
    "solarize",
    "auto_contrast",
    "equalize",
)


@dataclass(frozen=True)
class Space:
    """What the highest level of each operation is.

    Attributes:
        shear: pixels of shift per pixel.
        translate: pixels; None for 150/331 of the image's side.
        rotate: degrees.
        enhance: by how much the factor of brightness, color, contrast and sharpness differs from 1.
        posterize: bits that are dropped.
    """

    shear: float
    translate: float | None
    rotate: float
    enhance: float
    posterize: int


STANDARD = Space(shear=0.3, translate=None, rotate=30.0, enhance=0.9, posterize=4)  # AutoAugment and RandAugment
WIDE = Space(shear=0.99, translate=32.0, rotate=135.0, enhance=0.99, posterize=6)  # TrivialAugment


@cache
def operation(space: Space, name: str, level: int, levels: int, negative: bool, size: tuple[int, int]) -> Operation:
    """The operation `name` at `level` of 0 … `levels` - 1.

    Args:
        space: what the highest level means.
        name: of the operation.
        level, levels: the place on the scale and its length.
        negative: whether a movement goes the other way, or a factor is below 1; no matter for other operations.
        size: (height, width) of the images.
    """
    if name in WITHOUT_VALUE:
        return name, 0.0
    if name == "posterize":
        return name, float((8 - torch.arange(levels) / ((levels - 1) / space.posterize)).round()[level])
    if name == "solarize":
        return name, 255 * float(torch.linspace(1, 0, levels)[level])
    kind, _, axis = name.partition("_")
    highest = {"shear": space.shear, "translate": space.translate, "rotate": space.rotate}.get(kind, space.enhance)
    if highest is None:
        highest = 150 / 331 * size[1 if axis == "x" else 0]
    magnitude = float(torch.linspace(0, highest, levels)[level]) * (-1 if negative else 1)
    match kind:
        case "shear":
            return name, math.degrees(math.atan(magnitude))
        case "translate":
            return name, float(int(magnitude))
        case "rotate":
            return name, magnitude
    return name, 1 + magnitude


def apply(images: Tensor, name: str, value: float) -> Tensor:
    """One operation on all images (uint8, shape (n, c, h, w), c = 1 or 3). What comes into view is black.

    The color operation leaves grey images as they are. The two shears of policies keep the upper left corner in place,
    "centre_shear_x" and "centre_shear_y" the centre.
    """
    match name:
        case "identity":
            return images
        case "shear_x" | "shear_y":
            return _affine(images, shear=_along(name, value), center=[0, 0])
        case "centre_shear_x" | "centre_shear_y":
            return _affine(images, shear=_along(name, value))
        case "translate_x" | "translate_y":
            return _affine(images, translate=_along(name, int(value)))
        case "rotate":
            return F.rotate(images, angle=value)
        case "brightness":
            return F.adjust_brightness(images, brightness_factor=value)
        case "color":
            return F.adjust_saturation(images, saturation_factor=value)
        case "contrast":
            return F.adjust_contrast(images, contrast_factor=value)
        case "sharpness":
            return F.adjust_sharpness(images, sharpness_factor=value)
        case "posterize":
            return F.posterize(images, bits=int(value))
        case "solarize":
            return F.solarize(images, threshold=value)
        case "auto_contrast":
            return F.autocontrast(images)
        case "equalize":
            return F.equalize(images)
        case "invert":
            return F.invert(images)
    raise ValueError(f"expected the name of an operation, got {name!r}")


def apply_each(images: Tensor, operations: Sequence[Operation]) -> Tensor:
    """Applies operation i to image i; uint8 of the same shape, contiguous. The images that are given stay unchanged."""
    members: dict[Operation, list[int]] = {}
    for i, drawn in enumerate(operations):
        members.setdefault(drawn, []).append(i)
    result = images.clone(memory_format=torch.contiguous_format)
    for (name, value), rows in members.items():
        if name != "identity":
            index = torch.tensor(rows).to(images.device, non_blocking=True)
            result[index] = apply(images[index], name, value)
    return result


def _along(name: str, value: float) -> list[float]:
    return [value, 0] if name.endswith("_x") else [0, value]


def _affine(
    images: Tensor,
    translate: Sequence[float] = (0, 0),
    shear: Sequence[float] = (0.0, 0.0),
    center: list[float] | None = None,
) -> Tensor:
    return F.affine(images, angle=0.0, translate=[*translate], scale=1.0, shear=[*shear], center=center)
