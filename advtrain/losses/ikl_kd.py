"""IKL between a teacher and its student."""

from advtrain import checks
from advtrain.losses import transfer
from advtrain.losses.class_prior import ClassPrior
from advtrain.losses.distillation import CleanDistillation
from advtrain.losses.shapes import prepared
from advtrain.types import Logits, Scalar, Targets


class IKLKD(CleanDistillation):
    """label_weight · CE(f(x), y) + min(epoch / W, 1) · IKL(t(x), f(x)); see `advtrain.losses.transfer.ikl_kd`.

    Cui et al., "Decoupled Kullback-Leibler Divergence Loss", NeurIPS 2024, arXiv:2305.13948. Two conventions are in
    use. The paper weighs pairs of classes by the class prior: `global_weights=true` (loss=ikl_kd). The published
    CIFAR-100 runs had that switched off and weighed them by softmax(t(x) / 100), almost uniformly:
    `global_weights=false, prior_temperature=100` (loss=ikl_kd_code).

    Args:
        num_classes: C, for the class prior.
        wmse_weight: multiplies the wMSE of the raw logits (published code: beta).
        ce_weight: multiplies the soft cross-entropy, which has no factor T² (published code: alpha).
        temperature: T of the soft cross-entropy.
        prior_temperature: τ, by which the teacher's logits are divided before they become weights.
        break_asymmetry: whether the wMSE drives the student; off, nothing does but the cross-entropies.
        global_weights: whether pairs are weighed by the class prior (mean of softmax(t / τ) over the images of the
            true class in the epoch before). If not, by the image's own softmax(t(x) / τ).
        label_weight, label_smoothing, warmup_epochs: as for `Distillation`.
    """

    term = "ikl_kd"

    def __init__(
        self,
        *,
        num_classes: int,
        wmse_weight: float = 8.0,
        ce_weight: float = 1.0,
        temperature: float = 4.0,
        prior_temperature: float = 4.0,
        break_asymmetry: bool = True,
        global_weights: bool = True,
        label_weight: float = 1.0,
        label_smoothing: float = 0.0,
        warmup_epochs: int = 20,
    ) -> None:
        self.prior_temperature = checks.number("loss.prior_temperature", prior_temperature, above=0)
        prior = ClassPrior(num_classes=num_classes, temperature=prior_temperature)
        super().__init__(
            label_weight=label_weight,
            label_smoothing=label_smoothing,
            warmup_epochs=warmup_epochs,
            prior=prior if checks.flag("loss.global_weights", global_weights) else None,
        )
        self.wmse_weight = checks.number("loss.wmse_weight", wmse_weight, low=0)
        self.ce_weight = checks.number("loss.ce_weight", ce_weight, low=0)
        self.temperature = checks.number("loss.temperature", temperature, above=0)
        self.break_asymmetry = checks.flag("loss.break_asymmetry", break_asymmetry)

    def distilled(self, taught: Logits, logits: Logits, y: Targets) -> Scalar:
        return transfer.ikl_kd(
            taught,
            logits,
            self.pair_factors(taught, y),
            wmse_weight=self.wmse_weight,
            ce_weight=self.ce_weight,
            temperature=self.temperature,
            break_asymmetry=self.break_asymmetry,
        )

    def pair_factors(self, taught: Logits, y: Targets) -> Logits:
        """p of the wMSE, shape (N, C), constant."""
        if self.prior is not None:
            return self.prior(y)
        return (prepared(taught)[0] / self.prior_temperature).softmax(1)

    def distilled_formula(self) -> str:
        student = "f(x)" if self.break_asymmetry else "sg f(x)"
        weights = "softmax(t(x)/τ)" if self.prior is None else "prior_y(t)"
        return (
            f"{self.wmse_weight:g} wMSE(t(x), {student}; {weights}, τ={self.prior_temperature:g})"
            f" + {self.ce_weight:g} softCE(t(x)/{self.temperature:g}, f(x)/{self.temperature:g})"
        )
