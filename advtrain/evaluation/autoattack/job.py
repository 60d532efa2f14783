"""What AutoAttack works on, and how one batch is attacked: the seam between the run and the engines."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from advtrain.evaluation.autoattack.exact import Found
from advtrain.evaluation.autoattack.plan import AttackPlan
from advtrain.types import Images, Labels

# Attacks one batch: images, labels (both on the device), the attack and its seed. Whether an image that it returns
# counts is decided elsewhere, by the eager model in float32.
BatchAttack = Callable[[Tensor, Tensor, AttackPlan, int], Found]


@dataclass(frozen=True)
class Job:
    """One run of a sequence of attacks.

    Attributes:
        model: images to logits, eager, in eval mode, on `device`.
        x: images in [0, 1], shape (n, c, h, w), contiguous, on the CPU.
        y: labels, on the CPU.
        planned: the attacks, in order.
        seed: every batch starts from it.
        batch_size: images per batch; part of the random draws.
        device: where the attacks run.
        report: takes lines of progress.
        name: what those lines call the run.
    """

    model: nn.Module
    x: Images
    y: Labels
    planned: Sequence[AttackPlan]
    seed: int
    batch_size: int
    device: torch.device | str
    report: Callable[[str], None]
    name: str = "AutoAttack"

    @torch.no_grad()
    def clean(self) -> Tensor:
        """Which images are classified correctly without an attack, bool, on the CPU."""
        parts = [self.model(part.to(self.device)).argmax(1).cpu() for part in self.x.split(self.batch_size)]
        return torch.cat(parts) == self.y
