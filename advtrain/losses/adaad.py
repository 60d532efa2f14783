"""AdaAD: the attack looks for images on which student and teacher disagree, and the teacher answers there."""

from advtrain.losses.robust_distillation import Answers, RobustDistillation
from advtrain.types import Scalar, Targets


class AdaAD(RobustDistillation):
    """(1 - α) KL(t(x) || f(x)) + α KL(t(x') || f(x')), where x' maximises KL(t(x') || f(x')); no labels.

    Huang et al., "Boosting Accuracy and Robustness of Student Models via Adaptive Adversarial Distillation", CVPR 2023,
    pages 24668 to 24677. The gradient of the attack goes through both networks, which makes each of its steps dearer
    by a pass through the teacher, forward and backward; the outer loss sees t(x') as a constant. Default α = 1 of the
    published code, whose KL on CIFAR-10 is averaged over the classes, too: `kl_weight=0.1` there, 1 on CIFAR-100. Its
    attack starts at x + 0.001 N(0, 1) in eval mode, and its natural images go through the student first.

    Args:
        alpha: α.
        divergence, num_classes, kl_weight, wmse_weight, ce_weight, prior_temperature, global_weights, inner: as for
            `RobustDistillation`. With divergence=ikl both terms are IKL; the attack stays what `inner` says.
    """

    term = "adaad"
    natural_term = "adaad_natural"

    def __init__(
        self,
        *,
        alpha: float = 1.0,
        divergence: str = "kl",
        num_classes: int | None = None,
        kl_weight: float = 1.0,
        wmse_weight: float = 1.0,
        ce_weight: float = 1.0,
        prior_temperature: float = 4.0,
        global_weights: bool = True,
        inner: str = "adaptive_kl",
    ) -> None:
        super().__init__(
            alpha=alpha,
            temperature=1.0,
            divergence=divergence,
            num_classes=num_classes,
            kl_weight=kl_weight,
            wmse_weight=wmse_weight,
            ce_weight=ce_weight,
            prior_temperature=prior_temperature,
            global_weights=global_weights,
            inner=inner,
            label_smoothing=0.0,
        )

    @property
    def needs_taught_adv(self) -> bool:
        return True

    def natural(self, answers: Answers, y: Targets) -> Scalar:
        return self.distance(answers.taught, answers.natural, y, 1.0).mean()

    def adversarial(self, answers: Answers, y: Targets) -> Scalar:
        assert answers.taught_adv is not None
        return self.distance(answers.taught_adv, answers.adversarial, y, 1.0).mean()

    def natural_formula(self) -> str:
        return self.distance_formula("t(x)", "f(x)")

    def adversarial_formula(self) -> str:
        return self.distance_formula("t(x')", "f(x')")
