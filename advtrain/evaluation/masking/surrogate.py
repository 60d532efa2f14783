"""An ordinary model, trained without attacks, on which images are made that shall transfer."""

from importlib import resources

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from advtrain.data.base import Split
from advtrain.models import ResNet, SmallPreActResNet
from advtrain.random import seeded_generator, stream_seed

SIDE = 32  # larger images are reduced to about this before the small network sees them
STEPS, BATCH, LEARNING_RATE = 400, 64, 2e-3


def standard_surrogate(dataset: str) -> nn.Module | None:
    """A model that comes with an installed package: for "cifar10" AutoAttack's example, a standard ResNet-18.

    Returns:
        The model, in eval mode, on the CPU; None for other datasets or where the package lacks the file.
    """
    file = resources.files("pyautoattack").joinpath("examples", "model_test.pt")
    if dataset != "cifar10" or not file.is_file():
        return None
    model = ResNet(num_classes=10, depth=18)
    with resources.as_file(file) as path:
        model.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
    return model.eval().requires_grad_(False)


def train_surrogate(
    split: Split, num_classes: int, *, seed: int = 0, device: torch.device | str = "cpu", steps: int = STEPS
) -> nn.Module:
    """Trains a small network on a split, with Adam on the cross-entropy for `steps` batches of 64.

    About 10 s on one core for 32 × 32. The same seed gives the same model; global generators stay as they were.

    Args:
        split: labelled training images.
        num_classes: of the labels.
        seed: of weights and batches.
        device: where it is trained, and stays.
        steps: batches.

    Returns:
        The model, in eval mode.
    """
    channels = split.fetch(torch.zeros(1, dtype=torch.int64), "cpu").shape[1]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(stream_seed(seed, "surrogate"))
        model = nn.Sequential(_Reduced(), SmallPreActResNet(num_classes=num_classes, width=16, in_channels=channels))
    model.to(device).train()
    optimizer = torch.optim.Adam(model.parameters(), lr=LEARNING_RATE)
    generator = seeded_generator(seed, "surrogate", "batches")
    for _ in range(steps):
        rows = torch.randint(len(split), (min(BATCH, len(split)),), generator=generator)
        loss = F.cross_entropy(model(split.fetch(rows, device)), split.labels[rows].to(device))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model.eval().requires_grad_(False)


class _Reduced(nn.Module):
    """Averages over squares of pixels so that the longer side is at most 2 · SIDE - 1."""

    def forward(self, x: Tensor) -> Tensor:
        factor = max(x.shape[2:]) // SIDE
        return F.avg_pool2d(x, factor) if factor > 1 else x
