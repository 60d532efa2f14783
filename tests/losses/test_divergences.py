"""The divergences of TRADES against sums over classes in plain Python, and what each of them is known for."""

import math

import pytest
import torch
from torch import Tensor

from advtrain.losses import TRADES
from advtrain.losses.divergences import DIVERGENCES
from advtrain.types import SettingError
from tests.losses.toy import identity, images

each = pytest.mark.parametrize("name", DIVERGENCES)


def logits(scale: float = 2.0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    m, n = scale * torch.randn(2, 7, 4, dtype=torch.float64, generator=generator)
    return m.requires_grad_(), n.requires_grad_()


def by_hand(name: str, p: list[float], q: list[float]) -> float:
    """D(p, q), with p the natural side."""

    def kl(a: list[float], b: list[float]) -> float:
        return sum(u * math.log(u / v) for u, v in zip(a, b, strict=True))

    middle = [(u + v) / 2 for u, v in zip(p, q, strict=True)]
    return {
        "kl": kl(p, q),
        "reverse_kl": kl(q, p),
        "js": (kl(p, middle) + kl(q, middle)) / 2,
        "squared": sum((u - v) ** 2 for u, v in zip(p, q, strict=True)),
    }[name]


def softmax(row: list[float]) -> list[float]:
    total = sum(math.exp(o) for o in row)
    return [math.exp(o) / total for o in row]


@each
def test_the_definition_and_its_gradient_on_both_sides(name: str) -> None:
    m, n = logits()
    values = DIVERGENCES[name](m, n, reduction="none")
    expected = [by_hand(name, softmax(a), softmax(b)) for a, b in zip(m.tolist(), n.tolist(), strict=True)]
    assert values.tolist() == pytest.approx(expected, rel=1e-12)
    assert DIVERGENCES[name](m, n).item() == pytest.approx(sum(expected) / 7, rel=1e-12)
    assert torch.autograd.gradcheck(DIVERGENCES[name], (m, n))


@each
def test_it_is_zero_at_equal_predictions_and_flat_there(name: str) -> None:
    m, _ = logits()
    value = DIVERGENCES[name](m, m + 3)
    assert abs(value.item()) < 1e-14 and torch.autograd.grad(value, m)[0].abs().max() < 1e-14


@pytest.mark.parametrize(("name", "largest"), (("js", math.log(2)), ("squared", 2.0)))
def test_the_bounded_ones_are_symmetric_and_reach_their_bound(name: str, largest: float) -> None:
    m, n = logits()
    torch.testing.assert_close(DIVERGENCES[name](m, n), DIVERGENCES[name](n, m), rtol=1e-12, atol=0)
    certain = torch.tensor([[1e4, 0.0, 0.0]], requires_grad=True)
    value = DIVERGENCES[name](certain, certain.detach().roll(1, 1))
    assert value.item() == pytest.approx(largest, rel=1e-6)
    assert torch.autograd.grad(value, certain)[0].isfinite().all()


@each
def test_trades_takes_it_as_its_regulariser(name: str) -> None:
    x, x_adv, y = images()
    total, parts = TRADES(beta=3, divergence=name).outer(identity, x, x_adv, y)
    natural, adversarial = identity(x).tolist(), identity(x_adv).tolist()
    ce = sum(-math.log(softmax(row)[label]) for row, label in zip(natural, y.tolist(), strict=True)) / 6
    pairs = zip(natural, adversarial, strict=True)
    robust = 3 * sum(by_hand(name, softmax(a), softmax(b)) for a, b in pairs) / 6
    assert total.item() == pytest.approx(ce + robust, rel=1e-12)
    assert parts[name].item() == pytest.approx(robust, rel=1e-12)
    assert TRADES(divergence=name).inner_objective == "kl"  # the attack stays TRADES's own


@pytest.mark.usefixtures("without_type_checks")
def test_an_unknown_divergence_is_named() -> None:
    with pytest.raises(SettingError, match=r"^loss.divergence: expected one of kl, reverse_kl, js, squared, got 'l2'"):
        TRADES(divergence="l2")
