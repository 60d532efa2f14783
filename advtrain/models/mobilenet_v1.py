"""MobileNet for ImageNet, as the distillation literature defines it."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

# Channels and stride of each depthwise separable convolution (arXiv:1704.04861, table 1).
SEPARABLE = ((64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2), *[(512, 1)] * 5, (1024, 2), (1024, 1))


class MobileNetV1(nn.Module):
    """MobileNet (Howard et al., 2017, arXiv:1704.04861): the 4.2 M student of ResNet-50 in ImageNet's tables.

    The definition of mdistiller (Zhao et al., 2022, arXiv:2203.08679) with ReLU; its `model.` is `features.` here.
    (timm's mobilenetv1_100 has ReLU6 and other statistics.) Takes images in [0, 1], shape (n, 3, h, w), and
    standardises them inside; mean and deviation are not in the state dict. Returns logits, shape (n, C). The features
    averaged have a 32nd of the image's height and width. Initialised as there, by PyTorch's defaults.

    Args:
        num_classes: C.
        mean, std: per channel; ImageNet's by default.

    Raises:
        ValueError: an argument is out of range.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        *,
        num_classes: int = 1000,
        mean: Sequence[float] = (0.485, 0.456, 0.406),
        std: Sequence[float] = (0.229, 0.224, 0.225),
    ) -> None:
        super().__init__()
        if type(num_classes) is not int or num_classes < 1:
            raise ValueError(f"model.num_classes: expected an integer of at least 1, got {num_classes!r}; count them")
        if len(mean) != 3 or len(std) != 3 or min(std) <= 0:
            got = f"{list(mean)} and {list(std)}"
            raise ValueError(f"model.mean, model.std: expected three of each, std above 0, got {got}; give such values")
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float32).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std, dtype=torch.float32).view(3, 1, 1), persistent=False)
        layers, channels = [nn.Sequential(*_convolution(3, 32, 3, 2))], 32
        for channels_out, stride in SEPARABLE:
            depthwise = _convolution(channels, channels, 3, stride, groups=channels)
            layers.append(nn.Sequential(*depthwise, *_convolution(channels, channels_out, 1, 1)))
            channels = channels_out
        self.features = nn.Sequential(*layers)
        self.fc = nn.Linear(channels, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.features((x - self.mean) / self.std).mean((2, 3)))


def _convolution(channels_in: int, channels_out: int, size: int, stride: int, groups: int = 1) -> list[nn.Module]:
    convolution = nn.Conv2d(channels_in, channels_out, size, stride, size // 2, groups=groups, bias=False)
    return [convolution, nn.BatchNorm2d(channels_out), nn.ReLU()]
