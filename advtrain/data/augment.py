"""Augmentations of whole batches of uint8 images."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from advtrain.random import Source, uniform_like

Augmentation = Callable[[Tensor, Source], Tensor]  # uint8 images of shape (n, c, h, w), source of the draws -> the same


def random_crop_flip(images: Tensor, padding: int, source: Source = None) -> Tensor:
    """Zero-pads, crops back to size at a random place and flips half of the images left to right.

    Args:
        images: uint8, shape (n, c, h, w).
        padding: pixels added on each side, so that there are (2·padding + 1)² places.
        source: of the draws, three per image, made on the CPU so that every device sees the same.

    Returns:
        uint8 images of the same shape and device, contiguous.
    """
    n, channels, height, width = images.shape
    draws = uniform_like(torch.empty(n, 3), 0, 1, source).to(images.device, non_blocking=True)
    top, left = (draws[:, :2] * (2 * padding + 1)).long().unbind(1)
    across = torch.arange(width, device=images.device)
    across = torch.where(draws[:, 2:] < 0.5, across.flip(0), across)
    rows = top[:, None] + torch.arange(height, device=images.device)
    columns = left[:, None] + across
    # One gather: where in the padded image each pixel comes from, the same for all channels.
    places = (rows[:, :, None] * (width + 2 * padding) + columns[:, None, :]).flatten(1)
    padded = F.pad(images, (padding,) * 4).flatten(2)
    return padded.gather(2, places[:, None].expand(-1, channels, -1)).view(images.shape)
