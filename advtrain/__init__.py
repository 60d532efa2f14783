"""advtrain: adversarial training with evidence.

    attack = advtrain.attacks.PGD(norm="linf", eps=8 / 255, steps=10, step_size=2 / 255, init="uniform")
    loss = advtrain.losses.IKL(num_classes=10, wmse_weight=20, ce_weight=4, temperature=4)
    x_adv = attack(loss.inner(model, x, y), x, generator=generator)
    total, parts = loss.outer(model, x, x_adv, y)

Importing the package is cheap: PyTorch is imported with the first part that is used.
"""

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

_PARTS = ("attacks", "data", "engine", "evaluation", "export", "losses", "models", "report")


def __getattr__(name: str) -> Any:
    if name in _PARTS:
        return import_module(f"advtrain.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*globals(), *_PARTS]
