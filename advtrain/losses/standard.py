"""Training without an adversary: the twin to compare with."""

from torch import Tensor, nn

from advtrain.losses.base import Loss, accuracies
from advtrain.losses.functional import cross_entropy_per_image
from advtrain.types import Images, Labels, Parts


class Standard(Loss):
    """CE(f(x), y). No attack is run, whichever is configured."""

    needs_attack = False

    def __init__(self) -> None:
        super().__init__(inner="ce")

    def outer(self, model: nn.Module, x: Images, x_adv: Images, y: Labels) -> tuple[Tensor, Parts]:
        logits = model(x)
        total = cross_entropy_per_image(logits, y).mean()
        return total, {"loss": total.detach(), **accuracies(y, natural_logits=logits)}

    def formula(self) -> str:
        return "CE(f(x), y)"
