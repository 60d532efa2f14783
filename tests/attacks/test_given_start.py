"""PGD and APGD from a start that the caller gives."""

import pytest
import torch
from torch import Tensor

from advtrain.attacks import APGD, PGD
from advtrain.attacks.norms import norm_named

X = torch.full((3, 1, 2, 2), 0.5)


def flat(x: Tensor) -> Tensor:
    return 0 * x.flatten(1).sum(1)


def two_peaks(x: Tensor) -> Tensor:
    """Per pixel two maxima, at 0.4 and 0.6: whichever side of ½ a search starts on, it stays there."""
    return -((x - 0.5).abs() - 0.1).square().flatten(1).sum(1)


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("attack", [PGD, APGD])
def test_without_a_slope_the_start_comes_back_from_the_ball(attack, norm: str) -> None:
    start = X + torch.tensor([0.01, 0.02, 0.3]).view(3, 1, 1, 1)  # the last one lies outside of the ball
    found = attack(norm=norm, eps=0.1, steps=3)(flat, X, start=start)
    torch.testing.assert_close(found, norm_named(norm).inside(X, start, 0.1))


@pytest.mark.parametrize("side", [-1, 1])
def test_the_search_goes_on_from_the_start(side: int) -> None:
    found = PGD(eps=0.2, steps=20, step_size=0.01)(two_peaks, X, start=X + side * 0.02)
    torch.testing.assert_close(found, X + side * 0.1, atol=0.011, rtol=0)


def test_apgd_never_ends_below_a_start_in_the_ball() -> None:
    start = X + 0.1
    found = APGD(eps=0.2, steps=5)(two_peaks, X, start=start)
    assert (two_peaks(found) >= two_peaks(start)).all()
