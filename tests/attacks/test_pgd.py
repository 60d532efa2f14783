"""PGD against a slow reference written from its definition."""

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from advtrain.attacks import PGD
from advtrain.attacks.norms import NORMS, norm_named
from advtrain.random import seeded_generator
from advtrain.types import SettingError


def convex(x: Tensor) -> Tensor:
    """A smooth convex objective per image whose gradient vanishes nowhere in the box."""
    weight = torch.linspace(-1, 1.3, x[0].numel(), dtype=x.dtype).view(1, *x.shape[1:])
    return ((weight * x).flatten(1).sum(1) + 3).square() + x.flatten(1).square().sum(1)


def reference(x: Tensor, start: Tensor, norm: str, eps: float, steps: int, step_size: float) -> Tensor:
    """PGD pixel by pixel and image by image, from the definition."""
    found = []
    for image, point in zip(x, start, strict=True):
        current = point.clone()
        for _ in range(steps):
            leaf = current[None].clone().requires_grad_()
            (gradient,) = torch.autograd.grad(convex(leaf)[0], leaf)
            flat_gradient, flat_image = gradient.flatten().tolist(), image.flatten().tolist()
            moved = []
            if norm == "linf":
                for value, slope, clean in zip(current.flatten().tolist(), flat_gradient, flat_image, strict=True):
                    value += step_size * ((slope > 0) - (slope < 0))
                    moved.append(min(max(value, clean - eps), clean + eps))
            elif norm == "l1":
                moved = l1_move(current.flatten().tolist(), flat_gradient, flat_image, eps, step_size)
            else:
                length = math.sqrt(sum(slope * slope for slope in flat_gradient))
                stepped = [
                    v + step_size * s / length for v, s in zip(current.flatten().tolist(), flat_gradient, strict=True)
                ]
                distance = math.sqrt(sum((v - c) ** 2 for v, c in zip(stepped, flat_image, strict=True)))
                shrink = min(1.0, eps / distance) if distance else 1.0
                moved = [c + (v - c) * shrink for v, c in zip(stepped, flat_image, strict=True)]
            current = torch.tensor([min(max(v, 0.0), 1.0) for v in moved], dtype=x.dtype).view_as(image)
        found.append(current)
    return torch.stack(found)


def l1_move(point: list[float], slope: list[float], image: list[float], eps: float, length: float) -> list[float]:
    """Spends the length on the steepest pixels that can move, then projects onto the L1 ball and [0, 1]."""
    moved = list(point)
    for i in sorted(range(len(point)), key=lambda i: -abs(slope[i])):
        share = min(length, 1 - point[i] if slope[i] > 0 else point[i])
        moved[i] += share if slope[i] > 0 else -share
        length -= share
    low, high = 0.0, 1.0  # of the multiplier of the ball's constraint, by bisection
    for _ in range(100):
        middle = (low + high) / 2
        size = [max(abs(m - c) - middle, 0.0) for m, c in zip(moved, image, strict=True)]
        low, high = (middle, high) if sum(size) > eps else (low, middle)
    shift = 0.0 if sum(abs(m - c) for m, c in zip(moved, image, strict=True)) <= eps else high
    return [c + math.copysign(max(abs(m - c) - shift, 0.0), m - c) for m, c in zip(moved, image, strict=True)]


def images(n: int = 3, seed: int = 0) -> Tensor:
    return torch.rand(n, 2, 3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(("norm", "eps", "step_size"), (("linf", 0.1, 0.04), ("l2", 0.7, 0.3), ("l1", 1.5, 0.6)))
@pytest.mark.parametrize("init", ("none", "uniform", "gaussian"))
def test_pgd_equals_the_reference(norm: str, eps: float, step_size: float, init: str) -> None:
    x = images()
    attack = PGD(norm=norm, eps=eps, steps=4, step_size=step_size, init=init, gaussian_scale=0.01)
    generator = torch.Generator().manual_seed(5)
    if init == "none":
        start = x
    elif norm == "l1":  # the draw is tested in test_norms
        geometry = norm_named("l1")
        noise = 0.01 * torch.randn(x.shape, generator=generator, dtype=x.dtype)
        drawn = noise if init == "gaussian" else geometry.uniform(x, eps, torch.Generator().manual_seed(5))
        start = geometry.inside(x, x + drawn, eps)
    elif init == "gaussian":
        start = x + 0.01 * torch.randn(x.shape, generator=generator, dtype=x.dtype)
    elif norm == "linf":
        start = x + eps * (2 * torch.rand(x.shape, generator=generator, dtype=x.dtype) - 1)
    else:
        direction = torch.randn(x.shape, generator=generator, dtype=x.dtype)
        radius = eps * torch.rand(3, 1, 1, 1, generator=generator, dtype=x.dtype) ** (1 / 18)
        start = x + radius * direction / direction.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
    expected = reference(x, start.clamp(0, 1), norm, eps, 4, step_size)
    actual = attack(convex, x, generator=torch.Generator().manual_seed(5))
    torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-12)


