"""IAD: the student trusts its teacher as far as that withstands x', and itself for the rest."""

import torch

from advtrain import checks
from advtrain.losses.robust_distillation import Answers, RobustDistillation
from advtrain.losses.shapes import hard_labels, prepared
from advtrain.types import Logits, PerImage, Scalar, Targets


class IAD(RobustDistillation):
    """(1 - α) CE(f(x), y) + α [w T² KL(t(x)/T || f(x')/T) + (1 - w) KL(f(x) || f(x'))], w = (softmax t(x'))_y^β.

    Zhu et al., "Reliable Adversarial Distillation with Unreliable Teachers", ICLR 2022, arXiv:2106.04928, in the form
    that builds on ARD (IAD-I); x' maximises CE(f(x'), y). The second term, introspection, passes a gradient to both of
    its sides and has no temperature, as in the published code; during the first W epochs it is off and w is 1. The
    paper multiplies the teacher's term by w. The published code of IAD-I leaves it whole and adds (1 - w) times the
    introspection to it: `discount_teacher=false`. (That of IAD-II, which is not here, multiplies.) Defaults are those
    of the code: α = 1, T = 1, β = 0.1, W = 60 of 200 epochs; its KL is a mean over images, `kl_weight=1`. Its attack
    sees BatchNorm in train mode (`trainer.attack_batchnorm=train`) and starts uniformly in the ball.

    Args:
        alpha, temperature: α, T.
        power: β; 0 is ARD.
        warmup_epochs: W.
        discount_teacher: whether the teacher's term is multiplied by w.
        divergence, num_classes, kl_weight, wmse_weight, ce_weight, prior_temperature, global_weights, inner,
            label_smoothing: as for `RobustDistillation`. With divergence=ikl the introspection is IKL, too.
    """

    term = "iad"

    def __init__(
        self,
        *,
        alpha: float = 1.0,
        temperature: float = 1.0,
        power: float = 0.1,
        warmup_epochs: int = 60,
        discount_teacher: bool = True,
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
        self.power = checks.number("loss.power", power, low=0)
        self.warmup_epochs = checks.integer("loss.warmup_epochs", warmup_epochs, low=0)
        self.discount_teacher = checks.flag("loss.discount_teacher", discount_teacher)
        self.takes_soft_labels = False  # w asks for one true class
        self._introspective = True

    def start_epoch(self, epoch: int) -> None:
        self._introspective = epoch > self.warmup_epochs

    @property
    def needs_taught_adv(self) -> bool:
        return self._introspective

    @property
    def drives_natural(self) -> bool:
        return self.alpha < 1 or self._introspective

    def adversarial(self, answers: Answers, y: Targets) -> Scalar:
        guidance = self.distance(answers.taught, answers.adversarial, y, self.temperature)
        if not self._introspective:
            return guidance.mean()
        assert answers.taught_adv is not None
        trust = self.trust(answers.taught_adv, y)
        introspection = (1 - trust) * self.distance(answers.natural, answers.adversarial, y, 1.0)
        return ((trust * guidance if self.discount_teacher else guidance) + introspection).mean()

    def trust(self, taught_adv: Logits, y: Targets) -> PerImage:
        """w of each image, shape (N,), constant."""
        log_p = prepared(taught_adv.detach())[0].log_softmax(1)
        return torch.exp(self.power * log_p.gather(1, hard_labels(y, "IAD")[:, None])[:, 0])

    def adversarial_formula(self) -> str:
        guidance = self.distance_formula("t(x)", "f(x')", self.temperature)
        introspection = self.distance_formula("f(x)", "f(x')")
        trust = "w " if self.discount_teacher else ""
        late = f", w = 1 until epoch {self.warmup_epochs}" if self.warmup_epochs else ""
        return f"({trust}{guidance} + (1 - w) {introspection}), w = softmax(t(x'))_y^{self.power:g}{late}"
