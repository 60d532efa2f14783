"""Long-tailed parts of balanced sets: counts as published, the same images for the same seed, held out beforehand."""

from pathlib import Path

import pytest
import torch

from advtrain.data import CIFAR10, CIFAR100
from advtrain.data.cifar import CIFAR
from advtrain.data.long_tail import long_tailed, long_tailed_counts
from advtrain.losses.class_prior import ClassPrior
from advtrain.types import SettingError

# Sizes of CIFAR-LT as the literature quotes them, by (classes, imbalance).
PUBLISHED = {(10, 100): 12406, (10, 50): 13996, (10, 10): 20431, (100, 100): 10847, (100, 50): 12608, (100, 10): 19573}


@pytest.mark.parametrize(("setting", "total"), PUBLISHED.items(), ids=str)
def test_sizes_are_the_published_ones(setting: tuple[int, int], total: int) -> None:
    num_classes, imbalance = setting
    counts = long_tailed_counts(50_000 // num_classes, num_classes, imbalance)
    assert sum(counts) == total
    assert counts[0] == 50_000 // num_classes and counts[-1] == counts[0] // imbalance
    assert counts == sorted(counts, reverse=True)


def test_no_imbalance_is_no_change() -> None:
    assert long_tailed_counts(500, 100, 1.0) == [500] * 100


def test_a_part_holds_the_counts_and_larger_parts_hold_smaller_ones() -> None:
    labels = torch.arange(100).repeat(20) % 4
    parts = [long_tailed(labels, counts, split_seed=3) for counts in ([400, 100, 20, 0], [500, 200, 20, 7])]
    assert labels[parts[0]].bincount(minlength=4).tolist() == [400, 100, 20, 0]
    assert {*parts[0].tolist()} <= {*parts[1].tolist()}
    assert torch.equal(parts[0], parts[0].unique())
    assert torch.equal(parts[0], long_tailed(labels, [400, 100, 20, 0], split_seed=3))
    assert not torch.equal(parts[0], long_tailed(labels, [400, 100, 20, 0], split_seed=4))


@pytest.fixture(params=[CIFAR10, CIFAR100], ids=["cifar10", "cifar100"])
def cifar(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> type[CIFAR]:
    """CIFAR with labels as many as the official ones, and no pixels."""
    made: type[CIFAR] = request.param
    labels = torch.arange(50_000) % made.classes
    monkeypatch.setattr(made, "read", lambda self, train: (torch.zeros(50_000, 3, 1, 1, dtype=torch.uint8), labels))
    return made


def test_the_training_split_is_long_tailed_and_the_others_are_not(cifar: type[CIFAR], tmp_path: Path) -> None:
    plain, tailed = (cifar(root=str(tmp_path), imbalance=imbalance) for imbalance in (1, 100))
    expected = long_tailed_counts(50_000 // cifar.classes, cifar.classes, 100)
    left = 49_000 // cifar.classes  # of each class, when a thousand are held out
    assert tailed.split("train").labels.bincount().tolist() == [min(count, left) for count in expected]
    assert {*tailed.split("train").members.tolist()} <= {*plain.split("train").members.tolist()}
    for name in ("validation", "test"):
        assert torch.equal(tailed.split(name).members, plain.split(name).members)
    assert (len(plain.remarks()), len(tailed.remarks())) == (0, 1)
    assert tailed.remarks()[0] == f"classes of {expected[-1]:,} to {left:,} training images"


def test_an_epoch_counts_the_images_that_are_left(cifar: type[CIFAR], tmp_path: Path) -> None:
    tailed = cifar(root=str(tmp_path), imbalance=100, augment="none")
    loader = tailed.train_loader(batch_size=1000, seed=0)
    assert loader.steps_per_epoch == len(tailed.split("train")) // 1000
    seen = torch.cat([batch.y for batch in loader.epoch(1)])
    assert (seen.bincount(minlength=cifar.classes) <= tailed.split("train").labels.bincount()).all()


@pytest.mark.parametrize("value", [0, 0.5, "many", -10])
def test_an_imbalance_below_one_is_named(value: object) -> None:
    with pytest.raises(SettingError, match=r"^data.imbalance: expected a number of at least 1, got .*; "):
        CIFAR10(imbalance=value)  # pyright: ignore[reportArgumentType]


def test_an_imbalance_that_empties_a_class_is_named() -> None:
    with pytest.raises(SettingError, match=r"^data.imbalance: expected at most 500, .* got 501; "):
        CIFAR100(imbalance=501)
    CIFAR100(imbalance=500)


def test_a_class_prior_lives_with_rare_and_absent_classes() -> None:
    counts = [64, 8, 1, 0]
    labels = torch.arange(4).repeat_interleave(torch.tensor(counts))
    prior = ClassPrior(num_classes=4, temperature=1.0)
    logits = torch.randn(len(labels), 4, generator=torch.Generator().manual_seed(0))
    for rows in torch.randperm(len(labels)).split(16):
        prior.update(logits[rows], labels[rows])
    prior.end_epoch()
    for c, count in enumerate(counts):
        mean = logits[labels == c].double().softmax(1).mean(0) if count else torch.full((4,), 0.25).double()
        assert torch.allclose(prior.weights[c].double(), mean, atol=1e-6)
