"""A pre-activation ResNet small enough to train adversarially on a CPU."""

from torch import Tensor, nn

ACTIVATIONS = {"relu": nn.ReLU, "silu": nn.SiLU}


class Block(nn.Module):
    """Two 3 × 3 convolutions behind BatchNorm and activation (He et al., 2016, arXiv:1603.05027)."""

    def __init__(self, channels_in: int, channels_out: int, stride: int, activation: type[nn.Module]) -> None:
        super().__init__()
        self.norm1 = nn.BatchNorm2d(channels_in)
        self.conv1 = nn.Conv2d(channels_in, channels_out, 3, stride, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(channels_out)
        self.conv2 = nn.Conv2d(channels_out, channels_out, 3, 1, 1, bias=False)
        self.act = activation()
        same = stride == 1 and channels_in == channels_out
        self.shortcut = None if same else nn.Conv2d(channels_in, channels_out, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        activated = self.act(self.norm1(x))
        shortcut = x if self.shortcut is None else self.shortcut(activated)
        return self.conv2(self.act(self.norm2(self.conv1(activated)))) + shortcut


class SmallPreActResNet(nn.Module):
    """Pre-activation ResNet with four stages and a stem of stride 2: 1.2 M parameters at width 32, one block each.

    Takes images in [0, 1], shape (n, c, h, w); no normalisation beyond BatchNorm. Returns logits, shape (n, C).

    Args:
        num_classes: C.
        width: channels of the first stage; each later one doubles them (32, 64, 128, 256).
        blocks: per stage.
        activation: "relu" or "silu".
        in_channels: of the images.

    Raises:
        ValueError: an argument is out of range.
    """

    def __init__(
        self,
        *,
        num_classes: int = 10,
        width: int = 32,
        blocks: int = 1,
        activation: str = "relu",
        in_channels: int = 3,
    ) -> None:
        super().__init__()
        sizes = {"num_classes": num_classes, "width": width, "blocks": blocks, "in_channels": in_channels}
        for name, value in sizes.items():
            if type(value) is not int or value < 1:
                raise ValueError(f"model.{name}: expected an integer of at least 1, got {value!r}; choose such a size")
        if activation not in ACTIVATIONS:
            raise ValueError(f"model.activation: expected relu or silu, got {activation!r}; choose one of them")
        act = ACTIVATIONS[activation]
        self.stem = nn.Conv2d(in_channels, width, 3, 2, 1, bias=False)
        stages, channels = [], width
        for stage in range(4):
            for block in range(blocks):
                stride = 2 if stage > 0 and block == 0 else 1
                stages.append(Block(channels, width * 2**stage, stride, act))
                channels = width * 2**stage
        self.stages = nn.Sequential(*stages)
        self.norm = nn.BatchNorm2d(channels)
        self.act = act()
        self.classifier = nn.Linear(channels, num_classes)
        for module in self.modules():  # He et al. (2015, arXiv:1502.01852), as Wide ResNets are
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        features = self.act(self.norm(self.stages(self.stem(x))))
        return self.classifier(features.mean((2, 3)))
