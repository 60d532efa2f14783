"""Thresholds follow the tests that they are named after; SciPy is the reference."""

import pytest
from scipy.stats import binom, binomtest

from advtrain.evaluation.masking.statistics import LEVEL, allowed, allowed_excess, binomial_tail, mcnemar

CASES = [(128, 0.02), (128, 0.1), (64, 1 / 3), (1000, 0.02), (10_000, 0.02), (1, 0.02), (7, 0.5)]


@pytest.mark.parametrize(("n", "rate"), CASES)
def test_binomial_tail(n, rate):
    for count in {0, 1, int(n * rate), int(n * rate) + 5, n, n + 1}:
        assert binomial_tail(count, n, rate) == pytest.approx(binom.sf(count - 1, n, rate), rel=1e-8, abs=1e-300)


@pytest.mark.parametrize(("n", "rate"), CASES)
def test_allowed_is_the_largest_count_that_the_rate_explains(n, rate):
    limit = allowed(n, rate)
    assert binom.sf(limit, n, rate) <= LEVEL  # one more has a probability below the level
    assert limit == 0 or binom.sf(limit - 1, n, rate) > LEVEL
    assert limit >= int(rate * n)


def test_threshold_nears_the_rate_as_images_grow():
    shares = [allowed(n, 0.02) / n for n in (100, 1000, 10_000)]
    assert shares == sorted(shares, reverse=True)
    assert shares[-1] < 0.025


def test_mcnemar():
    for more, fewer in [(10, 0), (9, 0), (20, 5), (3, 3), (0, 4)]:
        expected = binomtest(more, more + fewer, 0.5, alternative="greater").pvalue if more + fewer else 1.0
        assert mcnemar(more, fewer) == pytest.approx(expected, rel=1e-9)
    assert mcnemar(0, 0) == 1


@pytest.mark.parametrize("discordant", [0, 1, 9, 10, 11, 60])
def test_allowed_excess(discordant):
    significant = [
        2 * more - discordant
        for more in range(discordant + 1)
        if discordant and binomtest(more, discordant, 0.5, alternative="greater").pvalue <= LEVEL
    ]
    limit = allowed_excess(discordant)
    assert all(excess > limit for excess in significant)
    assert limit == (min(significant) - 2 if significant else discordant)
