"""DKL: KL taken apart into a weighted MSE and a soft cross-entropy, each with a weight of its own."""

from torch import Tensor, nn

from advtrain import checks
from advtrain.losses import functional
from advtrain.losses.base import Loss, regularised
from advtrain.types import Images, Labels, Parts


class DKL(Loss):
    """CE(f(x), y) + DKL(f(x), f(x')); see `advtrain.losses.functional.dkl`.

    Cui et al., "Decoupled Kullback-Leibler Divergence Loss", NeurIPS 2024, arXiv:2305.13948, theorem 1. Both weights
    equal to w is `loss=kl loss.kl_weight=w`, gradient for gradient.

    Args:
        wmse_weight: multiplies ¼ Σ_jk s_j s_k (d_j - d_k)² (published code: beta).
        ce_weight: multiplies the soft cross-entropy (published code: alpha).
        inner: what the attack maximises, one of ce, kl, margin.
    """

    def __init__(self, *, wmse_weight: float = 20.0, ce_weight: float = 4.0, inner: str = "kl") -> None:
        super().__init__(inner=inner)
        self.wmse_weight = checks.number("loss.wmse_weight", wmse_weight, low=0)
        self.ce_weight = checks.number("loss.ce_weight", ce_weight, low=0)

    def outer(self, model: nn.Module, x: Images, x_adv: Images, y: Labels) -> tuple[Tensor, Parts]:
        def regulariser(natural_logits: Tensor, adversarial_logits: Tensor) -> Tensor:
            return functional.dkl(
                natural_logits, adversarial_logits, wmse_weight=self.wmse_weight, ce_weight=self.ce_weight
            )

        return regularised(model, x, x_adv, y, "dkl", regulariser)

    def formula(self) -> str:
        return (
            f"CE(f(x), y) + {self.wmse_weight:g} wMSE(f(x), sg f(x'); softmax f(x))"
            f" + {self.ce_weight:g} softCE(sg f(x), f(x'))"
        )
