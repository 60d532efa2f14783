"""How sure a count of images is."""

import math
from statistics import NormalDist

from advtrain import checks


def wilson_interval(correct: int, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """The Wilson score interval of a share (Wilson, "Probable inference ...", JASA 22, 1927).

    Args:
        correct: successes.
        n: trials, independent of each other, as images drawn at random from a distribution are.
        confidence: the share of intervals that contain the true value.

    Returns:
        Its ends, as fractions in [0, 1]. Unlike the normal approximation it has a width at 0 and n successes, too.

    Raises:
        SettingError: the counts do not fit.
    """
    n = checks.integer("n", n, low=1)
    correct = checks.integer("correct", correct, low=0, high=n)
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    share = correct / n
    scale = 1 + z * z / n
    centre = (share + z * z / (2 * n)) / scale
    half = z / scale * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    low = 0.0 if correct == 0 else max(0.0, centre - half)
    high = 1.0 if correct == n else min(1.0, centre + half)
    return low, high
