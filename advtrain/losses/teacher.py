"""The network that a student learns from: frozen, in eval mode, asked once per batch."""

from typing import Any

import torch
from torch import nn

from advtrain.types import Images, Logits


class Teacher:
    """A trained network whose logits a loss holds its student to (Hinton et al., arXiv:1503.02531).

    It is no submodule of the loss: an optimiser, DDP and a checkpoint of the run never meet its weights, and
    `loss.train()` leaves it in eval mode, so its BatchNorm statistics never move.

    Args:
        model: images in [0, 1], shape (n, c, h, w), to logits, shape (n, C), with its own normalisation inside; changed
            to eval mode, without gradients of its parameters. A copy, where the network itself is to be trained on.
        name: for people.

    Attributes:
        model: as above; called by itself where a gradient for the images is wanted (`loss=adaad`).
    """

    def __init__(self, model: nn.Module, *, name: str = "teacher") -> None:
        self.model = model.eval().requires_grad_(False)
        self.name = name

    @torch.no_grad()
    def __call__(self, x: Images) -> Logits:
        """The logits of a batch, constants, in the precision that the caller has chosen by autocast."""
        return self.model.eval()(x)

    def __deepcopy__(self, memo: dict[int, Any]) -> "Teacher":
        # Copies of a loss learn from the same network, which never changes: one in memory is enough.
        return self

    def to(self, *where: Any, **how: Any) -> "Teacher":
        """Moves the network, as `nn.Module.to` does."""
        self.model.to(*where, **how)
        return self
