"""ARD: adversarial training with the teacher's soft labels."""

from advtrain.losses.robust_distillation import Answers, RobustDistillation
from advtrain.types import Scalar, Targets


class ARD(RobustDistillation):
    """(1 - α) CE(f(x), y) + α T² KL(t(x)/T || f(x')/T), where x' maximises CE(f(x'), y).

    Goldblum et al., "Adversarially Robust Distillation", AAAI 2020, arXiv:1905.09747; defaults α = 1, T = 30 of the
    published code, whose KL is averaged over the classes, too: `kl_weight=0.1` on CIFAR-10, 0.01 on CIFAR-100. Its
    attack sees BatchNorm in train mode (`trainer.attack_batchnorm=train`) and starts uniformly in the ball.

    Args:
        alpha, temperature: α, T.
        divergence, num_classes, kl_weight, wmse_weight, ce_weight, prior_temperature, global_weights, inner,
            label_smoothing: as for `RobustDistillation`.
    """

    term = "ard"

    def __init__(
        self,
        *,
        alpha: float = 1.0,
        temperature: float = 30.0,
        divergence: str = "kl",
        num_classes: int | None = None,
        kl_weight: float = 1.0,
        wmse_weight: float = 1.0,
        ce_weight: float = 1.0,
        prior_temperature: float = 4.0,
        global_weights: bool = True,
        inner: str = "ce",
        label_smoothing: float = 0.0,
    ) -> None:
        super().__init__(
            alpha=alpha,
            temperature=temperature,
            divergence=divergence,
            num_classes=num_classes,
            kl_weight=kl_weight,
            wmse_weight=wmse_weight,
            ce_weight=ce_weight,
            prior_temperature=prior_temperature,
            global_weights=global_weights,
            inner=inner,
            label_smoothing=label_smoothing,
        )

    def adversarial(self, answers: Answers, y: Targets) -> Scalar:
        return self.distance(answers.taught, answers.adversarial, y, self.temperature).mean()

    def adversarial_formula(self) -> str:
        return self.distance_formula("t(x)", "f(x')", self.temperature)
