"""Crop and flip against a per-image loop that knows nothing of how the draws are made."""

import numpy as np
import pytest
import torch
from torch import Tensor

from advtrain.data.augmentations.placement import random_crop_flip

SHAPE = (3, 5, 7)


def every_outcome(image: np.ndarray, padding: int) -> dict[tuple[int, int, bool], np.ndarray]:
    """All crops of one zero-padded image, each as it is and mirrored, by (top, left, flipped)."""
    channels, height, width = image.shape
    padded = np.zeros((channels, height + 2 * padding, width + 2 * padding), np.uint8)
    padded[:, padding : padding + height, padding : padding + width] = image
    outcomes = {}
    for top in range(2 * padding + 1):
        for left in range(2 * padding + 1):
            crop = padded[:, top : top + height, left : left + width]
            outcomes[top, left, False] = crop
            outcomes[top, left, True] = crop[:, :, ::-1]
    return outcomes


def distinct_pixels(n: int) -> Tensor:
    """n images in which no two pixels are equal."""
    one = torch.randperm(255, generator=torch.Generator().manual_seed(1))[: np.prod(SHAPE)] + 1
    return one.to(torch.uint8).view(1, *SHAPE).repeat(n, 1, 1, 1)


def outcome_counts(n: int, padding: int) -> dict[tuple[int, int, bool], int]:
    images = distinct_pixels(n)
    outcomes = {crop.tobytes(): key for key, crop in every_outcome(images[0].numpy(), padding).items()}
    augmented = random_crop_flip(images, torch.Generator().manual_seed(0), padding=padding)
    counts = dict.fromkeys(outcomes.values(), 0)
    for image in augmented.numpy():
        counts[outcomes[image.tobytes()]] += 1  # a KeyError: not a crop of the padded image
    return counts


@pytest.mark.parametrize("padding", [0, 1, 2])
def test_every_place_and_flip_is_as_likely_as_any_other(padding: int) -> None:
    outcomes = 2 * (2 * padding + 1) ** 2
    expected = 200
    counts = np.array(list(outcome_counts(expected * outcomes, padding).values()))

    assert len(counts) == outcomes
    chi_square, freedom = ((counts - expected) ** 2 / expected).sum(), outcomes - 1
    assert chi_square < freedom + 4 * np.sqrt(2 * freedom)  # four standard deviations above the mean


def test_places_and_flips_of_neighbouring_images_are_independent() -> None:
    images = distinct_pixels(2)
    outcomes = [crop.tobytes() for crop in every_outcome(images[0].numpy(), 1).values()]
    generator = torch.Generator().manual_seed(0)
    pairs = [random_crop_flip(images, generator, padding=1).numpy() for _ in range(18 * 18 * 10)]
    counts = np.zeros((18, 18))
    for first, second in pairs:
        counts[outcomes.index(first.tobytes()), outcomes.index(second.tobytes())] += 1

    chi_square = ((counts - 10) ** 2 / 10).sum()
    assert chi_square < 323 + 4 * np.sqrt(2 * 323)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_images_are_not_mixed_up(layout: torch.memory_format) -> None:
    images = torch.randint(1, 256, (64, *SHAPE), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    augmented = random_crop_flip(images.to(memory_format=layout), torch.Generator().manual_seed(1), padding=2)

    assert augmented.dtype == torch.uint8 and augmented.is_contiguous()
    for before, after in zip(images.numpy(), augmented.numpy(), strict=True):
        assert any(np.array_equal(after, crop) for crop in every_outcome(before, 2).values())
