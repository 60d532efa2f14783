"""MART: boosted cross-entropy, and a KL term that counts most where the natural image is misclassified."""

import torch
from torch import Tensor, nn

from advtrain import checks
from advtrain.losses.base import Loss, accuracies
from advtrain.losses.functional import cross_entropy_per_image, kl_per_image
from advtrain.losses.shapes import hard_labels, one_hot
from advtrain.types import Images, Logits, Parts, PerImage, Targets


class MART(Loss):
    """BCE(f(x'), y) + λ (1 - p_y(x)) KL(f(x) || f(x')), with p = softmax(f) and the gradient through all of it.

    Wang et al., "Improving Adversarial Robustness Requires Revisiting Misclassified Examples", ICLR 2020, eq. 8 to 11.
    The natural images have no cross-entropy of their own. The published code adds 1e-4 inside the second logarithm of
    the boosted cross-entropy, which caps it at 9.2; this is the formula of the paper, without a cap. Its terms ask for
    the strongest of the wrong classes and the probability of the true one: labels are whole numbers, not smoothed.

    Args:
        weight: λ (published code: beta).
        inner: what the attack maximises, one of ce (the paper), kl, margin.
    """

    def __init__(self, *, weight: float = 5.0, inner: str = "ce") -> None:
        super().__init__(inner=inner)
        self.weight = checks.number("loss.weight", weight, low=0)

    def outer(self, model: nn.Module, x: Images, x_adv: Images, y: Targets) -> tuple[Tensor, Parts]:
        # Adversarial images first, as in `Regularised`: the natural statistics enter BatchNorm's averages last.
        adversarial_logits = model(x_adv)
        natural_logits = model(x)
        bce = boosted_cross_entropy_per_image(adversarial_logits, y).mean()
        doubt = -torch.expm1(-cross_entropy_per_image(natural_logits, y))  # 1 - p_y(x), exact also where p_y is near 1
        mart = self.weight * (doubt * kl_per_image(natural_logits, adversarial_logits)).mean()
        total = bce + mart
        parts = {"loss": total.detach(), "bce": bce.detach(), "mart": mart.detach()}
        return total, parts | accuracies(y, natural_logits, adversarial_logits)

    def formula(self) -> str:
        return f"CE(f(x'), y) - log(1 - max_j≠y p_j(x')) + {self.weight:g} (1 - p_y(x)) KL(f(x) || f(x'))"


def boosted_cross_entropy_per_image(logits: Logits, y: Targets) -> PerImage:
    """-log p_y - log(1 - max_{j≠y} p_j) of each image, shape (N,) (MART, eq. 8).

    Raises:
        ValueError: there are fewer than two classes, or the labels are soft.
    """
    if logits.shape[1] < 2:
        raise ValueError(f"expected logits of at least 2 classes, got shape {tuple(logits.shape)}")
    log_p = logits.to(torch.promote_types(logits.dtype, torch.float32)).log_softmax(1)
    own = one_hot(hard_labels(y, "MART"), logits.shape[1], torch.bool)
    strongest = log_p.detach().masked_fill(own, -torch.inf).argmax(1, keepdim=True)
    # 1 - p_k is the sum of the others. Formed so, it keeps its digits where p_k is close to 1.
    rest = log_p.scatter(1, strongest, -torch.inf).logsumexp(1)
    return cross_entropy_per_image(logits, y) - rest
