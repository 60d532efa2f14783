"""What IKL and GKL between a teacher and its student share: two terms, two switches, weights of pairs of classes."""

from advtrain import checks
from advtrain.losses import objectives
from advtrain.losses.class_prior import ClassPrior
from advtrain.losses.distillation import CleanDistillation
from advtrain.losses.shapes import prepared
from advtrain.types import Logits, Targets


class PairDistillation(CleanDistillation):
    """label_weight · CE(f(x), y) + min(epoch / W, 1) · (wmse_weight · wMSE + ce_weight · soft cross-entropy).

    A class prior needs whole class numbers, so soft labels are taken only without one.

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

    def __init__(
        self,
        *,
        num_classes: int,
        wmse_weight: float,
        ce_weight: float,
        temperature: float,
        prior_temperature: float,
        break_asymmetry: bool,
        global_weights: bool,
        label_weight: float,
        label_smoothing: float,
        warmup_epochs: int,
    ) -> None:
        tau = checks.number("loss.prior_temperature", prior_temperature, above=0)
        prior = ClassPrior(num_classes=num_classes, temperature=tau)
        super().__init__(
            label_weight=label_weight,
            label_smoothing=label_smoothing,
            warmup_epochs=warmup_epochs,
            prior=prior if checks.flag("loss.global_weights", global_weights) else None,
        )
        self.wmse_weight = checks.number("loss.wmse_weight", wmse_weight, low=0)
        self.ce_weight = checks.number("loss.ce_weight", ce_weight, low=0)
        self.temperature = checks.number("loss.temperature", temperature, above=0)
        self.prior_temperature = tau
        self.break_asymmetry = checks.flag("loss.break_asymmetry", break_asymmetry)

    def pair_factors(self, taught: Logits, y: Targets) -> Logits:
        """p of the wMSE, shape (N, C), constant, in the precision of the teacher's logits or float32."""
        if self.prior is not None:
            return prepared(self.prior(y), taught.detach())[0]
        return objectives.softened(taught, self.prior_temperature)

    def pair_formula(self, power: str = "", normaliser: str = "") -> str:
        """The two terms in one line, with what stands on the weights and how they are normalised."""
        student = "f(x)" if self.break_asymmetry else "sg f(x)"
        weights = "softmax(t(x)/τ)" if self.prior is None else "prior_y(t)"
        return (
            f"{self.wmse_weight:g} wMSE(t(x), {student}; {weights}{power}, τ={self.prior_temperature:g}{normaliser})"
            f" + {self.ce_weight:g} softCE(t(x)/{self.temperature:g}, f(x)/{self.temperature:g})"
        )
