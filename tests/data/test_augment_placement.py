"""Cutout, CropShift and erasing against slow references that enumerate or draw one image at a time."""

from collections import defaultdict

import numpy as np
import pytest
import torch
from torch import Tensor
from torchvision.transforms import v2

from advtrain.data.augmentations.placement import crop_shift, cutout, random_erasing, random_flip
from tests.data.distributions import SIGNIFICANCE, counted, p_of_distribution, p_of_same_source


def distinct_pixels(*shape: int) -> Tensor:
    """An image without two equal pixels, none of them black."""
    return (
        (torch.randperm(255, generator=torch.Generator().manual_seed(1))[: int(np.prod(shape))] + 1)
        .to(torch.uint8)
        .view(shape)
    )


def outcomes(augment, image: Tensor, n: int, **settings) -> dict[bytes, int]:
    images = image.expand(n, -1, -1, -1)
    return counted(augment(images, torch.Generator().manual_seed(0), **settings))


def test_cutout_hides_a_square_around_any_pixel() -> None:
    image = distinct_pixels(2, 5, 6)
    for size in (1, 2, 3, 4):
        probabilities: dict[bytes, float] = defaultdict(float)
        for row in range(5):
            for column in range(6):
                hidden = image.clone()
                top, left = row - size // 2, column - size // 2
                hidden[:, max(0, top) : max(0, top + size), max(0, left) : max(0, left + size)] = 0
                probabilities[hidden.numpy().tobytes()] += 1 / 30
        assert p_of_distribution(outcomes(cutout, image, 3000, size=size), probabilities) > SIGNIFICANCE, size


def test_crop_shift_keeps_a_part_and_puts_it_anywhere() -> None:
    """The published description, enumerated: cut out, pad on all sides by what was cut off, cut back to size."""
    image, largest = distinct_pixels(1, 4, 5), 3
    probabilities: dict[bytes, float] = defaultdict(float)
    for lacking in range(largest + 1):
        for x in range(lacking + 1):
            y = lacking - x
            places = [(a, b) for a in range(y + 1) for b in range(x + 1)]
            for top, left in places:
                part = image[:, top : top + 4 - y, left : left + 5 - x].numpy()
                padded = np.pad(part, ((0, 0), (y, y), (x, x)))
                for a, b in places:
                    outcome = np.ascontiguousarray(padded[:, a : a + 4, b : b + 5]).tobytes()
                    probabilities[outcome] += 1 / (largest + 1) / (lacking + 1) / len(places) ** 2
    assert sum(probabilities.values()) == pytest.approx(1)
    assert p_of_distribution(outcomes(crop_shift, image, 20000, largest=largest), probabilities) > SIGNIFICANCE


def test_erasing_has_torchvisions_distribution() -> None:
    """On 9 × 5 pixels many rectangles do not fit and are drawn anew."""
    image = distinct_pixels(1, 9, 5)
    for settings in ({"probability": 0.5}, {"probability": 1.0, "scale": (0.1, 0.9)}):
        official = v2.RandomErasing(settings["probability"], settings.get("scale", (0.02, 0.33)))
        torch.manual_seed(0)
        expected = counted(torch.stack([official(image) for _ in range(1500)]))
        assert p_of_same_source(outcomes(random_erasing, image, 1500, **settings), expected) > SIGNIFICANCE


def test_half_of_the_images_are_flipped() -> None:
    image = distinct_pixels(3, 4, 4)
    both = {view.contiguous().numpy().tobytes(): 0.5 for view in (image, image.flip(2))}
    assert p_of_distribution(outcomes(random_flip, image, 2000), both) > SIGNIFICANCE
