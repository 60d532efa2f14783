"""Images and labels that no data set is needed for."""

import torch
import torch.nn.functional as F
from torch import Tensor

from advtrain.random import seeded_generator


def image_like(n: int, side: int, seed: int) -> Tensor:
    """Images of shape (n, 3, side, side) in [0, 1] with most of their contrast in low frequencies, as photographs have.

    A coarse random pattern, enlarged smoothly, with a little noise: neither constant nor white, so that activations and
    gradients are spread as on real images. The times do not depend on it.
    """
    generator = seeded_generator(seed, "images")
    coarse = torch.rand(n, 3, max(side // 8, 2), max(side // 8, 2), generator=generator)
    smooth = F.interpolate(coarse, (side, side), mode="bicubic", align_corners=False)
    return (smooth + 0.05 * torch.randn(n, 3, side, side, generator=generator)).clamp(0, 1)


def labels(n: int, classes: int, seed: int) -> Tensor:
    """Random labels of shape (n,)."""
    return torch.randint(0, classes, (n,), generator=seeded_generator(seed, "labels"))


def as_bytes(images: Tensor) -> Tensor:
    """As uint8, the way data sets keep them."""
    return (images * 255).round().to(torch.uint8)
