"""The KL divergence as the regulariser: the baseline of the IKL ablation."""

from advtrain import checks
from advtrain.losses import functional
from advtrain.losses.regularised import Regularised
from advtrain.types import Logits, Scalar, Targets


class KL(Regularised):
    """CE(f(x), y) + weight · KL(f(x) || f(x')): TRADES under the IKL paper's name and default.

    Cui et al., arXiv:2305.13948, the row "KL" of the ablation: weight 9 on CIFAR-100.

    Args:
        kl_weight: multiplies the divergence.
        inner: what the attack maximises, one of ce, kl, margin.
        label_smoothing: ε of the natural cross-entropy.
        second_view_weight: weight of the regulariser on the second view; None for one view.
    """

    regulariser_name = "kl"

    def __init__(
        self,
        *,
        kl_weight: float = 9.0,
        inner: str = "kl",
        label_smoothing: float = 0.0,
        second_view_weight: float | None = None,
    ) -> None:
        super().__init__(inner=inner, label_smoothing=label_smoothing, second_view_weight=second_view_weight)
        self.kl_weight = checks.number("loss.kl_weight", kl_weight, low=0)

    def regulariser(self, natural_logits: Logits, adversarial_logits: Logits, y: Targets) -> Scalar:
        return self.kl_weight * functional.kl(natural_logits, adversarial_logits)

    def regulariser_formula(self) -> str:
        return f"{self.kl_weight:g} KL(f(x) || f(x'))"
