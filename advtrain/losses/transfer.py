"""What a student's logits are held to, as pure tensor functions: `kd`, `dkd`, `ikl_kd`, `gkl_kd`.

Notation: o_m the teacher's logits, a constant everywhere here; o_n the student's; s(T) = softmax(o / T); N images, C
classes. Shapes are (N, C), results are means over the batch, computed in float32 or better, also inside autocast; the
gradient reaches the student alone. For the terms of the KL family see `advtrain.losses.functional`.
"""

import torch
from torch import Tensor

from advtrain.losses import functional
from advtrain.losses.shapes import DenseLogits, hard_labels, prepared, reduced
from advtrain.types import Logits, PerImage, Scalar


def kd(teacher_logits: Logits, student_logits: Logits, *, temperature: float = 4.0) -> Scalar:
    """T² KL(s_m(T) || s_n(T)) (Hinton et al., arXiv:1503.02531, section 2).

    Up to a constant, the teacher's entropy, it is T² times the soft cross-entropy at temperature T.

    Raises:
        ValueError: the shapes differ.
    """
    teacher_logits, student_logits = prepared(teacher_logits.detach(), student_logits)
    return temperature**2 * functional.kl(teacher_logits / temperature, student_logits / temperature)


def dkd(
    teacher_logits: Logits,
    student_logits: Logits,
    y: Tensor,
    *,
    alpha: float = 1.0,
    beta: float = 8.0,
    temperature: float = 4.0,
) -> Scalar:
    """T² (α TCKD + β NCKD): decoupled knowledge distillation (Zhao et al., CVPR 2022, arXiv:2203.08679, section 3).

    TCKD is the KL of "the true class or another", (s^y, 1 - s^y); NCKD that of the other classes among themselves,
    s^j / (1 - s^y) for j ≠ y; s at temperature T on both sides. With α = 1 and, image by image, β = 1 - s_m^y this is
    `kd` (their equation 5).

    Args:
        teacher_logits: o_m, shape (N, C).
        student_logits: o_n, shape (N, C).
        y: labels, whole numbers, shape (N,).
        alpha, beta: weights of the two.
        temperature: T.

    Raises:
        ValueError: the shapes differ, there are fewer than two classes, or the labels are soft.
    """
    teacher_logits, student_logits = prepared(teacher_logits.detach(), student_logits)
    if teacher_logits.shape[1] < 2:
        raise ValueError(f"expected logits of at least 2 classes, got shape {tuple(teacher_logits.shape)}")
    y = hard_labels(y, "decoupled distillation")
    (m_binary, m_others), (n_binary, n_others) = (
        _target_and_others(logits / temperature, y) for logits in (teacher_logits, student_logits)
    )
    tckd, nckd = functional.kl(m_binary, n_binary), functional.kl(m_others, n_others)
    return temperature**2 * (alpha * tckd + beta * nckd)


def ikl_kd(
    teacher_logits: Logits,
    student_logits: Logits,
    class_weights: Logits,
    *,
    wmse_weight: float = 1.0,
    ce_weight: float = 1.0,
    temperature: float = 1.0,
    break_asymmetry: bool = True,
) -> Scalar:
    """IKL of a teacher and its student (arXiv:2305.13948, section 3): `functional.ikl` with a soft CE at temperature T.

    Args:
        teacher_logits: o_m, shape (N, C).
        student_logits: o_n, shape (N, C).
        class_weights: p, shape (N, C), non-negative, constant.
        wmse_weight: multiplies ¼ Σ_jk p_j p_k (d_j - d_k)², d = o_m - o_n, of the raw logits, whatever T is.
        ce_weight: multiplies -Σ_j s_m^j(T) log s_n^j(T). The published code has no factor T² here; for the one of
            `kd` multiply this weight by it.
        temperature: T of the soft cross-entropy.
        break_asymmetry: whether the wMSE drives the student. Since the teacher is a constant, without it the wMSE
            drives nothing, and the gradient is that of the soft cross-entropy alone.

    Raises:
        ValueError: the shapes differ.
    """
    teacher_logits, student_logits, class_weights = prepared(teacher_logits.detach(), student_logits, class_weights)
    wmse, ce = _both_terms(teacher_logits, student_logits, class_weights, temperature, break_asymmetry)
    return reduced(wmse_weight * wmse + ce_weight * ce)


def gkl_kd(
    teacher_logits: Logits,
    student_logits: Logits,
    class_weights: Logits,
    *,
    gamma: float = 1.0,
    wmse_weight: float = 1.0,
    ce_weight: float = 1.0,
    temperature: float = 1.0,
    mean_weight: Tensor | None = None,
    break_asymmetry: bool = True,
) -> Scalar:
    """GKL of a teacher and its student (arXiv:2503.08038 and its published code): `functional.gkl` with a soft CE at T.

    As `ikl_kd`, with weights q = p^γ and the pair sums of a batch divided by their total weight Σ_n (Σ_j q_nj)². γ = 1
    with rows of p that sum to 1 is `ikl_kd`; γ = 0 weighs all pairs alike.

    Args:
        teacher_logits, student_logits, class_weights, wmse_weight, ce_weight, temperature, break_asymmetry: as for
            `ikl_kd`.
        gamma: γ ≥ 0.
        mean_weight: scalar, the mean of (Σ_j q_nj)² over the whole batch, where these rows are only a part of it.

    Raises:
        ValueError: γ < 0, or the shapes differ.
    """
    teacher_logits, student_logits, class_weights = prepared(teacher_logits.detach(), student_logits, class_weights)
    factors = functional.power(class_weights.detach(), gamma)
    if mean_weight is None:
        mean_weight = reduced(functional.pair_weights(factors))
    wmse, ce = _both_terms(teacher_logits, student_logits, factors, temperature, break_asymmetry)
    return wmse_weight * reduced(wmse) / mean_weight.to(wmse.dtype) + ce_weight * reduced(ce)


def _both_terms(
    teacher_logits: Logits, student_logits: Logits, factors: Logits, temperature: float, break_asymmetry: bool
) -> tuple[PerImage, PerImage]:
    """The wMSE of the raw logits and the soft cross-entropy at temperature T."""
    target = student_logits if break_asymmetry else student_logits.detach()
    wmse = functional.weighted_mse(teacher_logits, target, factors)
    return wmse, functional.soft_cross_entropy(teacher_logits / temperature, student_logits / temperature)


def _target_and_others(logits: Logits, y: Tensor) -> tuple[DenseLogits, DenseLogits]:
    """Logits of (s^y, 1 - s^y), shape (N, 2), and of the C - 1 other classes among themselves, shape (N, C - 1).

    No probability is formed, so 1 - s^y is exact where it is far below the precision of s^y, and no logit is moved out
    of the way by a large constant.
    """
    others = torch.arange(logits.shape[1] - 1, device=y.device).expand(len(y), -1)
    rest = logits.gather(1, others + (others >= y[:, None]))  # all classes but y
    return torch.cat([logits.gather(1, y[:, None]), rest.logsumexp(1, keepdim=True)], 1), rest
