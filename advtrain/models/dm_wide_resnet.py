"""DeepMind's Wide ResNets for CIFAR-sized images, with the state dict of RobustBench's `DMWideResNet`."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

ACTIVATIONS = {"relu": nn.ReLU, "silu": nn.SiLU}


class Block(nn.Module):
    """Pre-activation block. Stride 2 pads on the right and below only, as TensorFlow's SAME padding does."""

    def __init__(self, channels_in: int, channels_out: int, stride: int, activation: type[nn.Module]) -> None:
        super().__init__()
        self.batchnorm_0 = nn.BatchNorm2d(channels_in)
        self.conv_0 = nn.Conv2d(channels_in, channels_out, 3, stride, bias=False)
        self.batchnorm_1 = nn.BatchNorm2d(channels_out)
        self.conv_1 = nn.Conv2d(channels_out, channels_out, 3, 1, 1, bias=False)
        self.act = activation()
        self.pad = (1, 1, 1, 1) if stride == 1 else (0, 1, 0, 1)
        same = channels_in == channels_out
        self.shortcut = None if same else nn.Conv2d(channels_in, channels_out, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        activated = self.act(self.batchnorm_0(x))
        shortcut = x if self.shortcut is None else self.shortcut(activated)
        out = self.conv_0(F.pad(activated, self.pad))
        return self.conv_1(self.act(self.batchnorm_1(out))) + shortcut


class BlockGroup(nn.Module):
    """One stage; the first block changes width and resolution."""

    def __init__(self, blocks: int, channels_in: int, channels_out: int, stride: int, act: type[nn.Module]) -> None:
        super().__init__()
        first = Block(channels_in, channels_out, stride, act)
        self.block = nn.Sequential(first, *(Block(channels_out, channels_out, 1, act) for _ in range(blocks - 1)))

    def forward(self, x: Tensor) -> Tensor:
        return self.block(x)


class DMWideResNet(nn.Module):
    """WRN-depth-width of Gowal et al. (2020, arXiv:2010.03593), what the leaders with generated data use.

    Takes images in [0, 1], shape (n, 3, h, w), and normalises them inside; returns logits, shape (n, C). `mean` and
    `std` are buffers that the state dict leaves out, as RobustBench 1.1.1 and its later commits do: the same file loads
    strictly in both classes. (Its commits of 2021 kept them; they need `strict=False`.) Initialised as `WideResNet`.

    Args:
        num_classes: C.
        depth: 6 k + 4.
        width: multiplies the 16, 32, 64 channels of the three stages.
        activation: "silu" or "relu".
        mean, std: per channel.

    Raises:
        ValueError: an argument is out of range.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        *,
        num_classes: int = 10,
        depth: int = 28,
        width: int = 10,
        activation: str = "silu",
        mean: Sequence[float] = (0.4914, 0.4822, 0.4465),
        std: Sequence[float] = (0.2471, 0.2435, 0.2616),
    ) -> None:
        super().__init__()
        _check_sizes(num_classes, depth, width, activation)
        if len(mean) != 3 or len(std) != 3 or min(std) <= 0:
            got = f"{list(mean)} and {list(std)}"
            raise ValueError(f"model.mean, model.std: expected three of each, std above 0, got {got}; give such values")
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float32).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std, dtype=torch.float32).view(3, 1, 1), persistent=False)
        act = ACTIVATIONS[activation]
        blocks, channels = (depth - 4) // 6, 16 * width
        self.init_conv = nn.Conv2d(3, 16, 3, 1, 1, bias=False)
        self.layer = nn.Sequential(
            BlockGroup(blocks, 16, channels, 1, act),
            BlockGroup(blocks, channels, 2 * channels, 2, act),
            BlockGroup(blocks, 2 * channels, 4 * channels, 2, act),
        )
        self.batchnorm = nn.BatchNorm2d(4 * channels)
        self.act = act()
        self.logits = nn.Linear(4 * channels, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        nn.init.zeros_(self.logits.bias)

    def forward(self, x: Tensor) -> Tensor:
        out = self.layer(self.init_conv((x - self.mean) / self.std))
        out = self.act(self.batchnorm(out))
        return self.logits(F.avg_pool2d(out, out.shape[2:]).flatten(1))  # pools as RobustBench's class does, to the bit


def _check_sizes(num_classes: int, depth: int, width: int, activation: str) -> None:
    for name, value in {"num_classes": num_classes, "width": width}.items():
        if type(value) is not int or value < 1:
            raise ValueError(f"model.{name}: expected an integer of at least 1, got {value!r}; choose such a size")
    if type(depth) is not int or depth < 10 or depth % 6 != 4:
        raise ValueError(f"model.depth: expected 10, 16, 22, 28, 34, … (6 k + 4), got {depth!r}; choose one of them")
    if activation not in ACTIVATIONS:
        raise ValueError(f"model.activation: expected relu or silu, got {activation!r}; choose one of them")
