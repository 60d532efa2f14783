"""ResNets for CIFAR-sized images, with the state dict of RobustBench's `ResNet`."""

import torch.nn.functional as F
from torch import Tensor, nn

BLOCKS = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3)}  # per stage


class BasicBlock(nn.Module):
    """Two 3 × 3 convolutions, each before its BatchNorm (He et al., 2015, arXiv:1512.03385)."""

    expansion = 1

    def __init__(self, channels_in: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels_in, channels, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.shortcut = _shortcut(channels_in, channels, stride)

    def forward(self, x: Tensor) -> Tensor:
        out = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        return F.relu(out + self.shortcut(x))


class Bottleneck(nn.Module):
    """1 × 1, 3 × 3 and 1 × 1 convolutions, the last four times as wide; the 3 × 3 one has the stride."""

    expansion = 4

    def __init__(self, channels_in: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels_in, channels, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.conv3 = nn.Conv2d(channels, 4 * channels, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(4 * channels)
        self.shortcut = _shortcut(channels_in, 4 * channels, stride)

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)))
        out = F.relu(self.bn2(self.conv2(out)))
        return F.relu(self.bn3(self.conv3(out)) + self.shortcut(x))


class ResNet(nn.Module):
    """Post-activation ResNet with a 3 × 3 stem of stride 1: what "ResNet-18" means on CIFAR.

    Takes images in [0, 1], shape (n, 3, h, w), without normalisation, as RobustBench's `ResNet18()` (there from
    github.com/kuangliu/pytorch-cifar); returns logits, shape (n, C). Initialised as there, by PyTorch's defaults.
    Not ImageNet's ResNet of the same depth, whose stem reduces the image by 4; not the thin ResNet-20, -56 and -110
    of He et al. for CIFAR either.

    Args:
        num_classes: C.
        depth: 18, 34 (basic blocks), 50, 101 or 152 (bottlenecks).

    Raises:
        ValueError: an argument is out of range.
    """

    def __init__(self, *, num_classes: int = 10, depth: int = 18) -> None:
        super().__init__()
        if type(num_classes) is not int or num_classes < 1:
            raise ValueError(f"model.num_classes: expected an integer of at least 1, got {num_classes!r}; count them")
        if type(depth) is not int or depth not in BLOCKS:
            raise ValueError(f"model.depth: expected 18, 34, 50, 101 or 152, got {depth!r}; choose one of them")
        block, blocks = BasicBlock if depth < 50 else Bottleneck, BLOCKS[depth]
        self.conv1 = nn.Conv2d(3, 64, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.layer1 = _layer(block, 64, 64, blocks[0], 1)
        self.layer2 = _layer(block, 64 * block.expansion, 128, blocks[1], 2)
        self.layer3 = _layer(block, 128 * block.expansion, 256, blocks[2], 2)
        self.layer4 = _layer(block, 256 * block.expansion, 512, blocks[3], 2)
        self.linear = nn.Linear(512 * block.expansion, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)))
        out = self.layer4(self.layer3(self.layer2(self.layer1(out))))
        return self.linear(F.avg_pool2d(out, out.shape[2:]).flatten(1))  # pools as RobustBench's class does, to the bit


def _layer(
    block: type[BasicBlock] | type[Bottleneck], channels_in: int, channels: int, blocks: int, stride: int
) -> nn.Sequential:
    first = block(channels_in, channels, stride)
    return nn.Sequential(first, *(block(channels * block.expansion, channels, 1) for _ in range(blocks - 1)))


def _shortcut(channels_in: int, channels_out: int, stride: int) -> nn.Sequential:
    if stride == 1 and channels_in == channels_out:
        return nn.Sequential()
    return nn.Sequential(nn.Conv2d(channels_in, channels_out, 1, stride, bias=False), nn.BatchNorm2d(channels_out))
