"""Choices that do not go together stop at the start, with one line that names both and the remedy."""

import pytest

from advtrain.composition import compose
from advtrain.losses import PGDAT
from advtrain.runs import check_training
from advtrain.types import SettingError

DIGITS = ["data=digits", "model=small_cnn"]


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["data.mix=mixup", "loss=ikl"], "data.mix=mixup with loss IKL: expected a loss that takes soft labels"),
        (["data.second_view=cutout", "loss=ikl"], "data.second_view=cutout with loss IKL over one view: expected"),
        (["data.mix=cutmix", "data.second_view=autoaugment"], "data.mix=cutmix with data.second_view=autoaugment: exp"),
        (["data.augment=autoagument"], "data.augment: expected one of none, crop_flip, cutout, autoaugment"),
        (["data.second_view=mixup"], "data.second_view: expected one of none, crop_flip"),
        (["data.augment=cutout", "data.cutout_size=9"], "data.cutout_size: expected at most the images' side of 8"),
        (["data.second_view=idbh_weak"], "data.second_view=idbh_weak: expected images of at least 11 pixels a side"),
        (["data.randaugment_magnitude=31"], "data.randaugment_magnitude: expected an integer from 0 to 30, got 31"),
        (["data.randaugment_ops=0"], "data.randaugment_ops: expected an integer of at least 1, got 0"),
        (["data.cutout_size=0"], "data.cutout_size: expected an integer of at least 1, got 0"),
        (["data.mix_alpha=0"], "data.mix_alpha: expected a number above 0, got 0"),
    ],
)
def test_data_that_cannot_be_used_is_refused(words: list[str], expected: str) -> None:
    with pytest.raises(SettingError) as caught:
        check_training(compose("train", [*DIGITS, *words]))
    assert str(caught.value).startswith(expected)
    assert "\n" not in str(caught.value) and "; " in str(caught.value)


def test_a_loss_over_two_views_needs_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(PGDAT, "views", 2)
    with pytest.raises(SettingError, match=r"^loss.second_view_weight of loss PGDAT with data.second_view=none: exp"):
        check_training(compose("train", [*DIGITS, "loss=pgd_at"]))
    check_training(compose("train", [*DIGITS, "loss=pgd_at", "data.second_view=autoaugment"]))


@pytest.mark.parametrize("words", [["data.mix=mixup"], ["data.mix=cutmix", "data.mix_alpha=0.2"]])
def test_a_loss_that_takes_soft_labels_gets_them(words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(PGDAT, "takes_soft_labels", True)
    check_training(compose("train", [*DIGITS, "loss=pgd_at", *words]))
