"""TRADES: natural cross-entropy and a pull of the adversarial prediction towards the natural one."""

from torch import Tensor, nn

from advtrain import checks
from advtrain.losses import functional
from advtrain.losses.base import Loss, regularised
from advtrain.types import Images, Labels, Parts


class TRADES(Loss):
    """CE(f(x), y) + β KL(f(x) || f(x')).

    Zhang et al., "Theoretically Principled Trade-off between Robustness and Accuracy", ICML 2019, arXiv:1901.08573,
    eq. 5; the regulariser is averaged over the batch as in the published code, the gradient reaches both sides.

    Args:
        beta: β, the paper's 1/λ.
        inner: what the attack maximises, one of ce, kl, margin.
    """

    def __init__(self, *, beta: float = 6.0, inner: str = "kl") -> None:
        super().__init__(inner=inner)
        self.beta = checks.number("loss.beta", beta, low=0)

    def outer(self, model: nn.Module, x: Images, x_adv: Images, y: Labels) -> tuple[Tensor, Parts]:
        def regulariser(natural_logits: Tensor, adversarial_logits: Tensor) -> Tensor:
            return self.beta * functional.kl(natural_logits, adversarial_logits)

        return regularised(model, x, x_adv, y, "kl", regulariser)

    def formula(self) -> str:
        return f"CE(f(x), y) + {self.beta:g} KL(f(x) || f(x'))"
