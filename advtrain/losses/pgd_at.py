"""Adversarial training as Madry et al. defined it."""

from torch import Tensor, nn

from advtrain.losses.base import Loss, accuracies
from advtrain.losses.functional import cross_entropy_per_image
from advtrain.types import Images, Labels, Parts


class PGDAT(Loss):
    """CE(f(x'), y): cross-entropy on adversarial images alone.

    Madry et al., "Towards Deep Learning Models Resistant to Adversarial Attacks", ICLR 2018, arXiv:1706.06083, eq. 2.1.

    Args:
        inner: what the attack maximises, one of ce, kl, margin.
    """

    def __init__(self, *, inner: str = "ce") -> None:
        super().__init__(inner=inner)

    def outer(self, model: nn.Module, x: Images, x_adv: Images, y: Labels) -> tuple[Tensor, Parts]:
        logits = model(x_adv)
        total = cross_entropy_per_image(logits, y).mean()
        return total, {"loss": total.detach(), **accuracies(y, adversarial_logits=logits)}

    def formula(self) -> str:
        return "CE(f(x'), y)"
