"""The words that signatures are written in: tensor roles, the objective of an attack, and the one error users see.

Shapes are jaxtyping annotations: n images, c channels, h × w pixels, k classes. They are checked under pytest only.
"""

import math
from abc import abstractmethod
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
    """Finds images near `x` on which the objective is large; see `advtrain.attacks`.

    A class of your own derives from this one and defines `__call__`. The rest has an answer already; give a better one
    where a schedule shall wrap the attack (`with_budget`) or the opening lines shall describe it (`describe`).

    Attributes:
        norm: the word of the norm that `radius` is measured in.
    """

    norm: str = "linf"

    @abstractmethod
    def __call__(self, objective: Objective, x: Tensor, *, generator: Any = None) -> Tensor:
        """Images in [0, 1] within `radius` of `x`, same shape, dtype and device, detached."""
        ...

    @property
    def radius(self) -> float:
        """How far from `x` the images may lie; ∞ where the attack makes no promise."""
        return math.inf

    @property
    def starts_at_image(self) -> bool:
        """Whether the first gradient is taken at `x`, where a divergence from the natural prediction has none."""
        return False

    @property
    def single_step(self) -> bool:
        """Whether one gradient decides, in any phase of training: prone to catastrophic overfitting."""
        return False

    def for_epoch(self, epoch: int, epochs: int) -> "Attack":
        """The attack of that epoch of `epochs`, counted from 1."""
        return self

    def with_budget(self, *, eps: float, steps: int | None = None, relative_step_size: float | None = None) -> "Attack":
        """The same attack with another radius and, where given, other steps: what a schedule changes.

        Args:
            eps: in place of the attack's own.
            steps: of each start; the attack's own when None.
            relative_step_size: as a fraction of `eps`; when None the step keeps its proportion to the radius.

        Raises:
            SettingError: the attack has no such setting.
        """
        raise SettingError(
            f"attack: expected one that schedules can wrap, got {type(self).__name__} without with_budget; define it"
        )

    def using(self, ascent: Any) -> "Attack":
        """The same attack, whose passes `ascent` runs (`attacks.ascent.Ascent`); itself where it has no say."""
        return self

    def describe(self) -> str:
        """The attack in one line, for people: shown when a run starts."""
        return type(self).__name__
