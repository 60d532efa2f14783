"""ShuffleNet for CIFAR, as the distillation literature defines it."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

GROUPS = 3
STEM = 24  # channels


class ShuffleUnit(nn.Module):
    """Grouped 1 × 1, depthwise 3 × 3 and grouped 1 × 1 convolutions; channels are shuffled after the first.

    With stride 2 the output is concatenated to the averaged input, so that it adds channels_out - channels_in channels.
    After the stem, whose channels are few, the first convolution has one group (arXiv:1707.01083, section 3.2).
    """

    def __init__(self, channels_in: int, channels_out: int, stride: int) -> None:
        super().__init__()
        added = channels_out - channels_in if stride == 2 else channels_out
        inner = added // 4
        self.stride = stride
        self.groups = 1 if channels_in == STEM else GROUPS
        self.conv1 = nn.Conv2d(channels_in, inner, 1, groups=self.groups, bias=False)
        self.bn1 = nn.BatchNorm2d(inner)
        self.conv2 = nn.Conv2d(inner, inner, 3, stride, 1, groups=inner, bias=False)
        self.bn2 = nn.BatchNorm2d(inner)
        self.conv3 = nn.Conv2d(inner, added, 1, groups=GROUPS, bias=False)
        self.bn3 = nn.BatchNorm2d(added)

    def forward(self, x: Tensor) -> Tensor:
        out = _shuffled(F.relu(self.bn1(self.conv1(x))), self.groups)
        out = F.relu(self.bn2(self.conv2(out)))
        out = self.bn3(self.conv3(out))
        if self.stride == 1:
            return F.relu(out + x)
        return F.relu(torch.cat([out, F.avg_pool2d(x, 3, 2, 1)], 1))


class ShuffleNetV1(nn.Module):
    """ShuffleNet 1× with three groups (Zhang et al., 2017, arXiv:1707.01083) for images of 32 × 32 pixels.

    The definition of CRD (Tian et al., 2020, arXiv:1910.10699) and mdistiller, whose state dicts load strictly.
    Differs from the paper: the stem is a 1 × 1 convolution of stride 1 without pooling, the depthwise convolution is
    followed by a ReLU, and a unit of stride 2 is narrower: inside it has a quarter of the channels that it adds, not of
    its output's. Takes images in [0, 1], shape (n, 3, h, w), without normalisation; returns logits, shape (n, C). The
    features averaged have an eighth of the image's height and width. Initialised as there, by PyTorch's defaults.

    Args:
        num_classes: C.

    Raises:
        ValueError: the argument is out of range.
    """

    def __init__(self, *, num_classes: int = 100) -> None:
        super().__init__()
        if type(num_classes) is not int or num_classes < 1:
            raise ValueError(f"model.num_classes: expected an integer of at least 1, got {num_classes!r}; count them")
        self.conv1 = nn.Conv2d(3, STEM, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(STEM)
        self.layer1 = _layer(STEM, 240, 4)
        self.layer2 = _layer(240, 480, 8)
        self.layer3 = _layer(480, 960, 4)
        self.linear = nn.Linear(960, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)))
        out = self.layer3(self.layer2(self.layer1(out)))
        return self.linear(out.mean((2, 3)))


def _layer(channels_in: int, channels_out: int, units: int) -> nn.Sequential:
    first = ShuffleUnit(channels_in, channels_out, 2)
    return nn.Sequential(first, *(ShuffleUnit(channels_out, channels_out, 1) for _ in range(units - 1)))


def _shuffled(x: Tensor, groups: int) -> Tensor:
    """Channels in the order: the first of each group, the second of each, …"""
    return x.unflatten(1, (groups, -1)).transpose(1, 2).flatten(1, 2)
