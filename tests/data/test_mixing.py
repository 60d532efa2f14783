"""MixUp and CutMix: what they compute, from which distribution, and that all processes see one global batch."""

from typing import Any

import pytest
import torch
from scipy import stats
from torch import Tensor
from torch.nn.functional import one_hot

from advtrain.data.arrays import ArrayLoader, Presentation, whole
from advtrain.data.augmentations import augmentation
from advtrain.data.mixing import Mixing, mixing
from advtrain.types import SettingError

CLASSES = 5


def batch(n: int = 6) -> tuple[Tensor, Tensor]:
    """n images with the one before them in front; neighbours have different labels."""
    x = torch.rand(n + 1, 3, 8, 6, generator=torch.Generator().manual_seed(0))
    return x, torch.arange(n + 1) % CLASSES


def shares(y: Tensor) -> Tensor:
    """λ of every row, from its soft label."""
    return y[torch.arange(len(y)), (torch.arange(len(y)) + 1) % CLASSES]


@pytest.mark.parametrize("word", ["mixup", "cutmix"])
def test_labels_are_mixed_as_images_are(word: str) -> None:
    x, hard = batch()
    for step in range(20):
        mixed, y = Mixing(word, 1.0, CLASSES)(x, hard, 0, 1, step)
        share = shares(y)[0].item()
        assert mixed.shape == x[1:].shape and mixed.min() >= 0 and mixed.max() <= 1
        torch.testing.assert_close(y, share * one_hot(hard[1:], CLASSES) + (1 - share) * one_hot(hard[:-1], CLASSES))
        if word == "mixup":
            torch.testing.assert_close(mixed, share * x[1:] + (1 - share) * x[:-1])
        else:
            own, partner = (mixed == x[1:]).all(1), (mixed == x[:-1]).all(1)
            assert (own ^ partner).all()
            assert own.float().mean((1, 2)).tolist() == pytest.approx([share] * 6)
            rows, columns = partner[0].any(1), partner[0].any(0)
            assert torch.equal(partner, (rows[:, None] & columns).expand_as(partner))  # one rectangle for all


@pytest.mark.parametrize("alpha", [0.2, 1.0])
def test_the_share_has_a_beta_distribution(alpha: float) -> None:
    """Kolmogorov and Smirnov's test; for a new seed it fails with probability 1e-4 though nothing is wrong."""
    x, hard = batch(1)
    mix = Mixing("mixup", alpha, CLASSES)
    found = [shares(mix(x, hard, 0, 1, step)[1])[0].item() for step in range(800)]
    assert stats.kstest(found, stats.beta(alpha, alpha).cdf).pvalue > 1e-4


def test_shares_are_named_by_seed_epoch_and_step_and_the_global_generator_is_left_alone() -> None:
    x, hard = batch()
    mix, state = Mixing("cutmix", 1.0, CLASSES), torch.get_rng_state()
    names = [(0, 1, 2), (0, 1, 3), (0, 2, 2), (1, 1, 2)]
    first = [mix(x, hard, *name)[0] for name in names]
    again = [mix(x, hard, *name)[0] for name in names]
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert len({image.numpy().tobytes() for image in first}) == 4
    assert torch.equal(torch.get_rng_state(), state)


def loader(word: str, **changes: Any) -> ArrayLoader:
    images = torch.randint(0, 256, (50, 3, 6, 6), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    options: dict[str, Any] = {"batch_size": 8, "seed": 0, "rank": 0, "world_size": 1, "device": "cpu", **changes}
    presentation = Presentation(augmentation("crop_flip", padding=2), mixing=mixing(word, 1.0, CLASSES))
    return ArrayLoader(whole(images, torch.arange(50) % CLASSES), presentation=presentation, **options)


@pytest.mark.parametrize("word", ["mixup", "cutmix"])
def test_every_process_mixes_its_rows_of_the_global_batch(word: str) -> None:
    alone = list(loader(word).epoch(2))
    assert alone[0].y.shape == (8, CLASSES) and alone[0].y.dtype == torch.float32
    for world_size in (2, 8):
        ranks = [list(loader(word, rank=rank, world_size=world_size).epoch(2)) for rank in range(world_size)]
        for step, batch in enumerate(alone):
            assert torch.equal(torch.cat([rank[step].x for rank in ranks]), batch.x)
            assert torch.equal(torch.cat([rank[step].y for rank in ranks]), batch.y)


@pytest.mark.parametrize("word", ["mixup", "cutmix"])
def test_partners_are_neighbours_in_the_global_batch(word: str) -> None:
    """Against the same loader without mixing: the slow way, over the whole batch."""
    plain, mixed = list(loader("none").epoch(1)), list(loader(word).epoch(1))
    for step, batch in enumerate(plain):
        x, y = batch.x.roll(1, 0), batch.y.roll(1, 0)
        expected = Mixing(word, 1.0, CLASSES)(torch.cat([x[:1], batch.x]), torch.cat([y[:1], batch.y]), 0, 1, step)
        assert torch.equal(mixed[step].x, expected[0]) and torch.equal(mixed[step].y, expected[1])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("mix", 1.0, 10), "data.mix: expected one of none, mixup, cutmix, got 'mix'"),
        (("mixup", 0, 10), "data.mix_alpha: expected a number above 0, got 0"),
        (("cutmix", 1.0, None), "data.mix=cutmix: expected data.num_classes"),
    ],
)
def test_what_cannot_be_mixed_is_refused(arguments: tuple[Any, ...], message: str) -> None:
    with pytest.raises(SettingError) as caught:
        mixing(*arguments)
    assert str(caught.value).startswith(message)
