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
or better, also inside autocast.

Logits have shape (N, C), batch first, and results are means over the batch. The four losses take logits of more
positions, too, by the same three keywords:

    class_dim: where the classes are, 1 as in (N, C, H, W) or -1 as in (N, T, C).
    mask: bool, the logits' shape without the classes; a position where it is False counts for nothing, whatever
        stands there, and its gradient is zero.
    reduction: "mean" over the positions that count, "sum" of them, or "none" for one value per position.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from advtrain.losses.shapes import DenseLogits, Mask, hard_labels, one_hot, prepared, reduced
from advtrain.types import Logits, PerImage


def kl(
    natural_logits: DenseLogits,
    adversarial_logits: DenseLogits,
    *,
    class_dim: int = 1,
    mask: Mask | None = None,
    reduction: str = "mean",
) -> Tensor:
    """KL(s_m || s_n), averaged over the batch; the gradient reaches both sides.

    Args:
        natural_logits: o_m, shape (N, C).
        adversarial_logits: o_n, shape (N, C).
        class_dim, mask, reduction: see the head of this module.

    Raises:
        ValueError: the shapes differ, or `class_dim`, `mask` or `reduction` does not fit.
    """
    natural_logits, adversarial_logits = prepared(natural_logits, adversarial_logits, class_dim=class_dim, mask=mask)
    natural_log, adversarial_log = natural_logits.log_softmax(class_dim), adversarial_logits.log_softmax(class_dim)
    divergence = F.kl_div(adversarial_log, natural_log, reduction="none", log_target=True).sum(class_dim)
    return reduced(divergence, mask, reduction)


def dkl(
    natural_logits: DenseLogits,
    adversarial_logits: DenseLogits,
    *,
    wmse_weight: float = 1.0,
    ce_weight: float = 1.0,
    class_dim: int = 1,
    mask: Mask | None = None,
    reduction: str = "mean",
) -> Tensor:
    """Decoupled KL (arXiv:2305.13948, theorem 1): with both weights 1, the gradient of `kl` and another value.

    It is `ikl` with both of its changes taken back: weights s_m, no gradient of the wMSE to the adversarial side. The
    natural side receives `wmse_weight` times KL's gradient, the adversarial side `ce_weight` times. Only first
    derivatives agree; value and Hessian do not.

    Args:
        class_dim, mask, reduction: see the head of this module.

    Raises:
        ValueError: the shapes differ, or `class_dim`, `mask` or `reduction` does not fit.
    """
    natural_logits, adversarial_logits = prepared(natural_logits, adversarial_logits, class_dim=class_dim, mask=mask)
    factors = natural_logits.detach().softmax(class_dim)
    wmse = weighted_mse(natural_logits, adversarial_logits.detach(), factors, class_dim)
    ce = soft_cross_entropy(natural_logits, adversarial_logits, class_dim)
    return reduced(wmse_weight * wmse + ce_weight * ce, mask, reduction)


def ikl(
    natural_logits: DenseLogits,
    adversarial_logits: DenseLogits,
    class_weights: DenseLogits,
    *,
    wmse_weight: float = 1.0,
    ce_weight: float = 1.0,
    break_asymmetry: bool = True,
    class_dim: int = 1,
    mask: Mask | None = None,
    reduction: str = "mean",
) -> Tensor:
    """Improved KL (arXiv:2305.13948, section 3): wMSE drives both sides and weighs pairs by class-wise knowledge.

    Args:
        natural_logits: o_m, shape (N, C).
        adversarial_logits: o_n, shape (N, C).
        class_weights: p, shape (N, C), non-negative, constant: for each image the mean prediction for its true class
            (`ClassPrior`), or softmax(o_m) for the variant without global information.
        wmse_weight: multiplies ¼ Σ_jk p_j p_k (d_j - d_k)².
        ce_weight: multiplies the soft cross-entropy.
        break_asymmetry: whether the wMSE drives the adversarial side, too; False is the stop-gradient of `dkl`.
        class_dim, mask, reduction: see the head of this module.

    Raises:
        ValueError: the shapes differ, or `class_dim`, `mask` or `reduction` does not fit.
    """
    natural_logits, adversarial_logits, class_weights = prepared(
        natural_logits, adversarial_logits, class_weights, class_dim=class_dim, mask=mask
    )
    target = adversarial_logits if break_asymmetry else adversarial_logits.detach()
    wmse = weighted_mse(natural_logits, target, class_weights, class_dim)
    ce = soft_cross_entropy(natural_logits, adversarial_logits, class_dim)
    return reduced(wmse_weight * wmse + ce_weight * ce, mask, reduction)


