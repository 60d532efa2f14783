"""What the tests of the loss classes share: images that are their own logits, and every loss in every variant."""

from functools import cache
from typing import Any

import torch
import yaml
from torch import Tensor, nn

from advtrain import losses
from advtrain.composition import choices
from advtrain.config import config_dir
from advtrain.losses import Loss

CLASSES = 5

# Settings that change what a loss computes, tried on every loss whose YAML has them.
OPTIONS: dict[str, list[Any]] = {
    "label_smoothing": [0.1],
    "second_view_weight": [0.3],
    "divergence": ["reverse_kl", "js", "squared"],
    "break_asymmetry": [False],
    "global_weights": [False],
    "normaliser": ["sample"],
    "inner": ["ce", "kl", "margin"],
}


@cache
def _config(name: str) -> dict[str, Any]:
    return yaml.safe_load((config_dir() / "loss" / f"{name}.yaml").read_text())


def variants() -> list[tuple[str, dict[str, Any]]]:
    """(name, changed settings): every YAML as it is, and with each option changed alone."""
    found: list[tuple[str, dict[str, Any]]] = []
    for name in choices("loss"):
        found.append((name, {}))
        found += [(name, {key: value}) for key, values in OPTIONS.items() if key in _config(name) for value in values]
    return found


def made(name: str, classes: int = CLASSES, **changes: Any) -> Loss:
    """The loss of a YAML with some settings changed, for few classes; where it has a prior, that is no longer flat."""
    config = {**_config(name), **changes}
    if "num_classes" in config:
        config["num_classes"] = classes
    loss = getattr(losses, config.pop("_target_").rpartition(".")[2])(**config)
    if loss.has_prior:
        rows = 2 * torch.randn(classes, classes, generator=torch.Generator().manual_seed(8))
        loss.prior.weights.copy_(rows.softmax(1))
    return loss


def images(n: int = 6, scale: float = 1.0, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor]:
    """x, x' of shape (n, C, 1, 1), to be differentiated, and labels; `identity` gives them back as logits (n, C)."""
    generator = torch.Generator().manual_seed(4)
    x = scale * torch.randn(n, CLASSES, 1, 1, dtype=torch.float64, generator=generator)
    x_adv = x + scale * torch.randn(n, CLASSES, 1, 1, dtype=torch.float64, generator=generator)
    y = torch.arange(n) % (CLASSES - 1)  # one class stays absent
    return x.to(dtype).requires_grad_(), x_adv.to(dtype).requires_grad_(), y


identity = nn.Flatten()
