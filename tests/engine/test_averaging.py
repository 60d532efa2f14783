"""Averages of weights against their recursions, buffers included."""

import pytest
import torch

from advtrain.engine import EMA, EpochEMA, NoAveraging
from tests.engine.toy import network, weights_of


def moved(model: torch.nn.Module, seed: int) -> None:
    """Gives the model other weights, statistics and counters, as training would."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for tensor in model.state_dict().values():
            if tensor.is_floating_point():
                tensor.copy_(torch.randn(tensor.shape, generator=generator))
            else:
                tensor.fill_(seed)


@pytest.mark.parametrize("warmup", (False, True))
def test_ema(warmup: bool) -> None:
    model = network(norm=True)
    ema = EMA(decay=0.9, warmup=warmup)
    average = ema.attach(model)
    expected = [t.double() for t in weights_of(model)]
    for step in range(1, 30):
        moved(model, step)
        ema.after_step(step)
        decay = min(0.9, (1 + step) / (10 + step)) if warmup else 0.9
        current = weights_of(model)
        expected = [
            decay * e + (1 - decay) * c.double() if c.is_floating_point() else c.double()
            for e, c in zip(expected, current, strict=True)
        ]
    for actual, value in zip(average.state_dict().values(), expected, strict=True):
        torch.testing.assert_close(actual.double(), value, rtol=1e-5, atol=1e-6)
    assert not average.training and not any(p.requires_grad for p in average.parameters())


def test_epoch_ema_starts_with_the_first_epoch() -> None:
    model = network()
    ema = EpochEMA(decay=0.9)
    average = ema.attach(model)
    moved(model, 1)
    ema.after_step(1)
    ema.after_epoch(1)
    first = weights_of(model)
    assert all(torch.equal(a, b) for a, b in zip(weights_of(average), first, strict=True))
    moved(model, 2)
    ema.after_epoch(2)
    for a, f, c in zip(weights_of(average), first, weights_of(model), strict=True):
        torch.testing.assert_close(a, 0.9 * f + 0.1 * c, rtol=1e-5, atol=1e-6)


def test_no_averaging_is_the_model() -> None:
    model = network()
    assert NoAveraging().attach(model) is model
