"""Averages of weights against their recursions, buffers included."""

from collections.abc import Iterator

import pytest
import torch

from advtrain.engine import EMA, SWA, EpochEMA, NoAveraging
from advtrain.types import SettingError
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


@pytest.mark.parametrize("start", (1, 3))
def test_swa_is_the_mean_over_epochs(start: int) -> None:
    """Before `start_epoch` the model itself; then the mean of all states so far, each with the same weight."""
    model = network(norm=True).double()
    swa = SWA(start_epoch=start, batchnorm="averaged")
    average = swa.attach(model)
    states = []
    for epoch in range(1, 8):
        moved(model, epoch)
        swa.after_step(epoch)
        swa.after_epoch(epoch)
        states.append([t.double() for t in weights_of(model)])
        entered = states[start - 1 :] or states[-1:]
        for i, tensor in enumerate(average.state_dict().values()):
            if not tensor.is_floating_point() or epoch <= start:
                assert torch.equal(tensor.double(), states[-1][i])
            else:
                mean = sum(state[i] for state in entered) / len(entered)
                torch.testing.assert_close(tensor, mean, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("average", (EMA(decay=0.9, batchnorm="copied"), EpochEMA(decay=0.9, batchnorm="copied")))
def test_copied_statistics_are_the_models(average: EMA | EpochEMA) -> None:
    model = network(norm=True)
    copied = average.attach(model)
    for i in range(1, 4):
        moved(model, i)
        average.after_step(i)
        average.after_epoch(i)
    for name, value in model.state_dict().items():
        assert torch.equal(value, copied.state_dict()[name]) == ("1." in name and name[2:3] in "rn"), name


def test_statistics_are_recomputed_once_after_each_move() -> None:
    asked = []

    def images(n_images: int, batch_size: int) -> Iterator[torch.Tensor]:
        asked.append((n_images, batch_size))
        yield torch.rand(8, 3, 6, 6)

    swa = SWA(start_epoch=2, batchnorm="recomputed", batchnorm_images=40, batchnorm_batch_size=20)
    model = network(norm=True)
    average = swa.attach(model)
    for epoch in range(1, 5):
        moved(model, epoch)
        swa.after_epoch(epoch)
        before = average.get_buffer("1.running_mean").clone()
        swa.before_use(images)
        swa.before_use(images)
        assert torch.equal(average.get_buffer("1.running_mean"), before) == (epoch <= 2)
    assert asked == [(40, 20)] * 2  # through epoch 2 the model is evaluated as it is


def test_no_averaging_is_the_model() -> None:
    model = network()
    assert NoAveraging().attach(model) is model


@pytest.mark.parametrize(
    ("setting", "value", "expected"),
    (
        ("start_epoch", 0, "integer of at least 1"),
        ("batchnorm", "fresh", "one of averaged, copied, recomputed"),
        ("batchnorm_images", 1, "integer of at least 2"),
        ("batchnorm_batch_size", 0.5, "integer of at least 2"),
    ),
)
def test_settings_out_of_range(setting: str, value: object, expected: str) -> None:
    arguments: dict = {"start_epoch": 1, setting: value}
    with pytest.raises(SettingError, match=rf"averaging\.{setting}: expected (an )?{expected}"):
        SWA(**arguments)
