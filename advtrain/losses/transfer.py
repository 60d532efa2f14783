"""What a student's logits are held to, as pure tensor functions: `kd`, `ikl_kd`.

Notation: o_m the teacher's logits, a constant everywhere here; o_n the student's; s(T) = softmax(o / T); N images, C
classes. Shapes are (N, C), results are means over the batch, computed in float32 or better, also inside autocast; the
gradient reaches the student alone. For the terms of the KL family see `advtrain.losses.functional`.
"""

from advtrain.losses import functional
from advtrain.losses.shapes import prepared, reduced
from advtrain.types import Logits, Scalar


def kd(teacher_logits: Logits, student_logits: Logits, *, temperature: float = 4.0) -> Scalar:
    """T² KL(s_m(T) || s_n(T)) (Hinton et al., arXiv:1503.02531, section 2).

    Up to a constant, the teacher's entropy, it is T² times the soft cross-entropy at temperature T.

    Raises:
        ValueError: the shapes differ.
    """
    teacher_logits, student_logits = prepared(teacher_logits.detach(), student_logits)
    return temperature**2 * functional.kl(teacher_logits / temperature, student_logits / temperature)


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
    target = student_logits if break_asymmetry else student_logits.detach()
    wmse = functional.weighted_mse(teacher_logits, target, class_weights)
    ce = functional.soft_cross_entropy(teacher_logits / temperature, student_logits / temperature)
    return reduced(wmse_weight * wmse + ce_weight * ce)
