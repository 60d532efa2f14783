"""Smoothed and soft labels, against sums over classes."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from advtrain.losses import ClassPrior, functional, shapes
from advtrain.losses.base import accuracies
from advtrain.losses.mart import boosted_cross_entropy_per_image
from tests.losses.toy import CLASSES, identity, images, made


def soft(y: Tensor) -> Tensor:
    hot = torch.nn.functional.one_hot(y, CLASSES).double()
    return 0.7 * hot + 0.3 * hot.roll(1, 0)


def cross_entropy(logits: Tensor, targets: Tensor) -> float:
    total = 0.0
    for row, target in zip(logits.tolist(), targets.tolist(), strict=True):
        normaliser = math.log(sum(math.exp(o) for o in row))
        total -= sum(t * (o - normaliser) for t, o in zip(target, row, strict=True))
    return total / len(logits)


@pytest.mark.parametrize("name", ("standard", "pgd_at", "trades", "kl", "dkl", "ikl", "gkl"))
@pytest.mark.parametrize("smoothing", (0.0, 0.1, 1.0))
def test_smoothing_moves_the_cross_entropy_and_nothing_else(name: str, smoothing: float) -> None:
    x, x_adv, y = images()
    hot = torch.nn.functional.one_hot(y, CLASSES).double()
    logits = identity(x_adv if name == "pgd_at" else x)
    total, plain = (made(name, **s).outer(identity, x, x_adv, y)[0] for s in ({"label_smoothing": smoothing}, {}))
    expected = cross_entropy(logits, (1 - smoothing) * hot + smoothing / CLASSES) - cross_entropy(logits, hot)
    assert (total - plain).item() == pytest.approx(expected, rel=1e-9, abs=1e-12)


@pytest.mark.parametrize(
    ("name", "changes"),
    (("standard", {}), ("pgd_at", {}), ("trades", {"beta": 0.0}), ("kl", {"kl_weight": 0.0})),
)
@pytest.mark.parametrize("smoothing", (0.0, 0.2))
def test_soft_labels_weigh_the_classes(name: str, changes: dict[str, Any], smoothing: float) -> None:
    x, x_adv, y = images()
    loss = made(name, label_smoothing=smoothing, **changes)
    total, _ = loss.outer(identity, x, x_adv, soft(y))
    targets = (1 - smoothing) * soft(y) + smoothing / CLASSES
    logits = identity(x_adv if name == "pgd_at" else x)
    assert total.item() == pytest.approx(cross_entropy(logits, targets), rel=1e-12)


def test_the_attack_maximises_the_cross_entropy_with_the_soft_label_unsmoothed() -> None:
    x, x_adv, y = images()
    values = made("pgd_at", label_smoothing=0.3).inner(identity, x, soft(y))(x_adv)
    assert values.mean().item() == pytest.approx(cross_entropy(identity(x_adv), soft(y)), rel=1e-12)


def test_smoothing_in_the_words_of_other_codes() -> None:
    """s spread over the C - 1 other classes is ε = s C / (C - 1) here."""
    x, _, y = images()
    s = 0.1
    targets = torch.full((6, CLASSES), s / (CLASSES - 1), dtype=torch.float64).scatter(1, y[:, None], 1 - s)
    value = functional.cross_entropy_per_image(identity(x), y, label_smoothing=s * CLASSES / (CLASSES - 1))
    assert value.mean().item() == pytest.approx(cross_entropy(identity(x), targets), rel=1e-12)


def test_soft_labels_of_half_precision_logits_are_measured_in_float32() -> None:
    x, _, y = images(dtype=torch.bfloat16)
    value = functional.cross_entropy_per_image(identity(x), soft(y).bfloat16())
    assert value.dtype == torch.float32
    exact = functional.cross_entropy_per_image(identity(x).double(), soft(y).bfloat16().double())
    torch.testing.assert_close(value.double(), exact, rtol=1e-6, atol=0)


def test_accuracy_counts_the_largest_entry_as_true() -> None:
    logits = torch.eye(3).repeat(2, 1)
    labels = torch.tensor([[0.6, 0.4, 0.0], [0.5, 0.3, 0.2], [0.0, 0.1, 0.9]]).repeat(2, 1)
    assert accuracies(labels, logits)["clean_accuracy"].item() == pytest.approx(4 / 6)
    assert accuracies(labels, None, logits)["robust_accuracy"].item() == pytest.approx(4 / 6)


@pytest.mark.parametrize(
    ("refusing", "what"),
    (
        (lambda y: functional.margin_per_image(torch.zeros(6, CLASSES), y), "the margin"),
        (lambda y: boosted_cross_entropy_per_image(torch.zeros(6, CLASSES), y), "MART"),
        (lambda y: ClassPrior(num_classes=CLASSES)(y), "a class prior"),
        (lambda y: ClassPrior(num_classes=CLASSES).update(torch.zeros(6, CLASSES), y), "a class prior"),
    ),
)
def test_what_needs_whole_class_numbers_says_so(refusing: Any, what: str) -> None:
    *_, y = images()
    with pytest.raises(ValueError, match=f"y: expected whole class numbers, which {what} needs, got soft labels"):
        refusing(soft(y))


@pytest.mark.parametrize("y", (torch.tensor([0, 3]), torch.tensor([-1, 1])))
def test_one_hot_labels_out_of_range_are_an_error(y: Tensor) -> None:
    with pytest.raises(RuntimeError, match="out of bounds"):
        shapes.one_hot(y, 3, torch.float32)


def test_one_hot_is_pytorchs() -> None:
    y = torch.tensor([[2, 0], [1, 2]])
    assert torch.equal(shapes.one_hot(y, 3, torch.float64), torch.nn.functional.one_hot(y, 3).double())
