"""What the tests of the losses that distil share: a student, its teacher, and each loss as its YAML has it."""

from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from advtrain.composition import compose
from advtrain.config import build
from advtrain.losses import CleanDistillation, Teacher
from tests.losses.toy import of_kind

CLEAN = of_kind(lambda loss: isinstance(loss, CleanDistillation))


def network(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    layers = nn.Flatten(), nn.Linear(12, 7), nn.BatchNorm1d(7), nn.Tanh(), nn.Linear(7, 10)
    return nn.Sequential(*layers).double()


def teacher() -> Teacher:
    """A network that has seen data: its BatchNorm statistics are not those of any batch."""
    model = network(seed=9)
    model(3 * torch.rand(40, 3, 2, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(6)))
    with torch.no_grad():
        model[-1].weight.mul_(4)
    return Teacher(model)


def batch(n: int = 6) -> tuple[Tensor, Tensor]:
    x = torch.rand(n, 3, 2, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(4))
    return x, torch.tensor([0, 1, 2, 9, 1, 0])[:n]


@cache
def settings(name: str) -> dict[str, Any]:
    return compose("train", [f"loss={name}", "data=cifar10"])["loss"]


class Given(nn.Module):
    """A student that says what it is told to."""

    def __init__(self, logits: Tensor) -> None:
        super().__init__()
        self.logits = logits

    def forward(self, x: Tensor) -> Tensor:
        return self.logits


def configured(name: str, **changes: Any) -> Any:
    """The loss as the YAML has it, for ten classes, holding a teacher; a prior is no longer flat."""
    loss = build(settings(name) | changes).hold(teacher())
    if loss.has_prior:
        loss.prior.weights.copy_((3 * torch.rand(10, 10, generator=torch.Generator().manual_seed(8))).softmax(1))
    return loss


def cross_entropy(f: Tensor, y: Tensor) -> Tensor:
    return sum(row.exp().sum().log() - row[label] for row, label in zip(f, y, strict=True)) / len(y)