def gkl(
    natural_logits: DenseLogits,
    adversarial_logits: DenseLogits,
    class_weights: DenseLogits,
    *,
    gamma: float = 1.0,
    wmse_weight: float = 1.0,
    ce_weight: float = 1.0,
    mean_weight: Tensor | None = None,
    break_asymmetry: bool = True,
    class_dim: int = 1,
    mask: Mask | None = None,
    reduction: str = "mean",
) -> Tensor:
    """Generalized KL (arXiv:2503.08038 and its published code): `ikl` with weights q = p^γ, normalised over the batch.

    wMSE = Σ_n ¼ Σ_jk q_nj q_nk (d_nj - d_nk)² / Σ_n (Σ_j q_nj)². γ = 1 with rows of p that sum to 1 is `ikl`; γ = 0
    weighs all pairs alike. (`ikl` with class_weights q / Σ_j q_j is the variant in which every image has a normaliser
    of its own.)

    Args:
        natural_logits, adversarial_logits, class_weights, wmse_weight, ce_weight, break_asymmetry: as for `ikl`.
        gamma: γ ≥ 0.
        mean_weight: scalar, the mean of (Σ_j q_nj)² over the whole batch, when these rows are only a part of it (one
            process of several, or one accumulation pass); from these rows when not given. See `pair_weights`.
        class_dim, mask, reduction: see the head of this module.

    Raises:
        ValueError: γ < 0, the shapes differ, or `class_dim`, `mask` or `reduction` does not fit.
    """
    natural_logits, adversarial_logits, class_weights = prepared(
        natural_logits, adversarial_logits, class_weights, class_dim=class_dim, mask=mask
    )
    factors = power(class_weights.detach(), gamma)
    if mean_weight is None:
        mean_weight = reduced(pair_weights(factors, class_dim), mask)
    target = adversarial_logits if break_asymmetry else adversarial_logits.detach()
    wmse = reduced(weighted_mse(natural_logits, target, factors, class_dim), mask, reduction)
    # Where no position counts both are 0, and so is their ratio.
    wmse = wmse / mean_weight.to(wmse.dtype).clamp_min(torch.finfo(wmse.dtype).tiny)
    ce = reduced(soft_cross_entropy(natural_logits, adversarial_logits, class_dim), mask, reduction)
    return wmse_weight * wmse + ce_weight * ce


def kl_per_image(natural_logits: Logits, adversarial_logits: Logits) -> PerImage:
    """KL(s_m || s_n) of each image, shape (N,)."""
    return kl(natural_logits, adversarial_logits, reduction="none")


def ikl_per_image(
    natural_logits: Logits,
    adversarial_logits: Logits,
    class_weights: Logits,
    *,
    wmse_weight: float = 1.0,
    ce_weight: float = 1.0,
) -> PerImage:
    """`ikl` of each image, shape (N,)."""
    return ikl(
        natural_logits,
        adversarial_logits,
        class_weights,
        wmse_weight=wmse_weight,
        ce_weight=ce_weight,
        reduction="none",
    )


def margin_per_image(logits: Logits, y: Tensor) -> PerImage:
    """max_{j≠y} o_j - o_y of each image, shape (N,): positive where the prediction is wrong (Carlini & Wagner, 2017).

    Raises:
        ValueError: there are fewer than two classes, or the labels are soft.
    """
    if logits.shape[1] < 2:
        raise ValueError(f"expected logits of at least 2 classes, got shape {tuple(logits.shape)}")
    (logits,) = prepared(logits)
    own = one_hot(hard_labels(y, "the margin"), logits.shape[1], torch.bool)
    others = logits.masked_fill(own, -torch.inf)
    return others.amax(1) - logits.gather(1, y[:, None])[:, 0]


