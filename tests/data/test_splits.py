"""The held-out split, subsets for evaluation, and what importing the interface costs."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from advtrain.data import CIFAR100, Digits
from advtrain.data.arrays import whole
from advtrain.data.base import evaluation_batches, fewer, held_out, subset_indices
from advtrain.types import SettingError


def labels_of(*counts: int) -> Tensor:
    """Shuffled labels, so many of each class."""
    labels = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
    return labels[torch.randperm(len(labels), generator=torch.Generator().manual_seed(5))]


@pytest.mark.parametrize("counts", [(50, 50, 50, 50), (90, 50, 7, 1), (3, 0, 200)])
@pytest.mark.parametrize("size", [1, 17, 40])
def test_held_out_images_are_a_proportional_part(counts: tuple[int, ...], size: int) -> None:
    labels = labels_of(*counts)
    kept, held = held_out(labels, size, split_seed=0)

    assert len(held) == size
    assert torch.equal(torch.cat([kept, held]).sort().values, torch.arange(len(labels)))
    quota = torch.tensor(counts) * size / len(labels)
    assert ((labels[held].bincount(minlength=len(counts)) - quota).abs() <= 1).all()


def test_the_only_image_of_a_class_stays_in_training() -> None:
    labels = labels_of(99, 1)
    assert 1 in labels[held_out(labels, 20, split_seed=0)[0]]


def test_the_split_seed_chooses_the_held_out_images() -> None:
    labels = labels_of(50, 50, 50, 50)
    choices = [held_out(labels, 40, seed)[1].tolist() for seed in (0, 0, 1)]
    assert choices[0] == choices[1] != choices[2]

    often = torch.zeros(200)
    for seed in range(300):
        often[held_out(labels, 40, seed)[1]] += 1
    assert often.min() > 300 * 0.2 - 5 * 7 and often.max() < 300 * 0.2 + 5 * 7  # binomial: 60 ± 5 · 6.9


@pytest.mark.parametrize("size", [0, 200, 201])
def test_a_split_with_nothing_on_one_side_is_refused(size: int) -> None:
    with pytest.raises(SettingError, match=r"data.validation_size: expected 1 to 199"):
        held_out(labels_of(100, 100), size, 0)


@pytest.mark.parametrize("counts", [(50, 50, 50, 50), (90, 50, 7, 1)])
def test_fewer_training_images_are_a_proportional_part(counts: tuple[int, ...]) -> None:
    labels = labels_of(*counts)
    some, more = fewer(labels, 40, split_seed=0), fewer(labels, 90, split_seed=0)
    quota = torch.tensor(counts) * 40 / len(labels)
    assert len(some) == 40 and ((labels[some].bincount(minlength=len(counts)) - quota).abs() <= 1).all()
    assert set(some.tolist()) < set(more.tolist()) and some.tolist() == sorted(some.tolist())
    assert fewer(labels, 40, 1).tolist() != some.tolist()
    for size in (None, len(labels)):
        assert torch.equal(fewer(labels, size, 0), torch.arange(len(labels)))
    with pytest.raises(SettingError, match=rf"data.train_size: expected at most the {len(labels)} training images"):
        fewer(labels, len(labels) + 1, 0)


def test_fewer_training_images_leave_the_other_splits_alone() -> None:
    whole, part = Digits(), Digits(train_size=200)
    assert len(part.split("train")) == 200
    for name in ("validation", "test"):
        assert torch.equal(part.split(name).members, whole.split(name).members)
    assert set(part.split("train").members.tolist()) < set(whole.split("train").members.tolist())


def test_fewer_of_a_long_tail_keep_its_shape(real_data: Path) -> None:
    counts = [
        CIFAR100(root=str(real_data), download=False, imbalance=10, train_size=size).split("train").labels.bincount()
        for size in (None, 5000)
    ]
    assert counts[1].sum() == 5000
    assert ((counts[1] - counts[0] * (5000 / counts[0].sum())).abs() <= 1).all()


def test_a_subset_is_the_first_images_unless_the_set_is_sorted_by_class() -> None:
    assert subset_indices(torch.tensor([2, 0, 1, 2, 0, 1]), 3).tolist() == [0, 1, 2]
    by_class = torch.arange(4).repeat_interleave(6)
    assert by_class[subset_indices(by_class, 8)].bincount().tolist() == [2, 2, 2, 2]
    assert len(subset_indices(by_class, 7).unique()) == 7


@pytest.mark.parametrize("n_examples", [None, 24, 25])
def test_the_whole_split_in_order_when_nothing_less_is_wanted(n_examples: int | None) -> None:
    assert torch.equal(subset_indices(torch.arange(4).repeat_interleave(6), n_examples), torch.arange(24))


def test_evaluation_sees_every_image_once_and_in_order() -> None:
    images = torch.arange(11, dtype=torch.uint8).view(11, 1, 1, 1).expand(11, 2, 3, 3)
    split = whole(images, labels_of(5, 6))
    batches = list(evaluation_batches(split, 4, "cpu"))

    assert [len(y) for _, y in batches] == [4, 4, 3]
    assert torch.equal(torch.cat([y for _, y in batches]), split.labels)
    x = torch.cat([x for x, _ in batches])
    assert x.dtype == torch.float32 and x.is_contiguous()
    assert torch.equal(x[:, 0, 0, 0], torch.arange(11) / 255)
    assert [len(y) for _, y in evaluation_batches(split, 4, "cpu", n_examples=5)] == [4, 1]


def test_the_interface_imports_no_dataset_library() -> None:
    code = "import sys, advtrain.data, advtrain.data.base; print({'torchvision', 'sklearn', 'PIL'} & {*sys.modules})"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "set()"


def test_an_unknown_dataset_is_an_attribute_error() -> None:
    import advtrain.data

    with pytest.raises(AttributeError, match="MNIST"):
        _ = advtrain.data.MNIST
