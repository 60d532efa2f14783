"""How far a count can be trusted."""

from math import sqrt

from torch import Tensor

Z95 = 1.959963984540054  # Φ⁻¹(0.975): two-sided 95 %


def wilson(correct: int, n: int, z: float = Z95) -> tuple[float, float]:
    """The score interval of a proportion (Wilson, JASA 22, 1927): all p with |p - p̂| ≤ z √(p (1 - p) / n).

    It stays in [0, 1] and means something at p̂ = 0 and 1. It is about the choice of test images, each right or wrong
    on its own; randomness of the attack or of training is not in it.

    Args:
        correct: successes, 0 to n.
        n: trials, at least 1.
        z: quantile of the normal distribution; 1.96 for 95 %.

    Returns:
        The lower and the upper end, as fractions.
    """
    p, spread = correct / n, z * z / n
    centre = (p + spread / 2) / (1 + spread)
    half = sqrt(p * (1 - p) * spread + spread * spread / 4) / (1 + spread)
    return max(0.0, centre - half), min(1.0, centre + half)


def per_class(robust: Tensor, labels: Tensor) -> dict[str, list[int]]:
    """Correct images and all images of each class that occurs, by its number as a word: JSON's keys are words."""
    return {
        str(label): [int(robust[labels == label].sum()), int((labels == label).sum())]
        for label in labels.unique().tolist()
    }
