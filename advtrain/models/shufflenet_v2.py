"""ShuffleNetV2 for CIFAR, as the distillation literature defines it."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class BasicUnit(nn.Module):
    """Half of the channels pass as they are, the others through three convolutions; then the halves alternate."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        half = channels // 2
        self.conv1 = nn.Conv2d(half, half, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(half)
        self.conv2 = nn.Conv2d(half, half, 3, 1, 1, groups=half, bias=False)
        self.bn2 = nn.BatchNorm2d(half)
        self.conv3 = nn.Conv2d(half, half, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(half)

    def forward(self, x: Tensor) -> Tensor:
        kept, out = x.chunk(2, 1)
        out = F.relu(self.bn1(self.conv1(out)))
        out = self.bn2(self.conv2(out))
        return _alternating(kept, F.relu(self.bn3(self.conv3(out))))


class DownUnit(nn.Module):
    """Two branches of stride 2, each of which sees all channels and gives half of the output's."""

    def __init__(self, channels_in: int, channels_out: int) -> None:
        super().__init__()
        half = channels_out // 2
        self.conv1 = nn.Conv2d(channels_in, channels_in, 3, 2, 1, groups=channels_in, bias=False)
        self.bn1 = nn.BatchNorm2d(channels_in)
        self.conv2 = nn.Conv2d(channels_in, half, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(half)
        self.conv3 = nn.Conv2d(channels_in, half, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(half)
        self.conv4 = nn.Conv2d(half, half, 3, 2, 1, groups=half, bias=False)
        self.bn4 = nn.BatchNorm2d(half)
        self.conv5 = nn.Conv2d(half, half, 1, bias=False)
        self.bn5 = nn.BatchNorm2d(half)

    def forward(self, x: Tensor) -> Tensor:
        short = F.relu(self.bn2(self.conv2(self.bn1(self.conv1(x)))))
        long = F.relu(self.bn3(self.conv3(x)))
        long = self.bn4(self.conv4(long))
        return _alternating(short, F.relu(self.bn5(self.conv5(long))))


class ShuffleNetV2(nn.Module):
    """ShuffleNetV2 1× (Ma et al., 2018, arXiv:1807.11164) for images of 32 × 32 pixels.

    The definition of CRD (Tian et al., 2020, arXiv:1910.10699) and mdistiller, whose state dicts load strictly.
    Differs from the paper in its stem, a 1 × 1 convolution of stride 1 without pooling. Takes images in [0, 1], shape
    (n, 3, h, w), without normalisation; returns logits, shape (n, C). The features averaged have an eighth of the
    image's height and width. Initialised as there, by PyTorch's defaults.

    Args:
        num_classes: C.

    Raises:
        ValueError: the argument is out of range.
    """

    def __init__(self, *, num_classes: int = 100) -> None:
        super().__init__()
        if type(num_classes) is not int or num_classes < 1:
            raise ValueError(f"model.num_classes: expected an integer of at least 1, got {num_classes!r}; count them")
        self.conv1 = nn.Conv2d(3, 24, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(24)
        self.layer1 = _layer(24, 116, 4)
        self.layer2 = _layer(116, 232, 8)
        self.layer3 = _layer(232, 464, 4)
        self.conv2 = nn.Conv2d(464, 1024, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(1024)
        self.linear = nn.Linear(1024, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)))
        out = self.layer3(self.layer2(self.layer1(out)))
        out = F.relu(self.bn2(self.conv2(out)))
        return self.linear(out.mean((2, 3)))


def _layer(channels_in: int, channels_out: int, units: int) -> nn.Sequential:
    return nn.Sequential(DownUnit(channels_in, channels_out), *(BasicUnit(channels_out) for _ in range(units - 1)))


def _alternating(one: Tensor, other: Tensor) -> Tensor:
    """Channels of the two in turn: the channel shuffle of two groups."""
    return torch.stack([one, other], 2).flatten(1, 2)
