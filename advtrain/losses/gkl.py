"""GKL: IKL with the class prior raised to a power and the weights normalised over the batch."""

from torch import Tensor

from advtrain import checks, distributed
from advtrain.losses import functional
from advtrain.losses.class_prior import ClassPrior
from advtrain.losses.decoupled import Decoupled
from advtrain.losses.shapes import prepared
from advtrain.types import Logits, Scalar, Targets

NORMALISERS = ("batch", "sample")


class GKL(Decoupled):
    """CE(f(x), y) + GKL(f(x), f(x')); see `advtrain.losses.functional.gkl`.

    Cui et al., "Generalized Kullback-Leibler Divergence Loss", arXiv:2503.08038, and its published code. The batch
    that normalises is the whole batch of an optimiser step, over all processes and accumulation passes; of two views
    each has its own.

    Without global weights the factors are softmax(f(x))^γ, and what normalises the batch is known only after the
    forward pass of all its rows. Processes exchange it then; accumulation passes cannot (`needs_whole_batch`).

    Args:
        num_classes: C, for the class prior.
        gamma: γ, the power of the factors; 1 is IKL, 0 uniform weights.
        wmse_weight: multiplies the normalised pair sum (published code: beta).
        ce_weight: multiplies the soft cross-entropy (published code: alpha).
        temperature: τ of the class prior.
        break_asymmetry: whether the wMSE drives the adversarial side, too.
        global_weights: whether the factors come from the class prior. If not, from the image's own softmax f(x), a
            constant; soft labels are taken only then.
        normaliser: "batch" divides the batch's pair sums by their mean total weight, as published; "sample" divides
            each image's by its own, which is IKL with weights q / Σ_j q_j.
        inner: what the attack maximises, one of ce, kl, margin, dlr, ikl (with the weights of γ = 1).
        label_smoothing: ε of the natural cross-entropy.
        second_view_weight: weight of GKL on the second view; None for one view.
    """

    regulariser_name = "gkl"

    def __init__(
        self,
        *,
        num_classes: int,
        gamma: float = 0.2,
        wmse_weight: float = 20.0,
        ce_weight: float = 4.0,
        temperature: float = 1.0,
        break_asymmetry: bool = True,
        global_weights: bool = True,
        normaliser: str = "batch",
        inner: str = "kl",
        label_smoothing: float = 0.0,
        second_view_weight: float | None = None,
    ) -> None:
        prior = ClassPrior(num_classes=num_classes, temperature=temperature)
        super().__init__(
            wmse_weight=wmse_weight,
            ce_weight=ce_weight,
            break_asymmetry=break_asymmetry,
            prior=prior if checks.flag("loss.global_weights", global_weights) else None,
            inner=inner,
            label_smoothing=label_smoothing,
            second_view_weight=second_view_weight,
        )
        self.gamma = checks.number("loss.gamma", gamma, low=0)
        self.normaliser = checks.choice("loss.normaliser", normaliser, NORMALISERS)
        # At γ = 0 and 1 every image has the same total weight, C² and 1, whatever its logits.
        self.needs_whole_batch = not global_weights and normaliser == "batch" and self.gamma not in (0, 1)
        self._mean_weight: Tensor | None = None  # of the batch that start_batch announced

    def start_batch(self, y: Targets, taught: Logits | None = None) -> None:
        if self.prior is not None and self.normaliser == "batch":
            self._mean_weight = mean_pair_weight(self.prior(y), self.gamma)

    def regulariser(self, natural_logits: Logits, adversarial_logits: Logits, y: Targets) -> Scalar:
        factors = self.pair_factors(natural_logits, y)
        if self.normaliser == "sample":
            factors = functional.power(prepared(natural_logits, factors)[1], self.gamma)
            return functional.ikl(
                natural_logits,
                adversarial_logits,
                factors / factors.sum(1, keepdim=True),
                wmse_weight=self.wmse_weight,
                ce_weight=self.ce_weight,
                break_asymmetry=self.break_asymmetry,
            )
        return functional.gkl(
            natural_logits,
            adversarial_logits,
            factors,
            gamma=self.gamma,
            wmse_weight=self.wmse_weight,
            ce_weight=self.ce_weight,
            mean_weight=mean_pair_weight(factors, self.gamma) if self.needs_whole_batch else self._mean_weight,
            break_asymmetry=self.break_asymmetry,
        )

    def end_epoch(self) -> None:
        super().end_epoch()
        self._mean_weight = None

    def regulariser_formula(self) -> str:
        over = "over the batch" if self.normaliser == "batch" else "per sample"
        return self.decoupled_formula(power=f"^{self.gamma:g}", normaliser=f", normalised {over}")


def mean_pair_weight(class_weights: Logits, gamma: float) -> Scalar:
    """The mean of (Σ_j q_nj)², q = p^γ, over the rows of all processes, of which each has equally many; float64."""
    weights = functional.pair_weights(functional.power(class_weights.double(), gamma))
    total = distributed.all_reduce_sum(weights.sum())
    return total / (len(class_weights) * distributed.world_size())
