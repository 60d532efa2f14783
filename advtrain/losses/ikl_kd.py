"""IKL between a teacher and its student."""

from advtrain.losses import transfer
from advtrain.losses.pair_distillation import PairDistillation
from advtrain.types import Logits, Scalar, Targets


class IKLKD(PairDistillation):
    """label_weight · CE(f(x), y) + min(epoch / W, 1) · IKL(t(x), f(x)); see `advtrain.losses.transfer.ikl_kd`.

    Cui et al., "Decoupled Kullback-Leibler Divergence Loss", NeurIPS 2024, arXiv:2305.13948. Two conventions are in
    use. The paper weighs pairs of classes by the class prior: `global_weights=true` (loss=ikl_kd). The published
    CIFAR-100 runs had that switched off and weighed them by softmax(t(x) / 100), almost uniformly:
    `global_weights=false, prior_temperature=100` (loss=ikl_kd_code).

    Args:
        num_classes, wmse_weight, ce_weight, temperature, prior_temperature, break_asymmetry, global_weights,
            label_weight, label_smoothing, warmup_epochs: as for `PairDistillation`.
    """

    term = "ikl_kd"

    def __init__(
        self,
        *,
        num_classes: int,
        wmse_weight: float = 8.0,
        ce_weight: float = 1.0,
        temperature: float = 4.0,
        prior_temperature: float = 4.0,
        break_asymmetry: bool = True,
        global_weights: bool = True,
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

    def distilled(self, taught: Logits, logits: Logits, y: Targets) -> Scalar:
        return transfer.ikl_kd(
            taught,
            logits,
            self.pair_factors(taught, y),
            wmse_weight=self.wmse_weight,
            ce_weight=self.ce_weight,
            temperature=self.temperature,
            break_asymmetry=self.break_asymmetry,
        )

    def distilled_formula(self) -> str:
        return self.pair_formula()
