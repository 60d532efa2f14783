"""Natural cross-entropy plus a regulariser that ties f(x') to f(x): the form of the TRADES and KL families."""

from abc import abstractmethod

from torch import Tensor, nn

from advtrain import checks
from advtrain.losses.base import SOFT_INNER, Loss, accuracies, ce_formula, smoothing
from advtrain.losses.functional import cross_entropy_per_image
from advtrain.types import Images, Logits, Parts, Scalar, Targets


class Regularised(Loss):
    """CE(f(x), y) + R(f(x), f(x')), with one view of each image or two.

    Two forward passes, adversarial images first: each has its own BatchNorm statistics, and the natural ones are the
    last to enter the running averages (as in the published TRADES and IKL code).

    With two views (the AutoAugment variant of arXiv:2305.13948) the rows are [view 1; view 2], n of each, and the loss
    is CE + R(view 1) + second_view_weight · R(view 2). As in the published code, CE is the mean over all 2n natural
    images and each R a mean over its own n; a class prior learns from view 1 alone.

    Args:
        inner: what the attack maximises.
        label_smoothing: ε of the cross-entropy.
        second_view_weight: weight of R on the second view (published code: aug_weight); None for one view.
    """

    regulariser_name: str  # in the log

    def __init__(self, *, inner: str, label_smoothing: float, second_view_weight: float | None) -> None:
        super().__init__(inner=inner)
        self.takes_soft_labels = inner in SOFT_INNER
        self.label_smoothing = smoothing(label_smoothing)
        self.second_view_weight = None
        if second_view_weight is not None:
            self.second_view_weight = checks.number("loss.second_view_weight", second_view_weight, low=0)
            self.views = 2

    @abstractmethod
    def regulariser(self, natural_logits: Logits, adversarial_logits: Logits, y: Targets) -> Scalar:
        """R of one view."""

    @abstractmethod
    def regulariser_formula(self) -> str:
        """R in one line."""

    def observe(self, natural_logits: Logits, y: Targets) -> None:
        """Called in training with the natural logits of the first view: for what a loss learns from them."""

    def outer(self, model: nn.Module, x: Images, x_adv: Images, y: Targets) -> tuple[Tensor, Parts]:
        if len(x) % self.views:
            raise ValueError(f"expected rows [view 1; view 2], an even number, got {len(x)} images")
        adversarial_logits = model(x_adv)
        natural_logits = model(x)
        ce = cross_entropy_per_image(natural_logits, y, self.label_smoothing).mean()
        first, *second = zip(*(t.chunk(self.views) for t in (natural_logits, adversarial_logits, y)), strict=True)
        if self.training:
            self.observe(first[0].detach(), first[2])
        regularisation = self.regulariser(*first)
        total = ce + regularisation
        parts = {"ce": ce.detach(), self.regulariser_name: regularisation.detach()}
        if self.second_view_weight is not None:
            regularisation = self.regulariser(*second[0])
            total = total + self.second_view_weight * regularisation
            parts[f"{self.regulariser_name}_second_view"] = regularisation.detach()
        return total, {"loss": total.detach(), **parts, **accuracies(y, natural_logits, adversarial_logits)}

    def formula(self) -> str:
        ce = ce_formula("x", self.label_smoothing)
        if self.second_view_weight is None:
            return f"{ce} + {self.regulariser_formula()}"
        views = f"R(view 1) + {self.second_view_weight:g} R(view 2)"
        return f"{ce} over both views + {views}, R = {self.regulariser_formula()}"