@settings(max_examples=40, deadline=None)
@given(
    norm=st.sampled_from(NORMS),
    eps=st.floats(0, 1),
    steps=st.integers(1, 4),
    relative=st.floats(0.01, 3),
    init=st.sampled_from(("none", "uniform", "gaussian")),
    restarts=st.integers(1, 2),
    seed=st.integers(0, 1000),
)
def test_ball_and_box(norm: str, eps: float, steps: int, relative: float, init: str, restarts: int, seed: int) -> None:
    x = images(3, seed).float()
    attack = PGD(norm=norm, eps=eps, steps=steps, step_size=relative * eps, init=init, restarts=restarts)
    x_adv = attack(convex, x, generator=seeded_generator(seed))
    assert (norm_named(norm).length(x_adv - x) <= eps + 1e-6).all()
    assert x_adv.min() >= 0 and x_adv.max() <= 1 and x_adv.shape == x.shape


def test_restarts_keep_the_best_of_each_image() -> None:
    def wavy(x: Tensor) -> Tensor:  # many local maxima
        return torch.sin(40 * x).flatten(1).sum(1)

    x = images(8)

    def make(restarts: int) -> PGD:
        return PGD(eps=0.3, steps=2, step_size=0.01, restarts=restarts)

    generator = torch.Generator().manual_seed(3)
    singles = torch.stack([wavy(make(1)(wavy, x, generator=generator)) for _ in range(4)])
    best = wavy(make(4)(wavy, x, generator=torch.Generator().manual_seed(3)))
    assert torch.equal(best, singles.amax(0))
    assert len(singles.argmax(0).unique()) > 1  # not all from one restart


def test_tiny_gradients_still_give_l2_steps() -> None:
    x = images(2).float()
    x_adv = PGD(norm="l2", eps=0.5, steps=1, step_size=0.5, init="none")(lambda z: 1e-30 * convex(z), x)
    moved = (x_adv - x).flatten(1).norm(dim=1)
    assert (moved > 0.2).all()


def test_the_default_step_is_a_quarter_of_eps() -> None:
    assert PGD(eps="8/255", steps=10).step_size == pytest.approx(2 / 255)
    assert PGD(eps=0.2, steps=10, relative_step_size=1.25).step_size == pytest.approx(0.25)


@pytest.mark.parametrize(
    ("changes", "message"),
    (
        ({"eps": 8}, "attack.eps: expected an Linf radius from 0 to 1, got 8"),
        ({"eps": -0.1}, "attack.eps: expected a number of at least 0, got -0.1"),
        ({"steps": 0}, "attack.steps: expected an integer of at least 1, got 0"),
        ({"steps": 2.5}, "attack.steps: expected an integer"),
        ({"norm": "l7"}, "attack.norm: expected one of linf, l2, l1, got 'l7'"),
        ({"init": "zero"}, "attack.init: expected one of none, uniform, gaussian, got 'zero'"),
        ({"restarts": 0}, "attack.restarts"),
        ({"eps": "8/0"}, "attack.eps"),
        ({"step_size": 0.1, "relative_step_size": 0.5}, "expected none beside attack.relative_step_size=0.5, got 0.1"),
        ({"relative_step_size": 0}, "attack.relative_step_size: expected a number above 0, got 0"),
    ),
)
@pytest.mark.usefixtures("without_type_checks")
def test_bad_settings_are_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingError, match=message.replace("(", r"\(")):
        PGD(**{"eps": 0.1, "steps": 3, **changes})
