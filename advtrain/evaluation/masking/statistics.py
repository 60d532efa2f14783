"""How much of what was counted on a few images chance explains: exact one-sided binomial and McNemar tests."""

import math

LEVEL = 1e-3  # a genuine model on the edge of a threshold fails one check in a thousand


def binomial_tail(count: int, n: int, rate: float) -> float:
    """P(X ≥ count) for X ~ Binomial(n, rate)."""
    if count <= 0:
        return 1.0
    if count > n or rate <= 0:
        return 0.0
    if rate >= 1:
        return 1.0
    logs = (
        math.lgamma(n + 1)
        - math.lgamma(k + 1)
        - math.lgamma(n - k + 1)
        + k * math.log(rate)
        + (n - k) * math.log1p(-rate)
        for k in range(count, n + 1)
    )
    return min(1.0, math.fsum(math.exp(log) for log in logs))


def allowed(n: int, rate: float, level: float = LEVEL) -> int:
    """The largest count among `n` images that a true share of `rate` explains: P(X > allowed) ≤ level.

    More than that is a share above `rate` by a one-sided exact binomial test.
    """
    low, high = -1, n  # P(X > low) > level ≥ P(X > high)
    while high - low > 1:
        middle = (low + high) // 2
        if binomial_tail(middle + 1, n, rate) <= level:
            high = middle
        else:
            low = middle
    return high


def mcnemar(more: int, fewer: int) -> float:
    """McNemar's exact one-sided test of two paired verdicts that differ on `more` + `fewer` images.

    Returns:
        P(X ≥ more) for X ~ Binomial(more + fewer, ½): how likely so many go one way if both ways are alike.
    """
    return binomial_tail(more, more + fewer, 0.5)


def allowed_excess(discordant: int, level: float = LEVEL) -> int:
    """The largest `more` - `fewer` of that many discordant images that McNemar's test at `level` lets pass."""
    passing = (more for more in range(discordant, -1, -1) if mcnemar(more, discordant - more) > level)
    return 2 * next(passing) - discordant
