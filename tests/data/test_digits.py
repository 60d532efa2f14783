"""The embedded digits against scikit-learn's own arrays."""

from collections import Counter

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from torch import Tensor

from advtrain.data import Digits
from advtrain.types import SettingError

SPLITS = ("train", "validation", "test")


def contents(digits: Digits, name: str) -> tuple[Tensor, Tensor]:
    split = digits.split(name)
    return split.fetch(torch.arange(len(split)), "cpu"), split.labels


def test_the_splits_are_all_of_the_set_and_share_nothing() -> None:
    digits = Digits()
    digits.check()
    assert [len(digits.split(name)) for name in SPLITS] == [1337, 100, 360]

    levels, labels = load_digits(return_X_y=True)
    official = Counter((level.astype(int).tobytes(), int(label)) for level, label in zip(levels, labels, strict=True))
    ours: Counter = Counter()
    for name in SPLITS:
        x, y = contents(digits, name)
        levels = (x[:, 0] * 16).round().long().numpy()
        ours.update((level.tobytes(), int(label)) for level, label in zip(levels, y, strict=True))
    assert ours == official and sum(official.values()) == 1797


def test_pixels_are_grey_levels_to_within_rounding_to_a_byte() -> None:
    x, _ = contents(Digits(), "test")
    assert x.shape == (360, 1, 8, 8) and x.dtype == torch.float32
    assert x.min() == 0 and x.max() == 1
    assert ((x * 16 - (x * 16).round()).abs() <= 16 / 255 / 2 + 1e-6).all()


def test_the_test_split_is_balanced_and_does_not_move_with_the_split_seed() -> None:
    x, y = contents(Digits(), "test")
    shares = np.bincount(load_digits(return_X_y=True)[1]) * 360 / 1797
    assert (np.abs(y.bincount().numpy() - shares) <= 1).all()

    other = Digits(split_seed=1)
    assert torch.equal(contents(other, "test")[0], x)
    assert not torch.equal(contents(other, "validation")[0], contents(Digits(), "validation")[0])


def test_training_and_validation_never_read_the_test_set(monkeypatch: pytest.MonkeyPatch) -> None:
    read, asked = Digits.read, []
    monkeypatch.setattr(Digits, "read", lambda self, train: asked.append(train) or read(self, train))
    digits = Digits()
    list(digits.train_loader(batch_size=64, seed=0).epoch(1))
    digits.split("validation")
    assert asked == [True]
    digits.split("test")
    assert asked == [True, False]


def test_training_batches_hold_training_images_only() -> None:
    digits = Digits()
    trained = {image.numpy().tobytes() for image in contents(digits, "train")[0]}
    seen = {x.numpy().tobytes() for b in digits.train_loader(batch_size=7, seed=0).epoch(1) for x in b.x}
    assert seen == trained  # 1337 = 7 · 191: nothing is left over


@pytest.mark.parametrize(
    "setting",
    [
        {"num_classes": 11},
        {"validation_size": 0},
        {"split_seed": 0.5},
        {"augment": "mixup"},
        {"padding": -1},
    ],
)
def test_settings_out_of_range_are_named(setting: dict) -> None:
    with pytest.raises(SettingError, match=rf"^data.{next(iter(setting))}: expected .*, got .*; "):
        Digits(**setting)


def test_a_validation_split_larger_than_the_training_set_is_refused() -> None:
    with pytest.raises(SettingError, match=r"data.validation_size: expected 1 to 1436"):
        Digits(validation_size=1437).split("train")
