"""The projection onto an L1 ball within the box."""

import pytest
import torch
from pyautoattack.autopgd_base import L1_projection

from advtrain.evaluation.autoattack.exact.l1_ball import _sorted_by_numpy, _sorted_by_torch, l1_correction


def cases() -> tuple[torch.Tensor, torch.Tensor]:
    """Images with black and white pixels; perturbations that are dense, sparse, short, zero and all of one size."""
    generator = torch.Generator().manual_seed(0)
    x = (torch.rand(12, 3, 6, 6, generator=generator) * 1.4 - 0.2).clamp(0, 1)
    y = torch.randn(12, 3, 6, 6, generator=generator)
    y[3:6] *= torch.rand(3, 3, 6, 6, generator=generator) < 0.1
    y[6:8] *= 0.001
    y[8] = 0
    y[9] = y[9].sign() * 0.5
    y[10] = (y[10] * 4).round() / 4
    y[11, 0, 0, 0] = 100
    return x, y


@pytest.mark.parametrize("radius", [0.5, 3.0, 30.0])
def test_it_is_upstreams(radius: float) -> None:
    x, y = cases()
    assert torch.equal(l1_correction(x, y, radius), L1_projection(x, y, radius))


@pytest.mark.parametrize("radius", [0.5, 3.0, 30.0])
def test_it_is_the_nearest_point(radius: float) -> None:
    """A projection p of z onto a convex set C is the point with <z - p, c - p> ≤ 0 for all c in C; here against random
    points of C."""
    x, y = (part.double() for part in cases())
    p = y + l1_correction(x.float(), y.float(), radius).double()
    assert p.abs().sum((1, 2, 3)).max() <= radius + 1e-4  # 100 has a rounding of 1e-5
    assert (x + p).min() >= -1e-5
    assert (x + p).max() <= 1 + 1e-5
    generator = torch.Generator().manual_seed(1)
    for _ in range(50):
        c = torch.rand(x.shape, generator=generator, dtype=torch.float64) - x
        c *= torch.rand(x.shape, generator=generator) < 0.1
        c *= (radius / c.abs().sum((1, 2, 3), keepdim=True)).clamp(max=1)
        assert ((y - p) * (c - p)).sum((1, 2, 3)).max() <= 1e-4


def test_both_ways_to_sort_agree() -> None:
    """Up to the order among equal numbers, where the gaps are zero: sums of kinds agree at the last of them."""
    generator = torch.Generator().manual_seed(0)
    both = (torch.rand(5, 40, generator=generator) * 8).round() / 4
    corners, kinds = _sorted_by_torch(both, 20)
    fast_corners, fast_kinds = _sorted_by_numpy(both.clone(), 20)
    assert torch.equal(corners, fast_corners)
    last = torch.cat((corners[:, 1:] != corners[:, :-1], torch.ones(5, 1, dtype=torch.bool)), 1)
    assert torch.equal(kinds.cumsum(1)[last], fast_kinds.cumsum(1)[last])
