"""The geometry of L1 against slow references: bisection for the projection, a linear program for the steepest step."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linprog
from torch import Tensor

from advtrain.attacks import PGD, norms
from advtrain.attacks.norms import L1, NORMS, norm_named


def images(n: int, seed: int, edges: bool = False) -> Tensor:
    """Some pixels at 0 and 1 exactly when `edges`."""
    x = torch.rand(n, 2, 3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return (2 * x - 0.5).clamp(0, 1) if edges else x


def projected(image: list[float], point: list[float], eps: float) -> list[float]:
    """The nearest z in [0, 1] with ‖z - image‖_1 ≤ eps, by bisection on the multiplier of the constraint."""

    def at(multiplier: float) -> list[float]:
        moved = []
        for clean, value in zip(image, point, strict=True):
            size = max(abs(value - clean) - multiplier, 0.0)
            moved.append(min(max(clean + (size if value > clean else -size), 0.0), 1.0))
        return moved

    def length(z: list[float]) -> float:
        return sum(abs(a - b) for a, b in zip(z, image, strict=True))

    low, high = 0.0, max(abs(value - clean) for value, clean in zip(point, image, strict=True))
    if length(at(0.0)) <= eps:
        return at(0.0)
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if length(at(middle)) > eps else (low, middle)
    return at(high)


@pytest.mark.parametrize("eps", (0.0, 0.3, 2.0, 6.0, 100.0))
def test_l1_projection_onto_ball_and_box(eps: float) -> None:
    x = images(6, 0, edges=True)
    point = x + torch.randn(x.shape, dtype=x.dtype, generator=torch.Generator().manual_seed(1))
    found = L1().inside(x, point, eps)
    expected = [projected(a, b, eps) for a, b in zip(x.flatten(1).tolist(), point.flatten(1).tolist(), strict=True)]
    torch.testing.assert_close(found.flatten(1), torch.tensor(expected, dtype=x.dtype), rtol=0, atol=1e-12)


@pytest.mark.parametrize("eps", (0.0, 0.5, 4.0))
def test_l1_projection_without_the_box(eps: float) -> None:
    """Far from 0 and 1 the box plays no part, so the ball's own projection is the one onto both."""
    perturbation = 0.1 * torch.randn(4, 2, 3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    middle = torch.full_like(perturbation, 0.5)
    expected = L1().inside(middle, middle + perturbation, eps) - middle
    torch.testing.assert_close(L1().project(perturbation, eps), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("numbers", (1, 2, 3, 8, 37))
def test_sums_by_doubling(numbers: int) -> None:
    rows = torch.randint(-50, 50, (4, numbers), generator=torch.Generator().manual_seed(0)).double()
    assert torch.equal(norms.doubling_sums(rows), rows.cumsum(1))  # whole numbers: no rounding


@pytest.mark.gpu
def test_l1_in_a_deterministic_run_on_a_gpu() -> None:
    """Where PyTorch refuses its own running sums: the images of a CPU, and the same bits twice."""
    x, slope = images(6, 0, edges=True), images(6, 3) - 0.5
    attack = PGD(norm="l1", eps=2.0, steps=3, init="none")

    def found(device: str) -> Tensor:
        weights = slope.to(device)
        return attack(lambda z: (weights * (z - 0.3).sin()).flatten(1).sum(1), x.to(device)).cpu()

    expected = found("cpu")
    try:
        torch.use_deterministic_algorithms(True)
        first, second = found("cuda"), found("cuda")
    finally:
        torch.use_deterministic_algorithms(False)
    assert torch.equal(first, second)
    torch.testing.assert_close(first, expected, rtol=0, atol=1e-9)


@pytest.mark.parametrize("length", (0.0, 0.4, 3.0, 50.0))
def test_l1_step_is_the_best_of_its_length(length: float) -> None:
    """max <g, δ⁺ - δ⁻> subject to Σ (δ⁺ + δ⁻) ≤ length and 0 ≤ x + δ⁺ - δ⁻ ≤ 1, solved as a linear program."""
    x = images(4, 3, edges=True)
    gradient = torch.randn(x.shape, dtype=x.dtype, generator=torch.Generator().manual_seed(4))
    moved = L1().step(x, gradient, length)
    assert moved.min() >= 0 and moved.max() <= 1
    assert (L1().length(moved - x) <= length + 1e-12).all()
    for image, slope, point in zip(x.flatten(1), gradient.flatten(1), moved.flatten(1), strict=True):
        d = len(image)
        best = linprog(
            torch.cat([-slope, slope]).numpy(),
            A_ub=torch.ones(1, 2 * d).numpy(),
            b_ub=[length],
            bounds=[(0, 1 - v) for v in image.tolist()] + [(0, v) for v in image.tolist()],
        )
        assert (slope * (point - image)).sum().item() == pytest.approx(-best.fun, abs=1e-9)


def test_l1_steps_are_sparse() -> None:
    x = images(5, 5)
    moved = L1().step(x, torch.rand_like(x) + 0.1, 0.2) - x
    assert ((moved != 0).flatten(1).sum(1) <= 3).all() and (moved != 0).flatten(1).any(1).all()


@pytest.mark.parametrize("norm", NORMS)
def test_uniform_draws_fill_the_ball(norm: str) -> None:
    """Of a uniform draw from a ball of dimension d the radius to the power of d is uniform: mean ½, within 5 errors."""
    x = torch.zeros(4000, 1, 2, 3, dtype=torch.float64)
    draws = norm_named(norm).uniform(x, 2.0, torch.Generator().manual_seed(6))
    volume = (norm_named(norm).length(draws) / 2.0) ** 6
    assert volume.max() <= 1 and abs(volume.mean() - 0.5) < 5 * (1 / 12 / 4000) ** 0.5
    deviation = draws.flatten(1).std(0)
    assert (draws.flatten(1).mean(0).abs() < 5 * deviation / 4000**0.5).all()  # no side is preferred
    assert deviation.max() < 1.15 * deviation.min()


def test_an_l1_coordinate_has_the_right_spread() -> None:
    """E|δ_i| = eps / (d + 1) for a uniform draw from the L1 ball."""
    draws = L1().uniform(torch.zeros(5000, 1, 2, 2, dtype=torch.float64), 1.0, torch.Generator().manual_seed(7)).abs()
    error = draws.flatten(1).std(0) / 5000**0.5
    assert ((draws.flatten(1).mean(0) - 1 / 5).abs() < 5 * error).all()


@settings(max_examples=40, deadline=None)
@given(
    norm=st.sampled_from(NORMS),
    eps=st.floats(0, 1) | st.floats(1, 30),
    spread=st.floats(0, 5),
    seed=st.integers(0, 1000),
    double=st.booleans(),
)
def test_inside_is_inside(norm: str, eps: float, spread: float, seed: int, double: bool) -> None:
    x = images(3, seed, edges=True).to(torch.float64 if double else torch.float32)
    point = x + spread * torch.randn(x.shape, dtype=x.dtype, generator=torch.Generator().manual_seed(seed))
    z = norm_named(norm).inside(x, point, eps)
    assert z.dtype == x.dtype and z.min() >= 0 and z.max() <= 1
    tolerance = 1e-12 if double else 1e-6
    assert (norm_named(norm).length(z - x) <= eps + tolerance * max(1, eps)).all()
    again = norm_named(norm).inside(x, z, eps)
    assert (again - z).abs().max() <= tolerance * max(1, eps)  # what is inside stays


def test_a_draw_of_exactly_minus_one_is_no_infinite_pixel(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch.rand gives 0 once in 2^24 draws, which the L1 ball's exponential lengths take to infinity."""
    monkeypatch.setattr(norms, "uniform_like", lambda x, low, high, source: torch.full_like(x, low))
    draw = L1().uniform(torch.zeros(2, 1, 2, 2), 1.0, None)
    assert draw.isfinite().all() and (L1().length(draw) <= 1 + 1e-6).all()
