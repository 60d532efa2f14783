"""DKL: KL taken apart into a weighted MSE and a soft cross-entropy, each with a weight of its own."""

from advtrain.losses import functional
from advtrain.losses.decoupled import Decoupled
from advtrain.types import Logits, Scalar, Targets


class DKL(Decoupled):
    """CE(f(x), y) + DKL(f(x), f(x')); see `advtrain.losses.functional.dkl`.

    Cui et al., "Decoupled Kullback-Leibler Divergence Loss", NeurIPS 2024, arXiv:2305.13948, theorem 1. Both weights
    equal to w is `loss=kl loss.kl_weight=w`, gradient for gradient. It is IKL with both switches off.

    Args:
        wmse_weight: multiplies ¼ Σ_jk s_j s_k (d_j - d_k)² (published code: beta).
        ce_weight: multiplies the soft cross-entropy (published code: alpha).
        inner: what the attack maximises, one of ce, kl, margin, ikl (with weights softmax f(x)).
        label_smoothing: ε of the natural cross-entropy.
        second_view_weight: weight of DKL on the second view; None for one view.
    """

    regulariser_name = "dkl"

    def __init__(
        self,
        *,
        wmse_weight: float = 20.0,
        ce_weight: float = 4.0,
        inner: str = "kl",
        label_smoothing: float = 0.0,
        second_view_weight: float | None = None,
    ) -> None:
        super().__init__(
            wmse_weight=wmse_weight,
            ce_weight=ce_weight,
            break_asymmetry=False,
            prior=None,
            inner=inner,
            label_smoothing=label_smoothing,
            second_view_weight=second_view_weight,
        )

    def regulariser(self, natural_logits: Logits, adversarial_logits: Logits, y: Targets) -> Scalar:
        return functional.dkl(
            natural_logits, adversarial_logits, wmse_weight=self.wmse_weight, ce_weight=self.ce_weight
        )

    def regulariser_formula(self) -> str:
        return self.decoupled_formula()
