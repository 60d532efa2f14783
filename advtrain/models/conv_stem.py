"""ConvStem: convolutions in place of the patches by which ViTs and ConvNeXts start, with RobustBench's state dicts.

Singh et al. (2023, arXiv:2303.01870): the one change of architecture that made all of them more robust on ImageNet.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# By timm's name of the body: channels of the stem's 3 × 3 convolutions, which of them have stride 2, and how many
# channels a last 1 × 1 convolution makes. The stem reduces the image as the patches did, by 4 or 16.
STEMS = {
    "convnext_tiny": ((48, 96), (2, 2), None),
    "convnext_small": ((48, 96), (2, 2), None),
    "convnext_base": ((64, 96, 128), (2, 2, 1), None),
    "convnext_large": ((96, 144, 192), (2, 2, 1), None),
    "deit_small_patch16_224": ((48, 96, 192, 384), (2, 2, 2, 2), 384),
    "vit_base_patch16_224": ((48, 96, 192, 384), (2, 2, 2, 2), 768),
}


class ChannelNorm(nn.Module):
    """LayerNorm over the channels of each pixel, shape (n, c, h, w)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        return F.layer_norm(x.permute(0, 2, 3, 1), self.weight.shape, self.weight, self.bias, 1e-6).permute(0, 3, 1, 2)


class ConvStem(nn.Module):
    """3 × 3 convolutions, each followed by LayerNorm and GELU, and maybe a 1 × 1 convolution.

    Args:
        channels: of each 3 × 3 convolution.
        strides: of each.
        channels_out: of the 1 × 1 convolution; None for none.
    """

    def __init__(self, channels: tuple[int, ...], strides: tuple[int, ...], channels_out: int | None) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for before, after, stride in zip((3, *channels), channels, strides, strict=False):
            layers += [nn.Conv2d(before, after, 3, stride, 1), ChannelNorm(after), nn.GELU()]
        if channels_out is not None:
            layers.append(nn.Conv2d(channels[-1], channels_out, 1))
        self.stem = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        return self.stem(x)


def with_conv_stem(body: nn.Module, name: str) -> nn.Module:
    """Replaces the patches of a ConvNeXt or ViT of timm.

    Args:
        body: the model, changed in place and returned.
        name: timm's, a key of STEMS.
    """
    stem = ConvStem(*STEMS[name])
    if hasattr(body, "stem"):
        body.stem = stem
    else:
        body.get_submodule("patch_embed").proj = stem
    return body
