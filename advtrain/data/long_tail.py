"""Long-tailed training sets cut from balanced ones."""

import torch
from torch import Tensor

from advtrain.random import seeded_generator


def long_tailed_counts(largest: int, num_classes: int, imbalance: float) -> list[int]:
    """Images of each class: ⌊n · μ^(c / (C - 1))⌋ for class c, μ = 1 / imbalance (Cui et al., arXiv:1901.05555).

    Args:
        largest: n, images of class 0.
        num_classes: C.
        imbalance: images of the first class for each of the last one, at least 1.
    """
    last = max(1, num_classes - 1)
    # A power such as 500 · 10^-1 may come out a rounding error below the whole number that it is.
    return [int(largest * imbalance ** (-c / last) + 1e-6) for c in range(num_classes)]


def long_tailed(labels: Tensor, counts: list[int], split_seed: int) -> Tensor:
    """Indices of a random part with `counts` images of each class, or all of a class that has fewer; ascending.

    A larger count takes the same images and more, so sets of different imbalance are nested.

    Args:
        labels: int64, shape (n,).
        counts: of class 0, 1, ….
        split_seed: names the draw.
    """
    shuffled = torch.randperm(len(labels), generator=seeded_generator(split_seed, "long tail"))
    kept = [shuffled[labels[shuffled] == c][:count] for c, count in enumerate(counts)]
    return torch.cat(kept).sort().values
