"""What the attacks of engine=exact have in common: how they are called, how they run, and what they return."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor

from advtrain.types import Images

Forward = Callable[[Tensor], Tensor]  # Images -> Logits; the model's parameters take no gradient


@dataclass(frozen=True)
class Execution:
    """How an attack runs. The defaults give upstream's bits on a CPU.

    Attributes:
        block: iterations between two moments at which the host looks at the device's results. 1 on a CPU, where looking
            is free; more on a GPU.
        shrink: whether images that are broken leave the batch at once, and passes that can change nothing are left out.
            The verdicts are then the same up to the rounding that depends on the size of a batch.
    """

    block: int = 1
    shrink: bool = False


UPSTREAM = Execution()


class Found(NamedTuple):
    """What an attack made of a batch.

    Attributes:
        images: adversarial images; the clean image where none was found. Shape and device of the batch.
        zero_gradients: for each start of an attack on the DLR loss, how many images had a gradient of exactly zero
            there; int64, shape (starts,), on the device. Empty for other attacks.
        margins: the smallest margin (logit of the true class minus the largest other one) that the attack saw of each
            image, float32, shape (n,), ∞ where it did not look. None of attacks that keep no account of it.
    """

    images: Images
    zero_gradients: Tensor
    margins: Tensor | None = None
