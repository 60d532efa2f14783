"""MART's boosted cross-entropy: the formula, extreme logits, bad shapes. The whole loss is in test_losses.py."""

import math

import pytest
import torch

from advtrain.losses.mart import boosted_cross_entropy_per_image


def test_boosted_cross_entropy_equals_the_formula() -> None:
    logits = torch.randn(20, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * 2
    y = torch.arange(20) % 5
    for value, row, label in zip(boosted_cross_entropy_per_image(logits, y), logits, y, strict=True):
        p = [math.exp(o) / sum(math.exp(q) for q in row.tolist()) for o in row.tolist()]
        strongest = max(q for j, q in enumerate(p) if j != label)
        assert float(value) == pytest.approx(-math.log(p[label]) - math.log(1 - strongest), rel=1e-12)


@pytest.mark.parametrize("label", (0, 1))
def test_confident_logits_stay_finite(label: int) -> None:
    """1 - p_k is 0 in float32 at logits of 100; the value and the gradient must not notice."""
    logits = torch.tensor([[100.0, 0.0, -3.0]], requires_grad=True)
    value = boosted_cross_entropy_per_image(logits, torch.tensor([label]))
    value.sum().backward()
    log_rest = math.log(1 + math.exp(-3)) - 100  # log(1 - p_0); p_1 and p_2 are the rest
    expected = {0: 0.0, 1: 100 - log_rest}[label]
    assert value.item() == pytest.approx(expected, rel=1e-6, abs=1e-6)
    assert logits.grad is not None and logits.grad.isfinite().all()
    assert (logits.grad.abs().max() > 1) == (label == 1)


def test_half_precision_logits_are_measured_in_float32() -> None:
    logits = torch.randn(8, 10, generator=torch.Generator().manual_seed(1)).bfloat16()
    value = boosted_cross_entropy_per_image(logits, torch.arange(8))
    assert value.dtype == torch.float32
    torch.testing.assert_close(value, boosted_cross_entropy_per_image(logits.float(), torch.arange(8)))


def test_one_class_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 2 classes"):
        boosted_cross_entropy_per_image(torch.zeros(3, 1), torch.zeros(3, dtype=torch.int64))
