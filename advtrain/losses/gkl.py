"""GKL: IKL with the class prior raised to a power and the weights normalised over the batch."""

from torch import Tensor, nn

from advtrain import checks, distributed
from advtrain.losses import functional
from advtrain.losses.base import Loss, regularised
from advtrain.losses.class_prior import ClassPrior
from advtrain.types import Images, Labels, Logits, Parts


class GKL(Loss):
    """CE(f(x), y) + GKL(f(x), f(x')); see `advtrain.losses.functional.gkl`.

    Cui et al., "Generalized Kullback-Leibler Divergence Loss", arXiv:2503.08038, and its published code. The batch
    that normalises is the whole batch of an optimiser step, over all processes and accumulation passes.

    Args:
        num_classes: C, for the class prior.
        gamma: γ, the power of the class prior; 1 is IKL, 0 uniform weights.
        wmse_weight: multiplies the normalised pair sum (published code: beta).
        ce_weight: multiplies the soft cross-entropy (published code: alpha).
        temperature: τ of the class prior.
        inner: what the attack maximises, one of ce, kl, margin, ikl.
    """

    def __init__(
        self,
        *,
        num_classes: int,
        gamma: float = 0.2,
        wmse_weight: float = 20.0,
        ce_weight: float = 4.0,
        temperature: float = 1.0,
        inner: str = "kl",
    ) -> None:
        super().__init__(inner=inner)
        self.gamma = checks.number("loss.gamma", gamma, low=0)
        self.wmse_weight = checks.number("loss.wmse_weight", wmse_weight, low=0)
        self.ce_weight = checks.number("loss.ce_weight", ce_weight, low=0)
        self.prior = ClassPrior(num_classes=num_classes, temperature=temperature)
        self._mean_weight: Tensor | None = None  # of the batch that start_batch announced

    @property
    def has_prior(self) -> bool:
        return True

    def class_weights(self, y: Labels) -> Logits:
        return self.prior(y)

    def start_batch(self, y: Labels) -> None:
        weights = functional.pair_weights(functional.power(self.prior(y).double(), self.gamma))
        total = distributed.all_reduce_sum(weights.sum())
        self._mean_weight = total / (len(y) * distributed.world_size())

    def outer(self, model: nn.Module, x: Images, x_adv: Images, y: Labels) -> tuple[Tensor, Parts]:
        def regulariser(natural_logits: Tensor, adversarial_logits: Tensor) -> Tensor:
            if self.training:
                self.prior.update(natural_logits.detach(), y)
            return functional.gkl(
                natural_logits,
                adversarial_logits,
                self.prior(y),
                gamma=self.gamma,
                wmse_weight=self.wmse_weight,
                ce_weight=self.ce_weight,
                mean_weight=self._mean_weight,
            )

        return regularised(model, x, x_adv, y, "gkl", regulariser)

    def end_epoch(self) -> None:
        self.prior.end_epoch()
        self._mean_weight = None

    def synchronise(self) -> None:
        self.prior.synchronise()

    def forget_gathered(self) -> None:
        self.prior.forget_gathered()

    def formula(self) -> str:
        return (
            f"CE(f(x), y) + {self.wmse_weight:g} wMSE(f(x), f(x'); prior_y^{self.gamma:g}, τ="
            f"{self.prior.temperature:g}, normalised over the batch) + {self.ce_weight:g} softCE(sg f(x), f(x'))"
        )
