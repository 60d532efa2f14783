"""IKL: DKL with the asymmetry broken and pairs weighed by what is known of the class."""

from torch import Tensor, nn

from advtrain import checks
from advtrain.losses import functional
from advtrain.losses.base import Loss, regularised
from advtrain.losses.class_prior import ClassPrior
from advtrain.types import Images, Labels, Logits, Parts


class IKL(Loss):
    """CE(f(x), y) + IKL(f(x), f(x')); see `advtrain.losses.functional.ikl`.

    Cui et al., "Decoupled Kullback-Leibler Divergence Loss", NeurIPS 2024, arXiv:2305.13948, section 3.

    Args:
        num_classes: C, for the class prior.
        wmse_weight: multiplies ¼ Σ_jk s̄_j s̄_k (d_j - d_k)² (published code: beta; paper: α).
        ce_weight: multiplies the soft cross-entropy (published code: alpha; paper: β).
        temperature: τ of the class prior.
        inner: what the attack maximises, one of ce, kl, margin, ikl.
    """

    def __init__(
        self,
        *,
        num_classes: int,
        wmse_weight: float = 20.0,
        ce_weight: float = 4.0,
        temperature: float = 4.0,
        inner: str = "kl",
    ) -> None:
        super().__init__(inner=inner)
        self.wmse_weight = checks.number("loss.wmse_weight", wmse_weight, low=0)
        self.ce_weight = checks.number("loss.ce_weight", ce_weight, low=0)
        self.prior = ClassPrior(num_classes=num_classes, temperature=temperature)

    @property
    def has_prior(self) -> bool:
        return True

    def class_weights(self, y: Labels) -> Logits:
        return self.prior(y)

    def outer(self, model: nn.Module, x: Images, x_adv: Images, y: Labels) -> tuple[Tensor, Parts]:
        def regulariser(natural_logits: Tensor, adversarial_logits: Tensor) -> Tensor:
            if self.training:
                self.prior.update(natural_logits.detach(), y)
            return functional.ikl(
                natural_logits,
                adversarial_logits,
                self.prior(y),
                wmse_weight=self.wmse_weight,
                ce_weight=self.ce_weight,
            )

        return regularised(model, x, x_adv, y, "ikl", regulariser)

    def end_epoch(self) -> None:
        self.prior.end_epoch()

    def synchronise(self) -> None:
        self.prior.synchronise()

    def forget_gathered(self) -> None:
        self.prior.forget_gathered()

    def formula(self) -> str:
        return (
            f"CE(f(x), y) + {self.wmse_weight:g} wMSE(f(x), f(x'); prior_y, τ={self.prior.temperature:g})"
            f" + {self.ce_weight:g} softCE(sg f(x), f(x'))"
        )
