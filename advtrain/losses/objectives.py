"""What the inner attack maximises: a model and a measure of its logits, bound to one batch."""

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor, nn

from advtrain.losses import functional
from advtrain.types import Images, Logits, PerImage, Targets

INNER = ("ce", "kl", "margin", "ikl")  # the words of loss.inner


@dataclass(frozen=True)
class CrossEntropy:
    """Cross-entropy with the label, hard or soft (Madry et al., arXiv:1706.06083)."""

    y: Targets

    def __call__(self, logits: Logits) -> PerImage:
        return functional.cross_entropy_per_image(logits, self.y)


@dataclass(frozen=True)
class Margin:
    """max_{j≠y} o_j - o_y (Carlini & Wagner, arXiv:1608.04644, without the cut at κ)."""

    y: Targets

    def __call__(self, logits: Logits) -> PerImage:
        return functional.margin_per_image(logits, self.y)


@dataclass(frozen=True)
class KL:
    """KL from the natural prediction (TRADES, arXiv:1901.08573). Its gradient is zero at the natural image itself."""

    natural_logits: Logits

    def __call__(self, logits: Logits) -> PerImage:
        return functional.kl_per_image(self.natural_logits, logits)


@dataclass(frozen=True)
class IKL:
    """IKL from the natural prediction with both weights 1 (the attack of arXiv:2305.13948 on CIFAR-100)."""

    natural_logits: Logits
    class_weights: Logits

    def __call__(self, logits: Logits) -> PerImage:
        return functional.ikl_per_image(self.natural_logits, logits, self.class_weights)


@dataclass(frozen=True)
class ModelObjective:
    """Images → loss per image, by way of the model."""

    model: nn.Module
    measure: Callable[[Tensor], Tensor]

    def __call__(self, x: Images) -> PerImage:
        return self.measure(self.model(x))


def objective(inner: str, model: nn.Module, x: Images, y: Targets, class_weights: Logits | None) -> ModelObjective:
    """The objective named `inner` for one batch. Natural logits are computed once, without gradient, where needed."""
    measures: dict[str, Any] = {"ce": CrossEntropy, "kl": KL, "margin": Margin, "ikl": IKL}
    measure = measures[inner]
    needed = {field.name for field in fields(measure)}
    values: dict[str, Any] = {"y": y, "class_weights": class_weights}
    if "natural_logits" in needed:
        with torch.no_grad():
            values["natural_logits"] = model(x)
    return ModelObjective(model, measure(**{name: values[name] for name in needed}))
