"""Adversarial training as Madry et al. defined it."""

from torch import Tensor, nn

from advtrain.losses.base import SOFT_INNER, Loss, accuracies, ce_formula, smoothing
from advtrain.losses.functional import cross_entropy_per_image
from advtrain.types import Images, Parts, Targets


class PGDAT(Loss):
    """CE(f(x'), y): cross-entropy on adversarial images alone.

    Madry et al., "Towards Deep Learning Models Resistant to Adversarial Attacks", ICLR 2018, arXiv:1706.06083, eq. 2.1.

    Args:
        inner: what the attack maximises, one of ce, kl, margin.
        label_smoothing: ε of the cross-entropy that training minimises; the attack's labels stay as they are.
    """

    def __init__(self, *, inner: str = "ce", label_smoothing: float = 0.0) -> None:
        super().__init__(inner=inner)
        self.takes_soft_labels = inner in SOFT_INNER
        self.label_smoothing = smoothing(label_smoothing)

    def outer(self, model: nn.Module, x: Images, x_adv: Images, y: Targets) -> tuple[Tensor, Parts]:
        logits = model(x_adv)
        total = cross_entropy_per_image(logits, y, self.label_smoothing).mean()
        return total, {"loss": total.detach(), **accuracies(y, adversarial_logits=logits)}

    def formula(self) -> str:
        return ce_formula("x'", self.label_smoothing)
