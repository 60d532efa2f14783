"""A small network with trained weights on images that are easy, hard and hopeless to change within ε."""

from typing import NamedTuple

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Trained(NamedTuple):
    """A model in eval mode with frozen weights, and images that it classifies correctly."""

    model: nn.Module
    x: Tensor
    y: Tensor


def trained(classes: int, n: int = 24) -> Trained:
    """Four classes or fewer of 1×8×8 images in levels of grey: a bar at a height of its class, of random contrast."""
    generator = torch.Generator().manual_seed(classes)
    y = torch.randint(0, classes, (400,), generator=generator)
    contrast = torch.rand(400, 1, 1, 1, generator=generator)
    x = 0.25 + 0.3 * torch.rand(400, 1, 8, 8, generator=generator)
    bars = F.one_hot(2 * y, 8).float().view(-1, 1, 8, 1)
    x = ((x + contrast * bars).clamp(0, 1) * 255).round() / 255
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = nn.Sequential(
            nn.Conv2d(1, 6, 3, padding=1),
            nn.BatchNorm2d(6),
            nn.ReLU(),
            nn.Conv2d(6, 8, 3, stride=2),
            nn.Tanh(),
            nn.Flatten(),
            nn.Linear(72, classes),
        )
        optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
        for _ in range(60):
            optimizer.zero_grad()
            F.cross_entropy(model(x), y).backward()
            optimizer.step()
    optimizer.zero_grad()
    model.eval().requires_grad_(False)
    right = model(x).argmax(1) == y
    return Trained(model, x[right][:n].contiguous(), y[right][:n])


@pytest.fixture(scope="session")
def toy():
    """Makes a `Trained` for a number of classes."""
    made: dict[int, Trained] = {}
    return lambda classes: made.setdefault(classes, trained(classes))
