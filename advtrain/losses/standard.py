"""Training without an adversary: the twin to compare with."""

from torch import Tensor, nn

from advtrain.losses.base import Loss, accuracies, ce_formula, smoothing
from advtrain.losses.functional import cross_entropy_per_image
from advtrain.types import Images, Parts, Targets


class Standard(Loss):
    """CE(f(x), y). No attack is run, whichever is configured.

    Args:
        label_smoothing: ε of the cross-entropy.
    """

    needs_attack = False
    takes_soft_labels = True

    def __init__(self, *, label_smoothing: float = 0.0) -> None:
        super().__init__(inner="ce")
        self.label_smoothing = smoothing(label_smoothing)

    def outer(self, model: nn.Module, x: Images, x_adv: Images, y: Targets) -> tuple[Tensor, Parts]:
        logits = model(x)
        total = cross_entropy_per_image(logits, y, self.label_smoothing).mean()
        return total, {"loss": total.detach(), **accuracies(y, natural_logits=logits)}

    def formula(self) -> str:
        return ce_formula("x", self.label_smoothing)
