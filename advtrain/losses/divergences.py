"""Distances between two predictions: what TRADES can put between f(x) and f(x').

All are functions of s = softmax(o) alone, zero only where the predictions are equal, and their gradient reaches both
sides. Shapes, `class_dim`, `mask` and `reduction` are as in `advtrain.losses.functional`.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from advtrain.losses.functional import kl
from advtrain.losses.shapes import DenseLogits, Mask, prepared, reduced


def reverse_kl(
    natural_logits: DenseLogits,
    adversarial_logits: DenseLogits,
    *,
    class_dim: int = 1,
    mask: Mask | None = None,
    reduction: str = "mean",
) -> Tensor:
    """KL(s_n || s_m): `kl` with the sides exchanged, so that it is large where x' is certain of another class."""
    return kl(adversarial_logits, natural_logits, class_dim=class_dim, mask=mask, reduction=reduction)


def js(
    natural_logits: DenseLogits,
    adversarial_logits: DenseLogits,
    *,
    class_dim: int = 1,
    mask: Mask | None = None,
    reduction: str = "mean",
) -> Tensor:
    """Jensen-Shannon divergence ½ KL(s_m || M) + ½ KL(s_n || M) with M = (s_m + s_n) / 2: symmetric, at most log 2.

    Lin, "Divergence measures based on the Shannon entropy", IEEE Transactions on Information Theory 37 (1991), eq. 4.1.
    """
    natural_logits, adversarial_logits = prepared(natural_logits, adversarial_logits, class_dim=class_dim, mask=mask)
    natural_log, adversarial_log = natural_logits.log_softmax(class_dim), adversarial_logits.log_softmax(class_dim)
    middle_log = torch.logaddexp(natural_log, adversarial_log) - math.log(2)
    terms = natural_log.exp() * (natural_log - middle_log) + adversarial_log.exp() * (adversarial_log - middle_log)
    return reduced(0.5 * terms.sum(class_dim), mask, reduction)


def squared(
    natural_logits: DenseLogits,
    adversarial_logits: DenseLogits,
    *,
    class_dim: int = 1,
    mask: Mask | None = None,
    reduction: str = "mean",
) -> Tensor:
    """Σ_j (s_m^j - s_n^j)², a sum over the classes: the regulariser of SCORE, at most 2.

    Pang et al., "Robustness and Accuracy Could Be Reconcilable by (Proper) Definition", ICML 2022, arXiv:2202.10103,
    as in its published code.
    """
    natural_logits, adversarial_logits = prepared(natural_logits, adversarial_logits, class_dim=class_dim, mask=mask)
    difference = natural_logits.softmax(class_dim) - adversarial_logits.softmax(class_dim)
    return reduced(difference.square().sum(class_dim), mask, reduction)


# The words of loss.divergence.
DIVERGENCES: dict[str, Callable[..., Tensor]] = {"kl": kl, "reverse_kl": reverse_kl, "js": js, "squared": squared}
