"""Pre-activation ResNets for CIFAR-sized images, with the state dict of RobustBench's `PreActResNet`."""

import torch.nn.functional as F
from torch import Tensor, nn

BLOCKS = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3)}  # per stage, by depth


class PreActBlock(nn.Module):
    """BatchNorm, ReLU, convolution, twice (He et al., "Identity Mappings", 2016, arXiv:1603.05027)."""

    def __init__(self, channels_in: int, channels_out: int, stride: int, out_shortcut: bool) -> None:
        super().__init__()
        self.out_shortcut = out_shortcut
        self.bn1 = nn.BatchNorm2d(channels_in)
        self.conv1 = nn.Conv2d(channels_in, channels_out, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels_out)
        self.conv2 = nn.Conv2d(channels_out, channels_out, 3, 1, 1, bias=False)
        self.projects = stride != 1 or channels_in != channels_out
        if self.projects:
            self.shortcut = nn.Sequential(nn.Conv2d(channels_in, channels_out, 1, stride, bias=False))

    def forward(self, x: Tensor) -> Tensor:
        activated = F.relu(self.bn1(x))
        shortcut = self.shortcut(activated if self.out_shortcut else x) if self.projects else x
        return self.conv2(F.relu(self.bn2(self.conv1(activated)))) + shortcut


class PreActResNet(nn.Module):
    """Pre-activation ResNet-18 or -34 for images in [0, 1], shape (n, 3, h, w); returns logits, shape (n, C).

    There is no normalisation before the first convolution, as in the IKL paper's CIFAR code. The defaults are the
    network of Rice et al. (2020, arXiv:2002.11569) and most of the field; with both switches off it is RobustBench's
    `PreActResNet18()`. Initialised as there, by PyTorch's defaults.

    Args:
        num_classes: C.
        depth: 18 or 34.
        bn_before_fc: BatchNorm and ReLU before the pooling.
        out_shortcut: projections take the activated input instead of the raw one.

    Raises:
        ValueError: an argument is out of range.
    """

    def __init__(
        self, *, num_classes: int = 10, depth: int = 18, bn_before_fc: bool = True, out_shortcut: bool = True
    ) -> None:
        super().__init__()
        if type(num_classes) is not int or num_classes < 1:
            raise ValueError(f"model.num_classes: expected an integer of at least 1, got {num_classes!r}; count them")
        if type(depth) is not int or depth not in BLOCKS:
            raise ValueError(f"model.depth: expected 18 or 34, got {depth!r}; choose one of them")
        for name, value in {"bn_before_fc": bn_before_fc, "out_shortcut": out_shortcut}.items():
            if type(value) is not bool:
                raise ValueError(f"model.{name}: expected true or false, got {value!r}; choose one of them")
        self.conv1 = nn.Conv2d(3, 64, 3, 1, 1, bias=False)
        self.layer1 = _layer(64, 64, BLOCKS[depth][0], 1, out_shortcut)
        self.layer2 = _layer(64, 128, BLOCKS[depth][1], 2, out_shortcut)
        self.layer3 = _layer(128, 256, BLOCKS[depth][2], 2, out_shortcut)
        self.layer4 = _layer(256, 512, BLOCKS[depth][3], 2, out_shortcut)
        self.bn_before_fc = bn_before_fc
        if bn_before_fc:
            self.bn = nn.BatchNorm2d(512)
        self.linear = nn.Linear(512, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        out = self.layer4(self.layer3(self.layer2(self.layer1(self.conv1(x)))))
        if self.bn_before_fc:
            out = F.relu(self.bn(out))
        return self.linear(F.avg_pool2d(out, out.shape[2:]).flatten(1))  # pools as RobustBench's class does, to the bit


def _layer(channels_in: int, channels_out: int, blocks: int, stride: int, out_shortcut: bool) -> nn.Sequential:
    first = PreActBlock(channels_in, channels_out, stride, out_shortcut)
    return nn.Sequential(first, *(PreActBlock(channels_out, channels_out, 1, out_shortcut) for _ in range(blocks - 1)))
