"""Small trained networks, and how bits and verdicts are compared."""

import pickle
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from advtrain.models import SmallPreActResNet
from tests.conftest import CHECKOUT

# Radii at which the toy's images break early, late and never.
EPS = {"linf": 0.06, "l2": 0.8, "l1": 5.0}


class Toy(NamedTuple):
    """A model in eval mode with frozen weights, and images that it classifies correctly."""

    model: nn.Module
    x: Tensor
    y: Tensor

    def broken(self, images: Tensor) -> Tensor:
        """Which of the images are misclassified."""
        return self.model(images).argmax(1) != self.y


@cache
def toy(classes: int = 6, shape: tuple[int, int, int] = (3, 10, 10), n: int = 20) -> Toy:
    """Images are a smooth pattern of their class, of random contrast, and noise; levels of grey as in a file."""
    generator = torch.Generator().manual_seed(classes)
    channels, h, w = shape
    y = torch.randint(0, classes, (300,), generator=generator)
    patterns = F.interpolate(torch.rand(classes, channels, 3, 3, generator=generator), (h, w), mode="bilinear")
    contrast = 0.1 + 0.6 * torch.rand(300, 1, 1, 1, generator=generator)
    x = 0.5 + contrast * (patterns[y] - 0.5) + 0.2 * (torch.rand(300, *shape, generator=generator) - 0.5)
    x[::7] = x[::7] * 2 - 0.5  # some pixels are black or white
    x = (x.clamp(0, 1) * 255).round() / 255
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(classes)
        model = nn.Sequential(
            nn.Conv2d(channels, 8, 3, padding=1),
            nn.BatchNorm2d(8),
            nn.ReLU(),
            nn.Conv2d(8, 12, 3, stride=2),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(12 * ((h - 1) // 2) * ((w - 1) // 2), classes),
        )
        optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
        for _ in range(40):
            optimizer.zero_grad()
            F.cross_entropy(model(x), y).backward()
            optimizer.step()
    model.eval().requires_grad_(False)
    right = model(x).argmax(1) == y
    return Toy(model, x[right][:n].contiguous(), y[right][:n])


def robust_model(real_data: Path, n: int) -> Toy:
    """The published CPU model and real images that it classifies correctly."""
    model, (x, y) = published_model(), first_images(real_data, 3 * n)
    right = model(x).argmax(1) == y
    return Toy(model, x[right][:n].contiguous(), y[right][:n])


def published_model() -> nn.Module:
    """The published CPU model for CIFAR-10."""
    weights = CHECKOUT / "checkpoints/cifar10_cpu/models/cifar10/Linf/Advtrain2026_cifar10_cpu.pt"
    model = SmallPreActResNet(num_classes=10).eval().requires_grad_(False)
    model.load_state_dict(torch.load(weights, weights_only=True)["state_dict"])
    return model


def first_images(real_data: Path, n: int) -> tuple[Tensor, Tensor]:
    """CIFAR-10's first `n` test images and their labels, from the one file that holds them."""
    with open(real_data / "cifar-10-batches-py" / "test_batch", "rb") as file:
        batch = pickle.load(file, encoding="bytes")
    return torch.tensor(batch[b"data"][:n]).view(-1, 3, 32, 32) / 255, torch.tensor(batch[b"labels"][:n])


def same_bits(a: Tensor, b: Tensor) -> bool:
    """Unlike torch.equal, tells 0 from -0."""
    return torch.equal(a.view(torch.int32), b.view(torch.int32))


class Counts(TorchDispatchMode):
    """Counts operations by name, images that pass the first convolution, and gradients of weights."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: dict[str, int] = {}
        self.batches: list[int] = []
        self.weight_gradients = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        self.calls[name] = self.calls.get(name, 0) + 1
        if name == "convolution" and args[1].shape[0] == 8:
            self.batches.append(len(args[0]))
        if name == "convolution_backward":
            self.weight_gradients += args[-1][1]
        return func(*args, **(kwargs or {}))

    @property
    def host_looks(self) -> int:
        """How often the host waits for results, on a GPU."""
        return sum(self.calls.get(name, 0) for name in ("_local_scalar_dense", "nonzero", "is_nonzero", "item"))


@contextmanager
def threads(number: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)
