"""Whether two ways of drawing have one distribution. Seeds are fixed, so an outcome does not change from run to run."""

from collections.abc import Hashable, Mapping

import numpy as np
from scipy import stats
from torch import Tensor

# For the draws of a new seed each test would fail with this probability though nothing is wrong.
SIGNIFICANCE = 1e-4
SMALLEST = 10  # outcomes that are expected more rarely are counted as one


def counted(images: Tensor) -> dict[bytes, int]:
    """How often each image occurs."""
    counts: dict[bytes, int] = {}
    for image in images.numpy():
        counts[image.tobytes()] = counts.get(image.tobytes(), 0) + 1
    return counts


def p_of_same_source(first: Mapping[Hashable, int], second: Mapping[Hashable, int]) -> float:
    """The p-value of Pearson's test of homogeneity of two samples, given as counts of outcomes."""
    outcomes = sorted({*first, *second}, key=repr)
    table = np.array([[sample.get(outcome, 0) for outcome in outcomes] for sample in (first, second)])
    rare = table.sum(0) < 2 * SMALLEST
    pooled = np.concatenate([table[:, ~rare], table[:, rare].sum(1, keepdims=True)], 1)
    return float(stats.chi2_contingency(pooled[:, pooled.sum(0) > 0], correction=False)[1])


def p_of_distribution(counts: Mapping[Hashable, int], probabilities: Mapping[Hashable, float]) -> float:
    """The p-value of Pearson's test of fit. An outcome that is impossible gives 0."""
    if {*counts} - {*probabilities}:
        return 0.0
    n = sum(counts.values())
    expected = np.array([*probabilities.values()]) * n
    found = np.array([counts.get(outcome, 0) for outcome in probabilities])
    rare = expected < SMALLEST
    if rare.any():
        expected = np.append(expected[~rare], expected[rare].sum())
        found = np.append(found[~rare], found[rare].sum())
    return float(stats.chisquare(found, expected)[1])
