"""The interval against its definition in exact arithmetic, and against another implementation."""

from fractions import Fraction
from statistics import NormalDist

import pytest
import torch

from advtrain.evaluation.statistics import per_class, wilson_interval
from advtrain.types import SettingError

CASES = [(0, 10), (10, 10), (1, 3), (527, 1000), (4000, 10_000), (9999, 10_000), (1, 1)]


@pytest.mark.parametrize(("correct", "n"), CASES)
def test_the_ends_solve_the_equation_that_defines_them(correct, n):
    """(p - p̂)² = z² p (1 - p) / n; beyond the ends the left side is larger. Fractions, no rounding."""
    z = Fraction(NormalDist().inv_cdf(0.975))
    share = Fraction(correct, n)
    step = Fraction(1, 10**12)

    def excess(p):
        return (p - share) ** 2 - z * z * p * (1 - p) / n

    low, high = (Fraction(end) for end in wilson_interval(correct, n))
    assert 0 <= low <= share <= high <= 1
    if correct:
        assert excess(low - step) > 0 > excess(low + step)
    if correct < n:
        assert excess(high + step) > 0 > excess(high - step)


@pytest.mark.parametrize(("correct", "n"), CASES)
@pytest.mark.parametrize("confidence", [0.9, 0.95, 0.99])
def test_as_scipy_has_it(correct, n, confidence):
    stats = pytest.importorskip("scipy.stats")
    theirs = stats.binomtest(correct, n).proportion_ci(confidence, method="wilson")
    assert wilson_interval(correct, n, confidence) == pytest.approx((theirs.low, theirs.high), abs=1e-12)


def test_a_known_value():
    """Newcombe, Statistics in Medicine 17 (1998), table I: 81 of 263 is 0.2553 to 0.3662."""
    assert wilson_interval(81, 263) == pytest.approx((0.2553, 0.3662), abs=5e-5)


@pytest.mark.parametrize(("correct", "n"), [(3, 2), (-1, 2), (0, 0)])
def test_counts_that_do_not_fit_are_refused(correct, n):
    with pytest.raises(SettingError, match="expected an integer"):
        wilson_interval(correct, n)


def test_classes_are_counted_one_by_one():
    labels = torch.tensor([2, 0, 2, 2, 7])
    robust = torch.tensor([True, False, False, True, True])
    assert per_class(robust, labels) == {"0": [0, 1], "2": [2, 3], "7": [1, 1]}
