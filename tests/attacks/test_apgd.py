"""APGD against algorithm 1 of arXiv:2003.01690, written out for one image at a time."""

import math

import pytest
import torch
from torch import Tensor

from advtrain.attacks import APGD
from advtrain.attacks.apgd import checkpoints
from advtrain.attacks.norms import norm_named
from advtrain.types import SettingError


def wavy(x: Tensor) -> Tensor:
    """Many local maxima, so that steps must shrink and the search must go back."""
    slope = torch.linspace(-1, 1.3, x[0].numel(), dtype=x.dtype).view(1, *x.shape[1:])
    return (torch.sin(9 * x) + slope * x).flatten(1).sum(1)


def images(n: int = 5, seed: int = 0) -> Tensor:
    return torch.rand(n, 2, 3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def gradient(point: Tensor) -> Tensor:
    leaf = point.clone().requires_grad_()
    return torch.autograd.grad(wavy(leaf).sum(), leaf)[0]


def reference(image: Tensor, start: Tensor, norm: str, eps: float, steps: int) -> Tensor:
    """Iterates x^(0) … x^(N) and values f^(0) … f^(N); conditions 1 and 2 are tried once x^(w_j) is known."""
    geometry = norm_named(norm)

    def inside(point: Tensor) -> Tensor:
        return geometry.inside(image, point, eps)

    share = [0.0, 0.22]
    while share[-1] < 1:
        share.append(share[-1] + max(share[-1] - share[-2] - 0.03, 0.06))
    turning = sorted({math.ceil(round(p * steps, 9)) for p in share[1:] if p < 1})

    eta = 2 * eps
    points, values = [start], [wavy(start).item()]
    best, best_value = start, values[0]
    last_turn, best_at_turn, halved_at_turn = 0, values[0], False
    rises = []  # whether f(x^(i+1)) > f(x^(i))
    for k in range(steps):
        if k in turning:
            few = sum(rises[last_turn:k]) < 0.75 * (k - last_turn)
            unchanged = not halved_at_turn and best_value == best_at_turn
            halved_at_turn = few or unchanged
            if halved_at_turn:
                eta /= 2
                points[-1], values[-1] = best, best_value
            last_turn, best_at_turn = k, best_value
        current = points[-1]
        following = inside(geometry.step(current, gradient(current), eta))
        if k > 0:
            following = inside(current + 0.75 * (following - current) + 0.25 * (current - points[-2]))
        points.append(following)
        values.append(wavy(following).item())
        rises.append(values[-1] > values[-2])
        if values[-1] > best_value:
            best, best_value = following, values[-1]
    return best


@pytest.mark.parametrize(("norm", "eps"), (("linf", 0.3), ("l2", 1.0)))
@pytest.mark.parametrize("steps", (1, 2, 3, 7, 20))
def test_apgd_equals_the_paper(norm: str, eps: float, steps: int) -> None:
    x = images()
    generator = torch.Generator().manual_seed(3)
    start = norm_named(norm).inside(x, x + norm_named(norm).uniform(x, eps, generator), eps)
    found = APGD(norm=norm, eps=eps, steps=steps)(wavy, x, generator=torch.Generator().manual_seed(3))
    expected = [reference(x[i : i + 1], start[i : i + 1], norm, eps, steps) for i in range(len(x))]
    torch.testing.assert_close(found, torch.cat(expected), rtol=0, atol=1e-12)


def test_checkpoints_are_the_papers() -> None:
    assert sorted(checkpoints(100)) == [22, 41, 57, 70, 80, 87, 93, 99]
    assert sorted(checkpoints(5)) == [2, 3, 4, 5]  # 0.22, 0.41, 0.57, 0.7, 0.8 (exactly 4), 0.87 … of 5


@pytest.mark.parametrize("steps", (1, 2, 10))
def test_it_never_ends_below_its_start(steps: int) -> None:
    """Steps of 2ε overshoot on this objective, so the last point is often worse than the first."""
    x = images(20)
    start = x + 0.3 * (2 * torch.rand(x.shape, dtype=x.dtype, generator=torch.Generator().manual_seed(1)) - 1)
    found = APGD(eps=0.3, steps=steps)(wavy, x, generator=torch.Generator().manual_seed(1))
    assert (wavy(found) >= wavy(start.clamp(0, 1))).all()


@pytest.mark.usefixtures("without_type_checks")
def test_l1_is_refused_with_the_way_out() -> None:
    with pytest.raises(SettingError, match=r"attack.norm: expected linf or l2 for APGD, got 'l1'.*attack=pgd"):
        APGD(norm="l1", eps=12, steps=5)
    with pytest.raises(SettingError, match=r"attack.init: expected one of none, uniform"):
        APGD(eps=0.1, init="gaussian")
