"""Augmentations that move, mirror or hide parts of images, by index arithmetic on whole batches."""

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from advtrain.random import Source, uniform_like

CROP_SHIFT = 10  # pixels, of IDBH on CIFAR-10
ERASING_TRIES = 10  # as in torchvision: a rectangle that does not fit is drawn anew so often


def draws(n: int, per_image: int, source: Source) -> Tensor:
    """Uniform draws from [0, 1), float32, shape (n, per_image), on the CPU so that every device sees the same."""
    return uniform_like(torch.empty(n, per_image), 0, 1, source)


def random_crop_flip(images: Tensor, source: Source = None, *, padding: int) -> Tensor:
    """Zero-pads, crops back to size at a random place and flips half of the images left to right.

    Args:
        images: uint8, shape (n, c, h, w).
        source: of three draws per image.
        padding: pixels added on each side, so that there are (2·padding + 1)² places.

    Returns:
        uint8 images of the same shape and device, contiguous.
    """
    n, channels, height, width = images.shape
    drawn = draws(n, 3, source).to(images.device, non_blocking=True)
    top, left = (drawn[:, :2] * (2 * padding + 1)).long().unbind(1)
    across = torch.arange(width, device=images.device)
    across = torch.where(drawn[:, 2:] < 0.5, across.flip(0), across)
    rows = top[:, None] + torch.arange(height, device=images.device)
    columns = left[:, None] + across
    # One gather: where in the padded image each pixel comes from, the same for all channels.
    places = (rows[:, :, None] * (width + 2 * padding) + columns[:, None, :]).flatten(1)
    padded = F.pad(images, (padding,) * 4).flatten(2)
    return padded.gather(2, places[:, None].expand(-1, channels, -1)).view(images.shape)


def random_flip(images: Tensor, source: Source = None) -> Tensor:
    """Flips half of the images left to right. One draw per image; shapes as in `random_crop_flip`."""
    flipped = draws(len(images), 1, source).to(images.device, non_blocking=True) < 0.5
    return torch.where(flipped[:, :, None, None], images.flip(-1), images).contiguous()


def cutout(images: Tensor, source: Source = None, *, size: int) -> Tensor:
    """Blackens a square whose centre is any pixel with the same probability; what is outside of the image is lost.

    DeVries & Taylor, arXiv:1708.04552. The paper hides with the mean of the data, which is 0 after its normalisation;
    here, where pixels are in [0, 1] and models normalise, it is black, as in later work on adversarial training.

    Args:
        images: uint8, shape (n, c, h, w).
        source: of two draws per image.
        size: side of the square, in pixels.
    """
    sides = torch.tensor(images.shape[-2:])
    top, left = ((draws(len(images), 2, source) * sides).long() - size // 2).unbind(1)
    extent = torch.full_like(top, size)
    return _hidden(images, top, left, extent, extent)


def crop_shift(images: Tensor, source: Source = None, *, largest: int = CROP_SHIFT) -> Tensor:
    """Keeps a random part of each image and puts it at a random place on black: IDBH's CropShift.

    The part lacks s = 0 … `largest` pixels, some of its width and the rest of its height (Li & Spratling, ICLR 2023,
    arXiv:2301.09879, section 4; s and its division are uniform as in the published code, and so are both places).

    Args:
        images: uint8, shape (n, c, h, w), sides longer than `largest`.
        source: of six draws per image.
        largest: pixels that are lacking at most.
    """
    n, channels, height, width = images.shape
    drawn = draws(n, 6, source)
    lacking = (drawn[:, 0] * (largest + 1)).long()
    fewer_columns = (drawn[:, 1] * (lacking + 1)).long()
    fewer = torch.stack([lacking - fewer_columns, fewer_columns], 1)  # of (rows, columns)
    taken, put = ((drawn[:, 2:].view(n, 2, 2) * (fewer[:, None] + 1)).long()).unbind(1)  # from and to (row, column)
    fewer, taken, put = (offsets.to(images.device, non_blocking=True) for offsets in (fewer, taken, put))
    rows, inside_rows = _shifted(height, taken[:, 0], put[:, 0], fewer[:, 0])
    columns, inside_columns = _shifted(width, taken[:, 1], put[:, 1], fewer[:, 1])
    places = (rows[:, :, None] * width + columns[:, None, :]).flatten(1)
    moved = images.flatten(2).gather(2, places[:, None].expand(-1, channels, -1)).view(images.shape)
    inside = inside_rows[:, :, None] & inside_columns[:, None, :]
    return moved.masked_fill_(~inside[:, None], 0)


def _shifted(side: int, taken: Tensor, put: Tensor, fewer: Tensor) -> tuple[Tensor, Tensor]:
    """For each of n images and each of `side` places: where its pixel comes from, and whether there is one."""
    offsets = torch.arange(side, device=put.device) - put[:, None]
    inside = (offsets >= 0) & (offsets < side - fewer[:, None])
    return (offsets + taken[:, None]).clamp_(0, side - 1), inside


def random_erasing(
    images: Tensor,
    source: Source = None,
    *,
    probability: float,
    scale: tuple[float, float] = (0.02, 0.33),
    ratio: tuple[float, float] = (0.3, 3.3),
) -> Tensor:
    """Blackens a random rectangle in some of the images: `torchvision.transforms.v2.RandomErasing` with value 0.

    Zhong et al., arXiv:1708.04896.

    Args:
        images: uint8, shape (n, c, h, w).
        source: of 23 draws per image.
        probability: that an image is changed.
        scale: range of the rectangle's share of the area, uniform.
        ratio: range of its height over its width, uniform in the logarithm.
    """
    n, (height, width) = len(images), images.shape[-2:]
    drawn = draws(n, 2 * ERASING_TRIES + 3, source).double()
    share, logarithm = drawn[:, 3:].view(n, 2, ERASING_TRIES).unbind(1)
    area = height * width * (scale[0] + share * (scale[1] - scale[0]))
    aspect = (math.log(ratio[0]) + logarithm * (math.log(ratio[1]) - math.log(ratio[0]))).exp()
    tall, wide = (area * aspect).sqrt().round().long(), (area / aspect).sqrt().round().long()
    fits = (tall < height) & (wide < width)
    first = fits.int().argmax(1, keepdim=True)  # the first 1
    tall, wide = tall.gather(1, first)[:, 0], wide.gather(1, first)[:, 0]
    erased = fits.any(1) & (drawn[:, 0] < probability)
    top = (drawn[:, 1] * (height - tall + 1)).long()
    left = (drawn[:, 2] * (width - wide + 1)).long()
    return _hidden(images, top, left, tall * erased, wide)


def _hidden(images: Tensor, top: Tensor, left: Tensor, tall: Tensor, wide: Tensor) -> Tensor:
    """The images with a black rectangle each; the part of it that is outside does not matter."""
    corners = torch.stack([top, left, top + tall, left + wide]).to(images.device, non_blocking=True)
    top, left, bottom, right = corners[:, :, None]
    rows = torch.arange(images.shape[-2], device=images.device)
    columns = torch.arange(images.shape[-1], device=images.device)
    hidden_rows = (rows >= top) & (rows < bottom)
    hidden_columns = (columns >= left) & (columns < right)
    return images.contiguous().masked_fill((hidden_rows[:, :, None] & hidden_columns[:, None, :])[:, None], 0)
