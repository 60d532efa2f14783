"""The KL divergence as the regulariser: the baseline of the IKL ablation."""

from torch import Tensor, nn

from advtrain import checks
from advtrain.losses import functional
from advtrain.losses.base import Loss, regularised
from advtrain.types import Images, Labels, Parts


class KL(Loss):
    """CE(f(x), y) + weight · KL(f(x) || f(x')): TRADES under the IKL paper's name and default.

    Cui et al., arXiv:2305.13948, the row "KL" of the ablation: weight 9 on CIFAR-100.

    Args:
        kl_weight: multiplies the divergence.
        inner: what the attack maximises, one of ce, kl, margin.
    """

    def __init__(self, *, kl_weight: float = 9.0, inner: str = "kl") -> None:
        super().__init__(inner=inner)
        self.kl_weight = checks.number("loss.kl_weight", kl_weight, low=0)

    def outer(self, model: nn.Module, x: Images, x_adv: Images, y: Labels) -> tuple[Tensor, Parts]:
        def regulariser(natural_logits: Tensor, adversarial_logits: Tensor) -> Tensor:
            return self.kl_weight * functional.kl(natural_logits, adversarial_logits)

        return regularised(model, x, x_adv, y, "kl", regulariser)

    def formula(self) -> str:
        return f"CE(f(x), y) + {self.kl_weight:g} KL(f(x) || f(x'))"
