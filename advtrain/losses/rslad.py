"""RSLAD: the teacher's soft labels of the natural images in every term, the attack included."""

from advtrain.losses.robust_distillation import Answers, RobustDistillation
from advtrain.types import Scalar, Targets


class RSLAD(RobustDistillation):
    """(1 - α) KL(t(x) || f(x)) + α KL(t(x) || f(x')), where x' maximises KL(t(x) || f(x')); no labels, no temperature.

    Zi et al., "Revisiting Adversarial Robustness Distillation: Robust Soft Labels Make Student Better", ICCV 2021,
    arXiv:2108.07969; α = 5/6 as published. The published code averages KL over the classes, too, and multiplies it by
    10 on CIFAR-100: `kl_weight=0.1` on both sets. It adds 1e-5 to t(x) inside the logarithm, which no gradient sees.
    Its attack starts at x + 0.001 N(0, 1) in eval mode.

    Args:
        alpha: α.
        divergence, num_classes, kl_weight, wmse_weight, ce_weight, prior_temperature, global_weights, inner: as for
            `RobustDistillation`. With divergence=ikl both terms are IKL; the attack stays what `inner` says.
    """

    term = "rslad"
    natural_term = "rslad_natural"

    def __init__(
        self,
        *,
        alpha: float | str = 5 / 6,
        divergence: str = "kl",
        num_classes: int | None = None,
        kl_weight: float = 1.0,
        wmse_weight: float = 1.0,
        ce_weight: float = 1.0,
        prior_temperature: float = 4.0,
        global_weights: bool = True,
        inner: str = "teacher_kl",
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

    def natural(self, answers: Answers, y: Targets) -> Scalar:
        return self.distance(answers.taught, answers.natural, y, 1.0).mean()

    def adversarial(self, answers: Answers, y: Targets) -> Scalar:
        return self.distance(answers.taught, answers.adversarial, y, 1.0).mean()

    def natural_formula(self) -> str:
        return self.distance_formula("t(x)", "f(x)")

    def adversarial_formula(self) -> str:
        return self.distance_formula("t(x)", "f(x')")
