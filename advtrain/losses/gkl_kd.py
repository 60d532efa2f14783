"""GKL between a teacher and its student."""

from torch import Tensor

from advtrain import checks
from advtrain.losses import functional, transfer
from advtrain.losses.gkl import NORMALISERS, mean_pair_weight
from advtrain.losses.pair_distillation import PairDistillation
from advtrain.types import Logits, Scalar, Targets


class GKLKD(PairDistillation):
    """label_weight · CE(f(x), y) + min(epoch / W, 1) · GKL(t(x), f(x)); see `advtrain.losses.transfer.gkl_kd`.

    Cui et al., "Generalized Kullback-Leibler Divergence Loss", arXiv:2503.08038, and its published code: IKL with
    weights q = p^γ. The batch that normalises is the whole batch of an optimiser step, over all processes and
    accumulation passes: the weights come from the teacher, which has seen all of it before the first pass.

    The paper's weights are the class prior (loss=gkl_kd). Of the published CIFAR-100 runs some had them, and some the
    image's own softmax(t(x) / τ): `global_weights=false` (loss=gkl_kd_code).

    Args:
        gamma: γ, the power of the weights; 1 is IKL, 0 uniform weights.
        normaliser: "batch" divides the batch's pair sums by their mean total weight, as published; "sample" divides
            each image's by its own, which is IKL with weights q / Σ_j q_j.
        num_classes, wmse_weight, ce_weight, temperature, prior_temperature, break_asymmetry, global_weights,
            label_weight, label_smoothing, warmup_epochs: as for `PairDistillation`.
    """

    term = "gkl_kd"

    def __init__(
        self,
        *,
        num_classes: int,
        gamma: float = 0.05,
        wmse_weight: float = 16.0,
        ce_weight: float = 1.0,
        temperature: float = 4.0,
        prior_temperature: float = 4.0,
        break_asymmetry: bool = True,
        global_weights: bool = True,
        normaliser: str = "batch",
        label_weight: float = 1.0,
        label_smoothing: float = 0.0,
        warmup_epochs: int = 20,
    ) -> None:
        super().__init__(
            num_classes=num_classes,
            wmse_weight=wmse_weight,
            ce_weight=ce_weight,
            temperature=temperature,
            prior_temperature=prior_temperature,
            break_asymmetry=break_asymmetry,
            global_weights=global_weights,
            label_weight=label_weight,
            label_smoothing=label_smoothing,
            warmup_epochs=warmup_epochs,
        )
        self.gamma = checks.number("loss.gamma", gamma, low=0)
        self.normaliser = checks.choice("loss.normaliser", normaliser, NORMALISERS)
        self._mean_weight: Tensor | None = None  # of the batch that start_batch announced

    def start_batch(self, y: Targets, taught: Logits | None = None) -> None:
        self._mean_weight = None
        if self.normaliser == "batch" and taught is not None:
            self._mean_weight = mean_pair_weight(self.pair_factors(taught, y), self.gamma)

    def end_epoch(self) -> None:
        super().end_epoch()
        self._mean_weight = None

    def distilled(self, taught: Logits, logits: Logits, y: Targets) -> Scalar:
        factors = self.pair_factors(taught, y)
        if self.normaliser == "sample":
            factors = functional.power(factors, self.gamma)
            return transfer.ikl_kd(
                taught,
                logits,
                factors / factors.sum(1, keepdim=True),
                wmse_weight=self.wmse_weight,
                ce_weight=self.ce_weight,
                temperature=self.temperature,
                break_asymmetry=self.break_asymmetry,
            )
        return transfer.gkl_kd(
            taught,
            logits,
            factors,
            gamma=self.gamma,
            wmse_weight=self.wmse_weight,
            ce_weight=self.ce_weight,
            temperature=self.temperature,
            mean_weight=self._mean_weight,
            break_asymmetry=self.break_asymmetry,
        )

    def distilled_formula(self) -> str:
        over = "over the batch" if self.normaliser == "batch" else "per sample"
        return self.pair_formula(power=f"^{self.gamma:g}", normaliser=f", normalised {over}")
