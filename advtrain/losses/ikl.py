"""IKL: DKL with the asymmetry broken and pairs weighed by what is known of the class."""

from advtrain import checks
from advtrain.losses import functional
from advtrain.losses.class_prior import ClassPrior
from advtrain.losses.decoupled import Decoupled
from advtrain.types import Logits, Scalar, Targets


class IKL(Decoupled):
    """CE(f(x), y) + IKL(f(x), f(x')); see `advtrain.losses.functional.ikl`.

    Cui et al., "Decoupled Kullback-Leibler Divergence Loss", NeurIPS 2024, arXiv:2305.13948, section 3. The two changes
    that make it out of DKL are switches of their own: with both off it is DKL, with both on IKL.

    Args:
        num_classes: C, for the class prior.
        wmse_weight: multiplies ¼ Σ_jk s̄_j s̄_k (d_j - d_k)² (published code: beta; paper: α).
        ce_weight: multiplies the soft cross-entropy (published code: alpha; paper: β).
        temperature: τ of the class prior.
        break_asymmetry: BA of the paper; whether the wMSE drives the adversarial side, too.
        global_weights: GI of the paper; whether pairs are weighed by the class prior. If not, by the image's own
            softmax f(x), a constant; soft labels are taken only then.
        inner: what the attack maximises, one of ce, kl, margin, ikl (with the weights p of the loss; to x' it always
            passes the gradient of the wMSE).
        label_smoothing: ε of the natural cross-entropy.
        second_view_weight: weight of IKL on the second view; None for one view.
    """

    regulariser_name = "ikl"

    def __init__(
        self,
        *,
        num_classes: int,
        wmse_weight: float = 20.0,
        ce_weight: float = 4.0,
        temperature: float = 4.0,
        break_asymmetry: bool = True,
        global_weights: bool = True,
        inner: str = "kl",
        label_smoothing: float = 0.0,
        second_view_weight: float | None = None,
    ) -> None:
        prior = ClassPrior(num_classes=num_classes, temperature=temperature)
        super().__init__(
            wmse_weight=wmse_weight,
            ce_weight=ce_weight,
            break_asymmetry=break_asymmetry,
            prior=prior if checks.flag("loss.global_weights", global_weights) else None,
            inner=inner,
            label_smoothing=label_smoothing,
            second_view_weight=second_view_weight,
        )

    def regulariser(self, natural_logits: Logits, adversarial_logits: Logits, y: Targets) -> Scalar:
        return functional.ikl(
            natural_logits,
            adversarial_logits,
            self.pair_factors(natural_logits, y),
            wmse_weight=self.wmse_weight,
            ce_weight=self.ce_weight,
            break_asymmetry=self.break_asymmetry,
        )

    def regulariser_formula(self) -> str:
        return self.decoupled_formula()
