"""Knowledge distillation as Hinton et al. defined it."""

from advtrain import checks
from advtrain.losses import transfer
from advtrain.losses.distillation import CleanDistillation
from advtrain.types import Logits, Scalar, Targets


class KD(CleanDistillation):
    """label_weight · CE(f(x), y) + kd_weight · T² KL(t(x)/T || f(x)/T); see `advtrain.losses.transfer.kd`.

    Hinton et al., "Distilling the Knowledge in a Neural Network", arXiv:1503.02531. The defaults are those of the
    CIFAR-100 tables (CRD, arXiv:1910.10699; DKD, arXiv:2203.08679).

    Args:
        kd_weight: multiplies T² KL.
        temperature: T.
        label_weight: multiplies the cross-entropy with the labels.
        label_smoothing: ε of that cross-entropy.
        warmup_epochs: W of `Distillation`; 0 as published.
    """

    term = "kd"

    def __init__(
        self,
        *,
        kd_weight: float = 0.9,
        temperature: float = 4.0,
        label_weight: float = 0.1,
        label_smoothing: float = 0.0,
        warmup_epochs: int = 0,
    ) -> None:
        super().__init__(label_weight=label_weight, label_smoothing=label_smoothing, warmup_epochs=warmup_epochs)
        self.kd_weight = checks.number("loss.kd_weight", kd_weight, low=0)
        self.temperature = checks.number("loss.temperature", temperature, above=0)

    def distilled(self, taught: Logits, logits: Logits, y: Targets) -> Scalar:
        return self.kd_weight * transfer.kd(taught, logits, temperature=self.temperature)

    def distilled_formula(self) -> str:
        t = f"{self.temperature:g}"
        return f"{self.kd_weight:g} · {t}² KL(t(x)/{t} || f(x)/{t})"
