"""What the inner attack maximises: a model and a measure of its logits, bound to one batch."""

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from advtrain.losses import functional
from advtrain.losses.shapes import prepared
from advtrain.types import Images, Logits, PerImage, Targets

PLAIN = ("ce", "kl", "margin", "dlr", "ikl")  # the words of loss.inner
BY_TEACHER = ("teacher_kl", "teacher_ikl", "adaptive_kl", "adaptive_ikl")  # those of losses that hold a teacher
INNER = PLAIN + BY_TEACHER
CLASSES_NEEDED = {"dlr": 3}  # of the others two


@dataclass(frozen=True)
class CrossEntropy:
    """Cross-entropy with the label, hard or soft (Madry et al., arXiv:1706.06083)."""

    formula: ClassVar[str] = "CE(f(x'), y)"
    y: Targets

    def __call__(self, logits: Logits) -> PerImage:
        return functional.cross_entropy_per_image(logits, self.y)


@dataclass(frozen=True)
class Margin:
    """max_{j≠y} o_j - o_y (Carlini & Wagner, arXiv:1608.04644, without the cut at κ)."""

    formula: ClassVar[str] = "max_j≠y f_j(x') - f_y(x')"
    y: Targets

    def __call__(self, logits: Logits) -> PerImage:
        return functional.margin_per_image(logits, self.y)


@dataclass(frozen=True)
class DLR:
    """The difference of logits ratio (Croce & Hein, arXiv:2003.01690), which no scale of the logits changes.

    Untargeted, so three classes are enough; the targeted form, which needs four, is AutoAttack's alone.
    """

    formula: ClassVar[str] = "(max_j≠y f_j(x') - f_y(x')) / (f_1st(x') - f_3rd(x'))"
    y: Targets

    def __call__(self, logits: Logits) -> PerImage:
        return functional.dlr_per_image(logits, self.y)


@dataclass(frozen=True)
class KL:
    """KL from the natural prediction (TRADES, arXiv:1901.08573). Its gradient is zero at the natural image itself."""

    formula: ClassVar[str] = "KL(f(x) || f(x'))"
    natural_logits: Logits

    def __call__(self, logits: Logits) -> PerImage:
        return functional.kl_per_image(self.natural_logits, logits)


@dataclass(frozen=True)
class IKL:
    """IKL from the natural prediction with both weights 1 (the attack of arXiv:2305.13948 on CIFAR-100)."""

    formula: ClassVar[str] = "IKL(f(x), f(x'))"
    natural_logits: Logits
    class_weights: Logits

    def __call__(self, logits: Logits) -> PerImage:
        return functional.ikl_per_image(self.natural_logits, logits, self.class_weights)


@dataclass(frozen=True)
class TeacherKL:
    """KL from what the teacher says of the natural image (RSLAD, arXiv:2108.07969).

    Its gradient at the natural image itself is zero only where the student agrees with the teacher.
    """

    formula: ClassVar[str] = "KL(t(x) || f(x'))"
    taught: Logits

    def __call__(self, logits: Logits) -> PerImage:
        return functional.kl_per_image(self.taught, logits)


@dataclass(frozen=True)
class TeacherIKL:
    """IKL from what the teacher says of the natural image, both weights 1."""

    formula: ClassVar[str] = "IKL(t(x), f(x'))"
    taught: Logits
    class_weights: Logits

    def __call__(self, logits: Logits) -> PerImage:
        return functional.ikl_per_image(self.taught, logits, self.class_weights)


@dataclass(frozen=True)
class AdaptiveKL:
    """KL from what the teacher says of x' itself, with the gradient through both networks (AdaAD, CVPR 2023)."""

    formula: ClassVar[str] = "KL(t(x') || f(x'))"

    def __call__(self, logits: tuple[Logits, Logits]) -> PerImage:
        student, teacher = logits
        return functional.kl_per_image(teacher, student)


@dataclass(frozen=True)
class AdaptiveIKL:
    """IKL from what the teacher says of x' itself, both weights 1, with the gradient through both networks.

    To the teacher's side it is the wMSE that passes a gradient: the weights and the soft cross-entropy's targets are
    constants, as everywhere in IKL.

    Attributes:
        class_weights: p of the wMSE; None for softmax(t(x') / τ).
        temperature: τ.
    """

    formula: ClassVar[str] = "IKL(t(x'), f(x'))"
    class_weights: Logits | None
    temperature: float

    def __call__(self, logits: tuple[Logits, Logits]) -> PerImage:
        student, teacher = logits
        weights = softened(teacher, self.temperature) if self.class_weights is None else self.class_weights
        return functional.ikl_per_image(teacher, student, weights)


@dataclass(frozen=True)
class Both:
    """The student and its teacher as one: images → the logits of each. Equal wherever the two networks are the same."""

    student: nn.Module
    teacher: nn.Module

    def __call__(self, x: Images) -> tuple[Logits, Logits]:
        return self.student(x), self.teacher(x)


@dataclass(frozen=True)
class ModelObjective:
    """Images → loss per image, by way of the model."""

    model: Callable[..., Any]  # a network, or `Both`; for recorded attacks hashable, and equal from batch to batch
    measure: Callable[..., Tensor]

    def __call__(self, x: Images) -> PerImage:
        return self.measure(self.model(x))


MEASURES: dict[str, Any] = {
    "ce": CrossEntropy,
    "kl": KL,
    "margin": Margin,
    "dlr": DLR,
    "ikl": IKL,
    "teacher_kl": TeacherKL,
    "teacher_ikl": TeacherIKL,
    "adaptive_kl": AdaptiveKL,
    "adaptive_ikl": AdaptiveIKL,
}


def formula(inner: str) -> str:
    """What the objective named `inner` measures, in one line, for people."""
    return MEASURES[inner].formula


def objective(inner: str, model: nn.Module, x: Images, y: Targets, class_weights: Logits | None) -> ModelObjective:
    """The objective named `inner`, of `PLAIN`, for one batch. Natural logits are computed once, without gradient."""
    measure = MEASURES[inner]
    needed = {field.name for field in fields(measure)}
    values: dict[str, Any] = {"y": y, "class_weights": class_weights}
    if "natural_logits" in needed:
        with torch.no_grad():
            values["natural_logits"] = model(x)
    return ModelObjective(model, measure(**{name: values[name] for name in needed}))


def softened(logits: Logits, temperature: float) -> Logits:
    """softmax(o / τ), constant, in float32 or better: what weighs pairs of classes without a class prior."""
    return (prepared(logits.detach())[0] / temperature).softmax(1)
