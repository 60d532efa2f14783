"""What holds for every word of data.augment."""

import pytest
import torch
from torch import Tensor

from advtrain.data.augmentations import WORDS, augmentation
from advtrain.random import BatchRows, seeded_generator


def random_images(n: int, channels: int = 3, side: int = 12) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (n, channels, side, side), dtype=torch.uint8, generator=generator)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("word", WORDS)
def test_the_division_of_a_batch_changes_no_pixel(word: str, channels: int) -> None:
    images, augment = random_images(24, channels), augmentation(word, padding=2, cutout_size=4)
    whole = augment(images, seeded_generator(0, word))
    for rows in (slice(0, 12), slice(12, 24), slice(5, 6)):
        source = BatchRows(seeded_generator(0, word), 24, rows)
        assert torch.equal(augment(images[rows], source), whole[rows])


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("word", WORDS)
def test_images_come_out_as_they_went_in(word: str, layout: torch.memory_format) -> None:
    plain = random_images(40)
    images, state = plain.to(memory_format=layout), torch.get_rng_state()
    augmented = augmentation(word, cutout_size=4)(images, seeded_generator(0))

    assert (augmented.shape, augmented.dtype) == (images.shape, torch.uint8)
    assert word == "none" or augmented.is_contiguous()
    assert torch.equal(images, plain)  # what was given is as it was
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(augmented, plain) == (word == "none")
    assert torch.equal(augmented, augmentation(word, cutout_size=4)(plain, seeded_generator(0)))  # the layout is none


@pytest.mark.parametrize("word", [word for word in WORDS if word not in ("none", "idbh_weak", "idbh_strong")])
def test_every_other_word_begins_with_crop_and_flip(word: str) -> None:
    """The first draws are those of crop_flip, so images that a policy leaves alone are equal; none is by chance."""
    images = random_images(400)
    plain = augmentation("crop_flip", padding=3)(images, seeded_generator(0))
    other = augmentation(word, padding=3, cutout_size=1)(images, seeded_generator(0))
    same = (plain == other).flatten(1).float().mean(1)
    assert (same > 0.98).sum() > (350 if word in ("crop_flip", "cutout") else 3)


def test_numbers_reach_what_they_are_for() -> None:
    images = torch.full((50, 1, 16, 16), 200, dtype=torch.uint8)
    for size in (3, 6):
        hidden = (augmentation("cutout", padding=0, cutout_size=size)(images, seeded_generator(0)) == 0).sum((1, 2, 3))
        assert hidden.max() == size**2
    padded = augmentation("crop_flip", padding=5)(images, seeded_generator(0))
    assert (padded == 0).any(3).sum((1, 2)).max() >= 5
    strong = augmentation("randaugment", padding=0, randaugment_ops=4, randaugment_magnitude=30)
    weak = augmentation("randaugment", padding=0, randaugment_ops=1, randaugment_magnitude=1)
    change = [(augment(random_images(200), seeded_generator(0)) != random_images(200)) for augment in (weak, strong)]
    assert change[1].float().mean() > 1.5 * change[0].float().mean()


def test_weak_idbh_erases_half_and_strong_all() -> None:
    images = torch.full((2000, 1, 16, 16), 255, dtype=torch.uint8)
    weak, strong = (augmentation(f"idbh_{word}")(images, seeded_generator(0)) for word in ("weak", "strong"))
    same = (weak == strong).flatten(1).all(1).float().mean().item()
    assert same == pytest.approx(0.5, abs=4 * 0.5 / 2000**0.5 + 0.02)  # a few rectangles fall on black


def test_an_unknown_word_is_refused() -> None:
    with pytest.raises(ValueError, match="expected one of none, crop_flip"):
        augmentation("autoagument")


@pytest.mark.gpu
@pytest.mark.parametrize("word", WORDS)
def test_a_gpu_draws_the_same(word: str) -> None:
    """Rounding may move a few pixels of torchvision's kernels to the next level, or to their neighbour's; places,
    choices and rectangles may not differ: one image of 64 that is another has 1.5 % of all pixels."""
    images, augment = random_images(64), augmentation(word, padding=2, cutout_size=4)
    on_gpu = augment(images.cuda(), seeded_generator(0))
    on_cpu = augment(images, seeded_generator(0))
    assert on_gpu.is_cuda
    apart = (on_gpu.cpu().int() - on_cpu.int()).abs()
    if "augment" in word or "idbh" in word:
        assert (apart > 1).float().mean() < 4e-3
        assert (apart > 0).float().mean() < 2e-2
    else:
        assert not apart.any()
