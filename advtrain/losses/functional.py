"""The KL family of losses as pure tensor functions: `kl`, `dkl`, `ikl`, `gkl`.

Notation (Cui et al., "Decoupled Kullback-Leibler Divergence Loss", NeurIPS 2024, arXiv:2305.13948; Cui et al.,
"Generalized Kullback-Leibler Divergence Loss", arXiv:2503.08038): natural (or teacher) logits o_m, adversarial (or
student) logits o_n, s = softmax(o), d = o_m - o_n, N images, C classes, sg = stop-gradient. All but `kl` are sums of

    wMSE = ¼ Σ_jk p_j p_k (d_j - d_k)²     and     soft cross-entropy = -Σ_j sg(s_m^j) log s_n^j .

The weights of the two terms are named for what they multiply, since the two sources disagree: `wmse_weight` is the
published code's `beta` and the paper's α; `ce_weight` is the published code's `alpha` and the paper's β. (The paper's
"α/4 = 5, β = 4" and the code's `alpha=4, beta=20` are both `wmse_weight=20, ce_weight=4`.)

The pair sum is never formed. With W = Σ_j p_j and the weighted mean d̄ = Σ_j p_j d_j / W it equals, in value and in
gradient, half a weighted variance: (W/2) Σ_j p_j (d_j - d̄)², which costs O(N·C). Everything is computed in float32
or better, also inside autocast. Logits have shape (N, C), batch first; results are scalars, means over the batch.
"""

from functools import reduce

import torch
import torch.nn.functional as F
from torch import Tensor

from advtrain.types import Logits, PerImage, Scalar


def kl(natural_logits: Logits, adversarial_logits: Logits) -> Scalar:
    """KL(s_m || s_n), averaged over the batch; the gradient reaches both sides.

    Args:
        natural_logits: o_m, shape (N, C).
        adversarial_logits: o_n, shape (N, C).

    Raises:
        ValueError: the shapes differ or are not (N, C).
    """
    return kl_per_image(natural_logits, adversarial_logits).mean()


def dkl(
    natural_logits: Logits, adversarial_logits: Logits, *, wmse_weight: float = 1.0, ce_weight: float = 1.0
) -> Scalar:
    """Decoupled KL (arXiv:2305.13948, theorem 1): with both weights 1, the gradient of `kl` and another value.

    The natural side receives `wmse_weight` times KL's gradient, the adversarial side `ce_weight` times. Only first
    derivatives agree; value and Hessian do not.

    Raises:
        ValueError: the shapes differ or are not (N, C).
    """
    natural_logits, adversarial_logits = _prepared(natural_logits, adversarial_logits)
    factors = natural_logits.detach().softmax(1)
    wmse = weighted_mse(natural_logits, adversarial_logits.detach(), factors)
    return (wmse_weight * wmse + ce_weight * soft_cross_entropy(natural_logits, adversarial_logits)).mean()


def ikl(
    natural_logits: Logits,
    adversarial_logits: Logits,
    class_weights: Logits,
    *,
    wmse_weight: float = 1.0,
    ce_weight: float = 1.0,
) -> Scalar:
    """Improved KL (arXiv:2305.13948, section 3): wMSE drives both sides and weighs pairs by class-wise knowledge.

    Args:
        natural_logits: o_m, shape (N, C).
        adversarial_logits: o_n, shape (N, C).
        class_weights: p, shape (N, C), non-negative, constant: for each image the mean prediction for its true class
            (`ClassPrior`), or softmax(o_m) for the variant without global information.
        wmse_weight: multiplies ¼ Σ_jk p_j p_k (d_j - d_k)².
        ce_weight: multiplies the soft cross-entropy.

    Raises:
        ValueError: the shapes differ or are not (N, C).
    """
    return ikl_per_image(
        natural_logits, adversarial_logits, class_weights, wmse_weight=wmse_weight, ce_weight=ce_weight
    ).mean()


def gkl(
    natural_logits: Logits,
    adversarial_logits: Logits,
    class_weights: Logits,
    *,
    gamma: float = 1.0,
    wmse_weight: float = 1.0,
    ce_weight: float = 1.0,
    mean_weight: Tensor | None = None,
) -> Scalar:
    """Generalized KL (arXiv:2503.08038 and its published code): `ikl` with weights q = p^γ, normalised over the batch.

    wMSE = Σ_n ¼ Σ_jk q_nj q_nk (d_nj - d_nk)² / Σ_n (Σ_j q_nj)². γ = 1 with rows of p that sum to 1 is `ikl`; γ = 0
    weighs all pairs alike.

    Args:
        natural_logits, adversarial_logits, class_weights, wmse_weight, ce_weight: as for `ikl`.
        gamma: γ ≥ 0.
        mean_weight: scalar, the mean of (Σ_j q_nj)² over the whole batch, when these rows are only a part of it (one
            process of several, or one accumulation pass); from these rows when not given. See `pair_weights`.

    Raises:
        ValueError: the shapes differ or are not (N, C), or γ < 0.
    """
    natural_logits, adversarial_logits, class_weights = _prepared(natural_logits, adversarial_logits, class_weights)
    factors = power(class_weights.detach(), gamma)
    if mean_weight is None:
        mean_weight = pair_weights(factors).mean()
    wmse = weighted_mse(natural_logits, adversarial_logits, factors).mean()
    wmse = wmse / mean_weight.to(wmse.dtype)
    return wmse_weight * wmse + ce_weight * soft_cross_entropy(natural_logits, adversarial_logits).mean()


