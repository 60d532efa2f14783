"""What DKL, IKL and GKL share: two weights, two switches, and the class prior where it is on."""

import torch
from torch import nn

from advtrain import checks
from advtrain.losses import objectives
from advtrain.losses.class_prior import ClassPrior
from advtrain.losses.regularised import Regularised
from advtrain.losses.shapes import prepared
from advtrain.types import Images, Logits, Objective, Targets


class Decoupled(Regularised):
    """CE(f(x), y) + wmse_weight · wMSE + ce_weight · soft cross-entropy; see `advtrain.losses.functional`.

    A class prior needs whole class numbers, so soft labels are taken only without one.

    Args:
        wmse_weight: multiplies the wMSE (published code: beta; paper: α).
        ce_weight: multiplies the soft cross-entropy (published code: alpha; paper: β).
        break_asymmetry: whether the wMSE drives the adversarial side, too; False stops its gradient there.
        prior: weighs pairs by what is known of the true class; None weighs them by each image's own softmax f(x).
        inner, label_smoothing, second_view_weight: as for `Regularised`.
    """

    weighs_pairs = True

    def __init__(
        self,
        *,
        wmse_weight: float,
        ce_weight: float,
        break_asymmetry: bool,
        prior: ClassPrior | None,
        inner: str,
        label_smoothing: float,
        second_view_weight: float | None,
    ) -> None:
        super().__init__(inner=inner, label_smoothing=label_smoothing, second_view_weight=second_view_weight)
        self.wmse_weight = checks.number("loss.wmse_weight", wmse_weight, low=0)
        self.ce_weight = checks.number("loss.ce_weight", ce_weight, low=0)
        self.break_asymmetry = checks.flag("loss.break_asymmetry", break_asymmetry)
        self.prior = prior
        self.takes_soft_labels = self.takes_soft_labels and prior is None

    @property
    def has_prior(self) -> bool:
        return self.prior is not None

    def class_weights(self, y: Targets) -> Logits | None:
        return None if self.prior is None else self.prior(y)

    def inner(self, model: nn.Module, x: Images, y: Targets) -> Objective:
        if self.inner_objective != "ikl" or self.prior is not None:
            return super().inner(model, x, y)
        with torch.no_grad():
            natural_logits = model(x)
        return objectives.ModelObjective(model, objectives.IKL(natural_logits, predictions(natural_logits)))

    def pair_factors(self, natural_logits: Logits, y: Targets) -> Logits:
        """p of the wMSE, shape (N, C), constant."""
        return predictions(natural_logits) if self.prior is None else self.prior(y)

    def observe(self, natural_logits: Logits, y: Targets) -> None:
        if self.prior is not None:
            self.prior.update(natural_logits, y)

    def end_epoch(self) -> None:
        if self.prior is not None:
            self.prior.end_epoch()

    def synchronise(self) -> None:
        if self.prior is not None:
            self.prior.synchronise()

    def forget_gathered(self) -> None:
        if self.prior is not None:
            self.prior.forget_gathered()

    def decoupled_formula(self, power: str = "", normaliser: str = "") -> str:
        """The two terms in one line, with what stands on the weights and how they are normalised."""
        adversarial = "f(x')" if self.break_asymmetry else "sg f(x')"
        weights = f"softmax f(x){power}" if self.prior is None else f"prior_y{power}, τ={self.prior.temperature:g}"
        return (
            f"{self.wmse_weight:g} wMSE(f(x), {adversarial}; {weights}{normaliser})"
            f" + {self.ce_weight:g} softCE(sg f(x), f(x'))"
        )


def predictions(logits: Logits) -> Logits:
    """softmax(o) of each image, a constant, in float32 or better."""
    return prepared(logits.detach())[0].softmax(1)
