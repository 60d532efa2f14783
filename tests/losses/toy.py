"""What the tests of the loss classes share: images that are their own logits, and every loss in every variant."""

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from advtrain import losses
from advtrain.composition import choices, own_settings
from advtrain.config import config_dir
from advtrain.losses import Distillation, Loss, Teacher

CLASSES = 5

# Settings that change what a loss computes, tried on every loss whose YAML has them.
OPTIONS: dict[str, list[Any]] = {
    "label_smoothing": [0.1],
    "second_view_weight": [0.3],
    "divergence": ["reverse_kl", "js", "squared"],
    "break_asymmetry": [False],
    "global_weights": [False, True],
    "normaliser": ["sample"],
    "inner": ["ce", "kl", "margin"],
}

# For robust distillation several together, where one alone changes nothing or names something else.
ROBUST: list[dict[str, Any]] = [
    {"inner": "margin"},
    {"inner": "teacher_kl"},
    {"inner": "adaptive_kl"},
    {"alpha": 0.5, "label_smoothing": 0.1},
    {"alpha": 0.5, "inner": "teacher_ikl"},
    {"divergence": "ikl", "inner": "adaptive_ikl"},
    {"divergence": "ikl", "global_weights": False},
    {"discount_teacher": False},
]


@cache
def _config(name: str) -> dict[str, Any]:
    return own_settings("loss", name, [config_dir()])


class Bent(nn.Module):
    """Images of shape (n, C, 1, 1) that are the logits of `identity`, to other logits, of another order.

    Each class is bent alone, by powers of two: renaming the classes renames the result, and no precision rounds it.
    """

    def forward(self, x: Tensor) -> Tensor:
        return torch.where(x > 0, 0.5 * x, -2 * x).flatten(1)


def of_kind(matches: Callable[[Loss], bool]) -> list[str]:
    """The loss YAMLs whose loss, as it is, matches."""
    return [name for name in choices("loss") if matches(made(name))]


def variants() -> list[tuple[str, dict[str, Any]]]:
    """(name, changed settings): every YAML as it is, and with each option changed alone."""
    found: list[tuple[str, dict[str, Any]]] = []
    for name in choices("loss"):
        own = _config(name)
        found.append((name, {}))
        single = [{key: value} for key, values in OPTIONS.items() for value in values]
        tried = ROBUST if made(name).attacks_by_teacher else single
        found += [(name, c) for c in tried if c.keys() <= own.keys() and any(own[key] != c[key] for key in c)]
    return found


def made(name: str, classes: int = CLASSES, **changes: Any) -> Loss:
    """The loss of a YAML with some settings changed, for few classes; where it has a prior, that is no longer flat, and
    where it needs a teacher, it holds one."""
    config = {**_config(name), **changes}
    if "num_classes" in config:
        config["num_classes"] = classes
    loss = getattr(losses, config.pop("_target_").rpartition(".")[2])(**config)
    if loss.has_prior:
        rows = 2 * torch.randn(classes, classes, generator=torch.Generator().manual_seed(8))
        loss.prior.weights.copy_(rows.softmax(1))
    return loss.hold(Teacher(Bent())) if isinstance(loss, Distillation) else loss


def images(n: int = 6, scale: float = 1.0, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor]:
    """x, x' of shape (n, C, 1, 1), to be differentiated, and labels; `identity` gives them back as logits (n, C)."""
    generator = torch.Generator().manual_seed(4)
    x = scale * torch.randn(n, CLASSES, 1, 1, dtype=torch.float64, generator=generator)
    x_adv = x + scale * torch.randn(n, CLASSES, 1, 1, dtype=torch.float64, generator=generator)
    y = torch.arange(n) % (CLASSES - 1)  # one class stays absent
    return x.to(dtype).requires_grad_(), x_adv.to(dtype).requires_grad_(), y


identity = nn.Flatten()
