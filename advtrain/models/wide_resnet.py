"""Wide ResNets for CIFAR-sized images, with the state dict of RobustBench's `WideResNet` (from TRADES' code)."""

import torch.nn.functional as F
from torch import Tensor, nn

ACTIVATIONS = {"relu": nn.ReLU, "silu": nn.SiLU}


class BasicBlock(nn.Module):
    """Pre-activation block; where the width changes, the shortcut shares the activated input."""

    def __init__(self, channels_in: int, channels_out: int, stride: int, activation: type[nn.Module]) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(channels_in)
        self.conv1 = nn.Conv2d(channels_in, channels_out, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels_out)
        self.conv2 = nn.Conv2d(channels_out, channels_out, 3, 1, 1, bias=False)
        self.act = activation()
        same = channels_in == channels_out
        self.convShortcut = None if same else nn.Conv2d(channels_in, channels_out, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        activated = self.act(self.bn1(x))
        shortcut = x if self.convShortcut is None else self.convShortcut(activated)
        return self.conv2(self.act(self.bn2(self.conv1(activated)))) + shortcut


class NetworkBlock(nn.Module):
    """One stage; the first block changes width and resolution."""

    def __init__(self, blocks: int, channels_in: int, channels_out: int, stride: int, act: type[nn.Module]) -> None:
        super().__init__()
        first = BasicBlock(channels_in, channels_out, stride, act)
        self.layer = nn.Sequential(first, *(BasicBlock(channels_out, channels_out, 1, act) for _ in range(blocks - 1)))

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)


class WideResNet(nn.Module):
    """WRN-depth-width (Zagoruyko & Komodakis, 2016, arXiv:1605.07146) as adversarial training uses it.

    Takes images in [0, 1], shape (n, 3, h, w), without normalisation (as TRADES, AWP and the IKL paper's CIFAR code);
    returns logits, shape (n, C). Initialised as the TRADES code does (He et al., 2015, arXiv:1502.01852, fan-out).

    Args:
        num_classes: C.
        depth: 6 k + 4.
        widen_factor: multiplies the 16, 32, 64 channels of the three stages.
        activation: "relu", as in RobustBench, or "silu", which RobustBench's class lacks (`DMWideResNet` has it).

    Raises:
        ValueError: an argument is out of range.
    """

    def __init__(
        self, *, num_classes: int = 10, depth: int = 28, widen_factor: int = 10, activation: str = "relu"
    ) -> None:
        super().__init__()
        for name, value in {"num_classes": num_classes, "widen_factor": widen_factor}.items():
            if type(value) is not int or value < 1:
                raise ValueError(f"model.{name}: expected an integer of at least 1, got {value!r}; choose such a size")
        if type(depth) is not int or depth < 10 or depth % 6 != 4:
            raise ValueError(
                f"model.depth: expected 10, 16, 22, 28, 34, … (6 k + 4), got {depth!r}; choose one of them"
            )
        if activation not in ACTIVATIONS:
            raise ValueError(f"model.activation: expected relu or silu, got {activation!r}; choose one of them")
        act = ACTIVATIONS[activation]
        blocks, width = (depth - 4) // 6, 16 * widen_factor
        self.conv1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False)
        self.block1 = NetworkBlock(blocks, 16, width, 1, act)
        self.block2 = NetworkBlock(blocks, width, 2 * width, 2, act)
        self.block3 = NetworkBlock(blocks, 2 * width, 4 * width, 2, act)
        self.bn1 = nn.BatchNorm2d(4 * width)
        self.act = act()
        self.fc = nn.Linear(4 * width, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        nn.init.zeros_(self.fc.bias)

    def forward(self, x: Tensor) -> Tensor:
        out = self.block3(self.block2(self.block1(self.conv1(x))))
        out = self.act(self.bn1(out))
        return self.fc(F.avg_pool2d(out, out.shape[2:]).flatten(1))  # pools as RobustBench's class does, to the bit
