"""What attacks maximise: DLR against its definition, and every word of loss.inner."""

import math

import pytest
import torch
from torch import nn

from advtrain.losses import IKL, PGDAT, RSLAD, TRADES, Teacher, functional, objectives
from advtrain.types import SettingError


def dlr(row: list[float], label: int) -> float:
    """-(z_y - max_{i≠y} z_i) / (z_π1 - z_π3), from arXiv:2003.01690."""
    first, _, third = sorted(row, reverse=True)[:3]
    return -(row[label] - max(v for i, v in enumerate(row) if i != label)) / (first - third)


def logits(n: int = 8, classes: int = 5) -> torch.Tensor:
    return 4 * torch.randn(n, classes, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("classes", (3, 4, 10))
def test_dlr_equals_its_definition(classes: int) -> None:
    z = logits(20, classes)
    y = torch.arange(20) % classes
    expected = [dlr(row, label) for row, label in zip(z.tolist(), y.tolist(), strict=True)]
    torch.testing.assert_close(functional.dlr_per_image(z, y), torch.tensor(expected, dtype=z.dtype))


def test_dlr_ignores_shift_and_scale_and_shows_mistakes_by_its_sign() -> None:
    z, y = logits(), torch.arange(8) % 5
    value = functional.dlr_per_image(z, y)
    torch.testing.assert_close(functional.dlr_per_image(7 * z + 3, y), value)
    assert torch.equal(value > 0, z.argmax(1) != y) and 0 < (value > 0).sum() < 8


def test_dlr_gradient() -> None:
    y = torch.arange(8) % 5
    assert torch.autograd.gradcheck(lambda z: functional.dlr_per_image(z, y), logits().requires_grad_())


def test_dlr_of_equal_logits_is_zero_with_a_zero_gradient() -> None:
    z = torch.zeros(2, 4, dtype=torch.float64)
    z[1, 0] = 5.0
    z.requires_grad_()
    value = functional.dlr_per_image(z, torch.tensor([1, 1]))
    value.sum().backward()
    assert z.grad is not None
    assert value.tolist() == [0.0, 1.0] and not z.grad[0].any() and torch.isfinite(z.grad).all()


@pytest.mark.usefixtures("without_type_checks")
def test_dlr_needs_three_classes() -> None:
    with pytest.raises(ValueError, match=r"at least 3 classes, got shape \(2, 2\)"):
        functional.dlr_per_image(torch.zeros(2, 2), torch.tensor([0, 1]))


@pytest.mark.parametrize("inner", objectives.INNER)
def test_every_word_is_an_objective_with_a_formula(inner: str) -> None:
    model, other = (nn.Sequential(nn.Flatten(), nn.Linear(4, 5)).double() for _ in range(2))
    x, y = torch.rand(3, 1, 2, 2, dtype=torch.float64), torch.arange(3)
    by_teacher = inner in objectives.BY_TEACHER
    loss = RSLAD(inner=inner).hold(Teacher(other)) if by_teacher else IKL(num_classes=5, inner=inner)
    objective = loss.inner(model, x, y)
    leaf = (x + 0.1).requires_grad_()
    values = objective(leaf)
    (gradient,) = torch.autograd.grad(values.sum(), leaf)
    assert values.shape == (3,) and torch.isfinite(values).all() and gradient.any()
    assert "f(x')" in objectives.formula(inner) or "f_j(x')" in objectives.formula(inner)


def test_words_and_measures_agree() -> None:
    assert set(objectives.INNER) == set(objectives.MEASURES)


def test_losses_take_dlr_and_refuse_what_they_cannot_have() -> None:
    assert PGDAT(inner="dlr").inner_objective == "dlr"
    with pytest.raises(SettingError, match="expected ce, kl, margin or dlr for TRADES"):
        TRADES(inner="ikl")
    with pytest.raises(SettingError, match=r"^loss.inner=ikl with loss RSLAD, .*; choose loss.inner=teacher_ikl$"):
        RSLAD(inner="ikl")
    with pytest.raises(SettingError, match=r"^loss.inner=teacher_kl with loss TRADES: expected a loss whose attack "):
        TRADES(inner="teacher_kl")


def test_margin_and_dlr_agree_on_the_sign() -> None:
    z, y = logits(), torch.arange(8) % 5
    assert torch.equal(functional.dlr_per_image(z, y) > 0, functional.margin_per_image(z, y) > 0)
    assert math.isfinite(functional.dlr_per_image(1e30 * z, y).sum().item())
