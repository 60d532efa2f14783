"""MobileNetV2 for CIFAR, as the distillation literature defines it."""

from torch import Tensor, nn

# Channels at width 1, blocks and the first block's stride of each stage.
STAGES = ((16, 1, 1), (24, 2, 1), (32, 3, 2), (64, 4, 2), (96, 3, 1), (160, 3, 2), (320, 1, 1))


class InvertedResidual(nn.Module):
    """1 × 1, depthwise 3 × 3 and 1 × 1 convolutions, with BatchNorms; the last is linear (arXiv:1801.04381)."""

    def __init__(self, channels_in: int, channels_out: int, stride: int, expansion: int) -> None:
        super().__init__()
        inner = expansion * channels_in
        self.conv = nn.Sequential(
            nn.Conv2d(channels_in, inner, 1, bias=False),
            nn.BatchNorm2d(inner),
            nn.ReLU(),
            nn.Conv2d(inner, inner, 3, stride, 1, groups=inner, bias=False),
            nn.BatchNorm2d(inner),
            nn.ReLU(),
            nn.Conv2d(inner, channels_out, 1, bias=False),
            nn.BatchNorm2d(channels_out),
        )
        self.residual = stride == 1 and channels_in == channels_out

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv(x) if self.residual else self.conv(x)


class MobileNetV2(nn.Module):
    """MobileNetV2 (Sandler et al., 2018, arXiv:1801.04381) for images of 32 × 32 pixels.

    The definition of CRD (Tian et al., 2020, arXiv:1910.10699) and mdistiller, whose state dicts load strictly; with
    width 0.5 it is their `mobile_half`. Differs from the paper: ReLU instead of ReLU6, stride 1 in the second stage,
    an expanding convolution in the first stage too, channels rounded down instead of to multiples of 8, no dropout.
    Takes images in [0, 1], shape (n, 3, h, w), without normalisation; returns logits, shape (n, C). The features
    averaged have a sixteenth of the image's height and width. Initialised as there: convolutions by He et al.
    (fan-out), the linear layer with deviation 0.01.

    Args:
        num_classes: C.
        width: multiplies the channels, from 0.1 to 4; the last convolution has 1280 × max(width, 1).
        expansion: channels inside a block over those of its input, from the second stage on; CRD's T.

    Raises:
        ValueError: an argument is out of range.
    """

    def __init__(self, *, num_classes: int = 100, width: float = 0.5, expansion: int = 6) -> None:
        super().__init__()
        for name, value in {"num_classes": num_classes, "expansion": expansion}.items():
            if type(value) is not int or value < 1:
                raise ValueError(f"model.{name}: expected an integer of at least 1, got {value!r}; choose such a size")
        if type(width) not in (int, float) or not 0.1 <= width <= 4:
            raise ValueError(f"model.width: expected a number from 0.1 to 4, got {width!r}; choose one of these")
        channels, last = int(32 * width), int(1280 * max(width, 1))
        self.conv1 = nn.Sequential(nn.Conv2d(3, channels, 3, 2, 1, bias=False), nn.BatchNorm2d(channels), nn.ReLU())
        stages = []
        for i, (full, blocks, stride) in enumerate(STAGES):
            stages.append(_stage(channels, int(full * width), blocks, stride, expansion if i else 1))
            channels = int(full * width)
        self.blocks = nn.Sequential(*stages)
        self.conv2 = nn.Sequential(nn.Conv2d(channels, last, 1, bias=False), nn.BatchNorm2d(last), nn.ReLU())
        self.classifier = nn.Sequential(nn.Linear(last, num_classes))
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            elif isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=0.01)
                nn.init.zeros_(module.bias)

    def forward(self, x: Tensor) -> Tensor:
        out = self.conv2(self.blocks(self.conv1(x)))
        return self.classifier(out.mean((2, 3)))


def _stage(channels_in: int, channels_out: int, blocks: int, stride: int, expansion: int) -> nn.Sequential:
    first = InvertedResidual(channels_in, channels_out, stride, expansion)
    return nn.Sequential(
        first, *(InvertedResidual(channels_out, channels_out, 1, expansion) for _ in range(blocks - 1))
    )
