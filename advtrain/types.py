"""The words that signatures are written in: tensor roles, the objective of an attack, and the one error users see.

Shapes are jaxtyping annotations: n images, c channels, h × w pixels, k classes. They are checked under pytest only.
"""

from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

from jaxtyping import Float, Int
from torch import Tensor

Images = Float[Tensor, "n c h w"]  # pixels in [0, 1]
Logits = Float[Tensor, "n k"]
Labels = Int[Tensor, " n"]
SoftLabels = Float[Tensor, "n k"]  # probabilities of the classes, of mixed images
Targets = Labels | SoftLabels
PerImage = Float[Tensor, " n"]
Scalar = Float[Tensor, ""]

# What an attack maximises. It knows the model and the labels, so that the attack need not.
Objective = Callable[[Tensor], Tensor]  # Images -> PerImage

Parts = dict[str, Tensor]  # the named, detached terms of a loss, for the log


class SettingError(ValueError):
    """A setting that cannot be used: one line that says what was expected, what came, and the remedy.

    The command line prints the line and exits with 2 before any compute is spent.
    """


class FileError(SettingError):
    """A data file that cannot be used. Unlike other settings, it may be met by one process of several only."""


@runtime_checkable
class Attack(Protocol):
    """Finds images near `x` on which the objective is large; see `advtrain.attacks`."""

    def __call__(self, objective: Objective, x: Tensor, *, generator: Any = None) -> Tensor: ...
