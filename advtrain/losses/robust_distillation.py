"""Robust distillation: a teacher and an attack. Here what ARD, RSLAD, AdaAD and IAD share."""

from abc import abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from advtrain import checks
from advtrain.losses import functional, objectives
from advtrain.losses.base import SOFT_INNER, accuracies, ce_formula
from advtrain.losses.class_prior import ClassPrior
from advtrain.losses.distillation import Distillation
from advtrain.losses.functional import cross_entropy_per_image
from advtrain.losses.objectives import ModelObjective
from advtrain.types import Images, Logits, Objective, Parts, PerImage, Scalar, Targets

DIVERGENCES = ("kl", "ikl")


@dataclass(frozen=True)
class Answers:
    """What teacher and student say of one batch: logits of shape (N, C).

    Attributes:
        taught: t(x).
        taught_adv: t(x'), where the loss needs it.
        natural: f(x); without gradient where the loss passes none.
        adversarial: f(x').
    """

    taught: Logits
    taught_adv: Logits | None
    natural: Logits
    adversarial: Logits


class RobustDistillation(Distillation):
    """(1 - α) N + α A: a term of the natural images, and one that holds f(x') to the teacher by a divergence D.

    D at temperature T is T² kl_weight · KL(o_m/T || o_n/T), with the teacher's logits o_m, constant, and the student's
    o_n. With `divergence="ikl"` it is IKL (arXiv:2305.13948) in its place, likewise at T:

        T² IKL(o_m/T, o_n/T) = wmse_weight · wMSE(o_m, o_n) + T² ce_weight · softCE(o_m/T, o_n/T),

    where the wMSE, here of the raw logits, drives the student (a constant teacher has no other side). Its pairs are
    weighed by the teacher's class prior, or by softmax(o_m / τ). With p = softmax(o_m / T) and both weights 1 the soft
    cross-entropy has the gradient of T² KL for the student, by theorem 1 of that paper, and the wMSE adds minus what
    KL's gradient is for the teacher. Nothing was published about these methods with IKL: the weights are 1 until told
    otherwise, τ is that of the paper's adversarial training.

    The teacher is the first argument of KL, as in the published codes whichever way the papers write it. KL is summed
    over classes and averaged over images. Published codes that average over classes, too, mean `kl_weight=1/C`, which
    with SGD is the C-th part of the learning rate under C times the weight decay.

    Adversarial images go through the student first, so that the natural statistics are the last to enter BatchNorm's
    averages, as in the published code of ARD, IAD and RSLAD. A natural pass that drives nothing takes no gradient.

    Args:
        alpha: α, from 0 to 1; a word such as 5/6 is read as a fraction.
        temperature: T.
        divergence: D: kl or ikl.
        num_classes: C, for the class prior of divergence=ikl.
        kl_weight: multiplies KL, for divergence=kl.
        wmse_weight, ce_weight: multiply the terms of IKL, for divergence=ikl.
        prior_temperature: τ of the weights, for divergence=ikl and the words teacher_ikl and adaptive_ikl of `inner`.
        global_weights: whether divergence=ikl weighs pairs by the class prior (mean of softmax(t / τ) over the natural
            images of the true class in the epoch before). If not, by softmax(o_m / τ) of the image itself.
        inner: what the attack maximises, one of ce, kl, margin, dlr, teacher_kl, teacher_ikl, adaptive_kl,
            adaptive_ikl; the last two ask the teacher at every step of the attack.
        label_smoothing: ε of the cross-entropy with the labels.
    """

    attacks_by_teacher = True
    term: str  # the name of α A in the log
    natural_term = "ce"  # and of (1 - α) N

    def __init__(
        self,
        *,
        alpha: float | str,
        temperature: float,
        divergence: str,
        num_classes: int | None,
        kl_weight: float,
        wmse_weight: float,
        ce_weight: float,
        prior_temperature: float,
        global_weights: bool,
        inner: str,
        label_smoothing: float,
    ) -> None:
        self.alpha = checks.number("loss.alpha", alpha, low=0, high=1)
        self.divergence = checks.choice("loss.divergence", divergence, DIVERGENCES)
        self.prior_temperature = checks.number("loss.prior_temperature", prior_temperature, above=0)
        prior = None
        if checks.flag("loss.global_weights", global_weights) and divergence == "ikl":
            classes = checks.integer("loss.num_classes", num_classes, low=2)
            prior = ClassPrior(num_classes=classes, temperature=prior_temperature)
        super().__init__(
            inner=inner, label_weight=1 - self.alpha, label_smoothing=label_smoothing, warmup_epochs=0, prior=prior
        )
        self.temperature = checks.number("loss.temperature", temperature, above=0)
        self.kl_weight = checks.number("loss.kl_weight", kl_weight, low=0)
        self.wmse_weight = checks.number("loss.wmse_weight", wmse_weight, low=0)
        self.ce_weight = checks.number("loss.ce_weight", ce_weight, low=0)
        self.takes_soft_labels = prior is None and inner in (*SOFT_INNER, *objectives.BY_TEACHER)

    @property
    def drives_natural(self) -> bool:
        """Whether the gradient passes through f(x)."""
        return self.alpha < 1

    def natural(self, answers: Answers, y: Targets) -> Scalar:
        """N; the cross-entropy with the labels where a method has no other."""
        return cross_entropy_per_image(answers.natural, y, self.label_smoothing).mean()

    @abstractmethod
    def adversarial(self, answers: Answers, y: Targets) -> Scalar:
        """A."""

    def natural_formula(self) -> str:
        """N in one line."""
        return ce_formula("x", self.label_smoothing)

    @abstractmethod
    def adversarial_formula(self) -> str:
        """A in one line."""

    def outer(
        self,
        model: nn.Module,
        x: Images,
        x_adv: Images,
        y: Targets,
        taught: Logits | None = None,
        taught_adv: Logits | None = None,
    ) -> tuple[Tensor, Parts]:
        taught = self.taught(x) if taught is None else taught
        if taught_adv is None and self.needs_taught_adv:
            taught_adv = self.taught(x_adv)
        adversarial = model(x_adv)
        with torch.set_grad_enabled(torch.is_grad_enabled() and self.drives_natural):
            natural = model(x)
        self.observe(taught, y)
        answers = Answers(taught, taught_adv, natural, adversarial)
        first = (1 - self.alpha) * self.natural(answers, y)
        second = self.alpha * self.adversarial(answers, y)
        total = first + second
        parts = {"loss": total.detach(), self.natural_term: first.detach(), self.term: second.detach()}
        return total, parts | accuracies(y, natural, adversarial, taught)

    def inner(self, model: nn.Module, x: Images, y: Targets, taught: Logits | None = None) -> Objective:
        word = self.inner_objective
        if word not in objectives.BY_TEACHER:
            return super().inner(model, x, y)
        weights = None if self.prior is None else self.prior(y)
        if word.startswith("adaptive"):
            both = objectives.Both(model, self.network())
            if word == "adaptive_kl":
                return ModelObjective(both, objectives.AdaptiveKL())
            return ModelObjective(both, objectives.AdaptiveIKL(weights, self.prior_temperature))
        taught = self.taught(x) if taught is None else taught
        if word == "teacher_kl":
            return ModelObjective(model, objectives.TeacherKL(taught))
        weights = objectives.softened(taught, self.prior_temperature) if weights is None else weights
        return ModelObjective(model, objectives.TeacherIKL(taught, weights))

    def distance(self, teacher: Logits, student: Logits, y: Targets, temperature: float) -> PerImage:
        """D of each image, shape (N,); the gradient reaches the student, and the teacher where that is no constant."""
        scale = temperature**2
        teacher, student = functional.prepared(teacher, student)
        if self.divergence == "kl":
            return self.kl_weight * scale * functional.kl_per_image(teacher / temperature, student / temperature)
        factors = objectives.softened(teacher, self.prior_temperature) if self.prior is None else self.prior(y)
        return scale * functional.ikl_per_image(
            teacher / temperature,
            student / temperature,
            factors,
            wmse_weight=self.wmse_weight,
            ce_weight=self.ce_weight,
        )

    def distance_formula(self, teacher: str, student: str, temperature: float = 1.0) -> str:
        """D in one line."""
        scale, over = (f"{temperature:g}² ", f"/{temperature:g}") if temperature != 1 else ("", "")
        if self.divergence == "kl":
            weight = f"{self.kl_weight:.4g} " if self.kl_weight != 1 else ""
            return f"{weight}{scale}KL({teacher}{over} || {student}{over})"
        weights = f"softmax({teacher}/τ)" if self.prior is None else "prior_y(t)"
        return (
            f"[{self.wmse_weight:g} wMSE({teacher}, {student}; {weights}, τ={self.prior_temperature:g})"
            f" + {self.ce_weight:g} {scale}softCE({teacher}{over}, {student}{over})]"
        )

    def formula(self) -> str:
        terms = ((1 - self.alpha, self.natural_formula()), (self.alpha, self.adversarial_formula()))
        return " + ".join(term if weight == 1 else f"{weight:.4g} {term}" for weight, term in terms if weight)
