"""How far a count of images can be trusted."""

from math import exp, lgamma, log, log1p, sqrt
from statistics import NormalDist

from torch import Tensor

from advtrain import checks


def wilson_interval(correct: int, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """The score interval of a proportion (Wilson, JASA 22, 1927): all p with |p - p̂| ≤ z √(p (1 - p) / n).

    It stays in [0, 1] and has a width at p̂ = 0 and 1, too. It is about the choice of test images, each right or wrong
    on its own; randomness of the attack or of training is not in it.

    Args:
        correct: successes, 0 to n.
        n: trials, at least 1.
        confidence: share of such intervals that hold the true value.

    Returns:
        The lower and the upper end, as fractions.

    Raises:
        SettingError: the counts do not fit.
    """
    n = checks.integer("n", n, low=1)
    correct = checks.integer("correct", correct, low=0, high=n)
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    p, spread = correct / n, z * z / n
    centre = (p + spread / 2) / (1 + spread)
    half = sqrt(p * (1 - p) * spread + spread * spread / 4) / (1 + spread)
    # The ends at 0 and n successes are exactly 0 and 1; rounding would miss them.
    return (max(0.0, centre - half) if correct else 0.0), (min(1.0, centre + half) if correct < n else 1.0)


def binomial_tail(successes: int, n: int, p: float) -> float:
    """P(X ≥ successes) of a binomial X: the exact one-sided p-value of a rate above `p`.

    Args:
        successes: 0 to n.
        n: trials, at least 1.
        p: probability of a success, 0 to 1.

    Raises:
        SettingError: a number is out of range.
    """
    n = checks.integer("n", n, low=1)
    successes = checks.integer("successes", successes, low=0, high=n)
    p = checks.number("p", p, low=0, high=1)
    if successes == 0 or p in (0, 1):
        return 1.0 if successes == 0 else p

    def probability(k: int) -> float:
        return exp(lgamma(n + 1) - lgamma(k + 1) - lgamma(n - k + 1) + k * log(p) + (n - k) * log1p(-p))

    return min(1.0, sum(probability(k) for k in range(n, successes - 1, -1)))  # small terms first


def per_class(robust: Tensor, labels: Tensor) -> dict[str, list[int]]:
    """Correct images and all images of each class that occurs, by its number as a word: JSON's keys are words."""
    return {
        str(label): [int(robust[labels == label].sum()), int((labels == label).sum())]
        for label in labels.unique().tolist()
    }
