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


def kd(m: Tensor, n: Tensor, temperature: float) -> Tensor:
    """T² KL(s_m(T) || s_n(T)) of one image."""
    return temperature**2 * kl(m / temperature, n / temperature)


def dkd(m: Tensor, n: Tensor, label: int, alpha: float, beta: float, temperature: float) -> Tensor:
    """T² (α TCKD + β NCKD) of one image, by the probabilities of arXiv:2203.08679, section 3.1."""
    s, q = softmax(m / temperature), softmax(n / temperature)
    other_s, other_q = (sum(p for j, p in enumerate(row) if j != label) for row in (s, q))
    target = s[label] * (s[label] / q[label]).log() + other_s * (other_s / other_q).log()
    others = [
        a / other_s * ((a / other_s) / (b / other_q)).log()
        for j, (a, b) in enumerate(zip(s, q, strict=True))
        if j != label
    ]
    return temperature**2 * (alpha * target + beta * sum(others))
