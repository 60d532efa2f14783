"""Knowledge distillation that weighs the true class and the others apart."""

from advtrain import checks
from advtrain.losses import transfer
from advtrain.losses.distillation import CleanDistillation
from advtrain.types import Logits, Scalar, Targets


class DKD(CleanDistillation):
    """label_weight · CE(f(x), y) + min(epoch / W, 1) · T² (alpha TCKD + beta NCKD); see `advtrain.losses.transfer.dkd`.

    Zhao et al., "Decoupled Knowledge Distillation", CVPR 2022, arXiv:2203.08679. Which class is the true one must be
    known, so soft labels are not taken.

    Args:
        alpha: multiplies TCKD, the divergence of "the true class or another".
        beta: multiplies NCKD, the divergence of the other classes among themselves; published for each pair of
            networks, with 8 as the published code's default.
        temperature: T.
        label_weight, label_smoothing, warmup_epochs: as for `Distillation`.
    """

    term = "dkd"

    def __init__(
        self,
        *,
        alpha: float = 1.0,
        beta: float = 8.0,
        temperature: float = 4.0,
        label_weight: float = 1.0,
        label_smoothing: float = 0.0,
        warmup_epochs: int = 20,
    ) -> None:
        super().__init__(label_weight=label_weight, label_smoothing=label_smoothing, warmup_epochs=warmup_epochs)
        self.takes_soft_labels = False
        self.alpha = checks.number("loss.alpha", alpha, low=0)
        self.beta = checks.number("loss.beta", beta, low=0)
        self.temperature = checks.number("loss.temperature", temperature, above=0)

    def distilled(self, taught: Logits, logits: Logits, y: Targets) -> Scalar:
        return transfer.dkd(taught, logits, y, alpha=self.alpha, beta=self.beta, temperature=self.temperature)

    def distilled_formula(self) -> str:
        t = f"{self.temperature:g}"
        return f"{t}² ({self.alpha:g} TCKD + {self.beta:g} NCKD)(t(x)/{t} || f(x)/{t})"
