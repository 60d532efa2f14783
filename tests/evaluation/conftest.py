"""Toy models whose robust accuracy is known in closed form."""

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn


class Linear(nn.Module):
    """logits = W·x + b."""

    def __init__(self, weight: Tensor, bias: Tensor) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(weight), nn.Parameter(bias)

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1) @ self.weight.T + self.bias


@dataclass
class ToySplit:
    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def fetch(self, indices: Tensor, device: torch.device | str) -> Tensor:
        return self.images[indices].to(device)

    def subset(self, n_examples: int | None) -> Tensor:
        return torch.arange(len(self))[:n_examples]


@dataclass
class Problem:
    """A linear model, images and the truth: which of them no perturbation of the ball can change."""

    model: Linear
    split: ToySplit
    norm: str
    eps: float
    clean: Tensor
    robust: Tensor


def linear_problem(num_classes: int, norm: str = "linf", n: int = 60) -> Problem:
    """Images in [0.35, 0.65], so that no perturbation reaches 0 or 1.

    The dual norm of w_y - w_j bounds by how much a perturbation of length eps can lower the margin between y and j,
    and reaches it: an image is robust exactly when every margin exceeds eps times that norm.
    """
    generator = torch.Generator().manual_seed(num_classes)
    weight = torch.randn(num_classes, 36, generator=generator)
    x = 0.35 + 0.3 * torch.rand(4 * n, 1, 6, 6, generator=generator)
    logits = x.flatten(1) @ weight.T
    bias = -logits.mean(0)
    logits = logits + bias
    y = logits.argmax(1)
    y[::7] = (y[::7] + 1) % num_classes  # some are misclassified from the start
    eps = {"linf": 0.006, "l2": 0.04, "l1": 0.1}[norm]
    differences = weight[y].unsqueeze(1) - weight  # (n, classes, pixels)
    dual = {"linf": 1, "l2": 2, "l1": torch.inf}[norm]
    length = differences.norm(p=dual, dim=2)
    margins = logits.gather(1, y[:, None]) - logits
    own = nn.functional.one_hot(y, num_classes).bool()
    worst = (margins - eps * length).masked_fill(own, torch.inf).amin(1)
    clear = worst.abs() > 0.02  # within rounding and the attacks' last step no verdict would be certain
    x, y, worst, margins, own = (t[clear][:n] for t in (x, y, worst, margins, own))
    clean = margins.masked_fill(own, torch.inf).amin(1) > 0
    return Problem(Linear(weight, bias), ToySplit(x, y), norm, eps, clean, worst > 0)


@pytest.fixture
def problem():
    """Makes a `Problem` for a number of classes and a norm."""
    return linear_problem