def cross_entropy_per_image(logits: Logits, y: Tensor, label_smoothing: float = 0.0) -> PerImage:
    """Cross-entropy of each image, shape (N,), with labels `y`: whole numbers (N,) or probabilities (N, C).

    `label_smoothing` ε takes the labels to (1 - ε) y + ε / C (Szegedy et al., arXiv:1512.00567, section 7). Codes that
    spread s over the C - 1 other classes mean ε = s · C / (C - 1).
    """
    (logits,) = prepared(logits)
    targets = y.to(logits.dtype) if y.is_floating_point() else y
    return F.cross_entropy(logits, targets, reduction="none", label_smoothing=label_smoothing)


def soft_cross_entropy(natural_logits: DenseLogits, adversarial_logits: DenseLogits, class_dim: int = 1) -> DenseLogits:
    """-Σ_j sg(s_m^j) log s_n^j of each position, shape (N,) for logits (N, C)."""
    predictions = natural_logits.detach().softmax(class_dim)
    return -(predictions * adversarial_logits.log_softmax(class_dim)).sum(class_dim)


def weighted_mse(
    natural_logits: DenseLogits, adversarial_logits: DenseLogits, factors: DenseLogits, class_dim: int = 1
) -> DenseLogits:
    """¼ Σ_jk p_j p_k (d_j - d_k)² of each position in closed form; `factors` p, of the logits' shape, are constant."""
    factors = factors.detach()
    difference = _anchored(natural_logits, class_dim) - _anchored(adversarial_logits, class_dim)
    total = factors.sum(class_dim, keepdim=True)
    # A row of zeros weighs nothing; without the clamp it would be 0/0.
    mean = (factors * difference).sum(class_dim, keepdim=True) / total.clamp_min(torch.finfo(total.dtype).tiny)
    return 0.5 * total.squeeze(class_dim) * (factors * (difference - mean).square()).sum(class_dim)


def power(class_weights: DenseLogits, gamma: float) -> DenseLogits:
    """p^γ as exp(γ log p), in float32 or better; γ = 0 gives ones, also where p = 0.

    Raises:
        ValueError: γ < 0.
    """
    if gamma < 0:
        raise ValueError(f"gamma: expected a number of at least 0, got {gamma}; 1 is IKL, 0 uniform weights")
    class_weights = class_weights.to(torch.promote_types(class_weights.dtype, torch.float32))
    if gamma == 0:
        return torch.ones_like(class_weights)
    return torch.exp(gamma * class_weights.log())


def pair_weights(factors: DenseLogits, class_dim: int = 1) -> DenseLogits:
    """(Σ_j q_j)² of each position, shape (N,) for factors (N, C): the total weight of its pairs."""
    return factors.sum(class_dim).square()


def _anchored(logits: Tensor, class_dim: int) -> Tensor:
    # The loss ignores what is common to a row. Taking it out before the difference is formed keeps float32 exact for
    # logits far from zero: floats within a factor of two of each other subtract without rounding.
    return logits - logits.detach().amax(class_dim, keepdim=True)


def dlr_per_image(logits: Logits, y: Tensor) -> PerImage:
    """(max_{j≠y} o_j - o_y) / (o_π1 - o_π3) of each image, shape (N,), with logits sorted o_π1 ≥ o_π2 ≥ o_π3.

    The difference of logits ratio (Croce & Hein, arXiv:2003.01690), invariant to shift and scale of the logits;
    positive where the prediction is wrong. Zero, with gradient zero, where the three largest logits are equal.

    Raises:
        ValueError: there are fewer than three classes.
    """
    if logits.shape[1] < 3:
        raise ValueError(f"expected logits of at least 3 classes, got shape {tuple(logits.shape)}")
    (logits,) = prepared(logits)
    top = logits.topk(3, dim=1).values
    spread = top[:, 0] - top[:, 2]
    flat = spread == 0
    return (margin_per_image(logits, y) / spread.where(~flat, 1)).where(~flat, 0)
