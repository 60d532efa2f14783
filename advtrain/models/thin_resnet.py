"""The thin three-stage ResNets of He et al. for CIFAR, as the distillation literature defines them."""

import torch.nn.functional as F
from torch import Tensor, nn


class BasicBlock(nn.Module):
    """Two 3 × 3 convolutions, each before its BatchNorm (He et al., 2015, arXiv:1512.03385)."""

    def __init__(self, channels_in: int, channels_out: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels_in, channels_out, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels_out)
        self.conv2 = nn.Conv2d(channels_out, channels_out, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels_out)
        self.downsample = None
        if stride != 1 or channels_in != channels_out:
            projection = nn.Conv2d(channels_in, channels_out, 1, stride, bias=False)
            self.downsample = nn.Sequential(projection, nn.BatchNorm2d(channels_out))

    def forward(self, x: Tensor) -> Tensor:
        out = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        return F.relu(out + (x if self.downsample is None else self.downsample(x)))


class ThinResNet(nn.Module):
    """ResNet-8 to -110 with 16, 32, 64 channels: resnet20, resnet56, resnet8x4, … of distillation tables.

    The definition of CRD (Tian et al., 2020, arXiv:1910.10699) and mdistiller, whose state dicts load strictly: where
    the width changes the shortcut is a 1 × 1 convolution with BatchNorm. "x4" has four times the channels, and a stem
    of 32. Takes images in [0, 1], shape (n, 3, h, w), without normalisation; returns logits, shape (n, C). Initialised
    as there (He et al., 2015, arXiv:1502.01852, fan-out).

    Args:
        num_classes: C.
        depth: 6 k + 2.
        width: 1 or 4.

    Raises:
        ValueError: an argument is out of range.
    """

    def __init__(self, *, num_classes: int = 100, depth: int = 20, width: int = 1) -> None:
        super().__init__()
        if type(num_classes) is not int or num_classes < 1:
            raise ValueError(f"model.num_classes: expected an integer of at least 1, got {num_classes!r}; count them")
        if type(depth) is not int or depth < 8 or depth % 6 != 2:
            raise ValueError(f"model.depth: expected 8, 14, 20, 32, 56, … (6 k + 2), got {depth!r}; choose one of them")
        if type(width) is not int or width not in (1, 4):
            raise ValueError(f"model.width: expected 1 or 4, got {width!r}; choose one of them")
        stem, channels, blocks = 16 if width == 1 else 32, 16 * width, (depth - 2) // 6
        self.conv1 = nn.Conv2d(3, stem, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(stem)
        self.layer1 = _layer(stem, channels, blocks, 1)
        self.layer2 = _layer(channels, 2 * channels, blocks, 2)
        self.layer3 = _layer(2 * channels, 4 * channels, blocks, 2)
        self.fc = nn.Linear(4 * channels, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)))
        out = self.layer3(self.layer2(self.layer1(out)))
        return self.fc(out.mean((2, 3)))


def _layer(channels_in: int, channels_out: int, blocks: int, stride: int) -> nn.Sequential:
    first = BasicBlock(channels_in, channels_out, stride)
    return nn.Sequential(first, *(BasicBlock(channels_out, channels_out, 1) for _ in range(blocks - 1)))