def kl_per_image(natural_logits: Logits, adversarial_logits: Logits) -> PerImage:
    """KL(s_m || s_n) of each image, shape (N,)."""
    natural_logits, adversarial_logits = _prepared(natural_logits, adversarial_logits)
    natural_log, adversarial_log = natural_logits.log_softmax(1), adversarial_logits.log_softmax(1)
    return F.kl_div(adversarial_log, natural_log, reduction="none", log_target=True).sum(1)


def ikl_per_image(
    natural_logits: Logits,
    adversarial_logits: Logits,
    class_weights: Logits,
    *,
    wmse_weight: float = 1.0,
    ce_weight: float = 1.0,
) -> PerImage:
    """`ikl` of each image, shape (N,)."""
    natural_logits, adversarial_logits, class_weights = _prepared(natural_logits, adversarial_logits, class_weights)
    wmse = weighted_mse(natural_logits, adversarial_logits, class_weights)
    return wmse_weight * wmse + ce_weight * soft_cross_entropy(natural_logits, adversarial_logits)


def margin_per_image(logits: Logits, y: Tensor) -> PerImage:
    """max_{j≠y} o_j - o_y of each image, shape (N,): positive where the prediction is wrong (Carlini & Wagner, 2017).

    Raises:
        ValueError: there are fewer than two classes.
    """
    if logits.shape[1] < 2:
        raise ValueError(f"expected logits of at least 2 classes, got shape {tuple(logits.shape)}")
    (logits,) = _prepared(logits)
    others = logits.masked_fill(F.one_hot(y, logits.shape[1]).bool(), -torch.inf)
    return others.amax(1) - logits.gather(1, y[:, None])[:, 0]


def cross_entropy_per_image(logits: Logits, y: Tensor) -> PerImage:
    """Cross-entropy with the labels `y`, shape (N,), of each image, shape (N,)."""
    (logits,) = _prepared(logits)
    return F.cross_entropy(logits, y, reduction="none")


def soft_cross_entropy(natural_logits: Logits, adversarial_logits: Logits) -> PerImage:
    """-Σ_j sg(s_m^j) log s_n^j of each image, shape (N,)."""
    return -(natural_logits.detach().softmax(1) * adversarial_logits.log_softmax(1)).sum(1)


def weighted_mse(natural_logits: Logits, adversarial_logits: Logits, factors: Logits) -> PerImage:
    """¼ Σ_jk p_j p_k (d_j - d_k)² of each image in closed form; `factors` p, shape (N, C), is held constant."""
    factors = factors.detach()
    difference = _anchored(natural_logits) - _anchored(adversarial_logits)
    total = factors.sum(1, keepdim=True)
    # A row of zeros weighs nothing; without the clamp it would be 0/0.
    mean = (factors * difference).sum(1, keepdim=True) / total.clamp_min(torch.finfo(total.dtype).tiny)
    return 0.5 * total[:, 0] * (factors * (difference - mean).square()).sum(1)


def power(class_weights: Logits, gamma: float) -> Logits:
    """p^γ as exp(γ log p), in float32 or better; γ = 0 gives ones, also where p = 0.

    Raises:
        ValueError: γ < 0.
    """
    if gamma < 0:
        raise ValueError(f"gamma: expected a number of at least 0, got {gamma}; 1 is IKL, 0 uniform weights")
    (class_weights,) = _prepared(class_weights)
    if gamma == 0:
        return torch.ones_like(class_weights)
    return torch.exp(gamma * class_weights.log())


def pair_weights(factors: Logits) -> PerImage:
    """(Σ_j q_j)² of each image, shape (N,): the total weight of its pairs."""
    return factors.sum(1).square()


def _anchored(logits: Tensor) -> Tensor:
    # The loss ignores what is common to a row. Taking it out before the difference is formed keeps float32 exact for
    # logits far from zero: floats within a factor of two of each other subtract without rounding.
    return logits - logits.detach().amax(1, keepdim=True)


def _prepared(*tensors: Tensor) -> tuple[Tensor, ...]:
    """The tensors in their common type, float32 or better, after a check that all are (N, C) and alike."""
    shapes = [tuple(t.shape) for t in tensors]
    if len(shapes[0]) != 2 or any(shape != shapes[0] for shape in shapes):
        raise ValueError(f"expected tensors of one shape (N, C), got {', '.join(map(str, shapes))}")
    dtype = reduce(torch.promote_types, (t.dtype for t in tensors), torch.float32)
    return tuple(t.to(dtype) for t in tensors)


def dlr_per_image(logits: Logits, y: Tensor) -> PerImage:
    """(max_{j≠y} o_j - o_y) / (o_π1 - o_π3) of each image, shape (N,), with logits sorted o_π1 ≥ o_π2 ≥ o_π3.

    The difference of logits ratio (Croce & Hein, arXiv:2003.01690), invariant to shift and scale of the logits;
    positive where the prediction is wrong. Zero, with gradient zero, where the three largest logits are equal.

    Raises:
        ValueError: there are fewer than three classes.
    """
    if logits.shape[1] < 3:
        raise ValueError(f"expected logits of at least 3 classes, got shape {tuple(logits.shape)}")
    (logits,) = _prepared(logits)
    top = logits.topk(3, dim=1).values
    spread = top[:, 0] - top[:, 2]
    flat = spread == 0
    return (margin_per_image(logits, y) / spread.where(~flat, 1)).where(~flat, 0)
