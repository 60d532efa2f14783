"""The terms of the KL family for one image, by loops over classes and pairs, differentiable."""

from itertools import product

from torch import Tensor


def softmax(row: Tensor) -> list[Tensor]:
    total = sum(o.exp() for o in row)
    return [o.exp() / total for o in row]


def kl(m: Tensor, n: Tensor) -> Tensor:
    """KL(s_m || s_n) of one image."""
    return sum(a * (a / b).log() for a, b in zip(softmax(m), softmax(n), strict=True))


def pairs(p: list[float], m: Tensor, n: Tensor) -> Tensor:
    """¼ Σ_jk p_j p_k (d_j - d_k)² of one image."""
    d = m - n
    return 0.25 * sum(p[j] * p[k] * (d[j] - d[k]) ** 2 for j, k in product(range(len(p)), repeat=2))


def soft_ce(m: Tensor, n: Tensor) -> Tensor:
    return -sum(a.detach() * b.log() for a, b in zip(softmax(m), softmax(n), strict=True))
