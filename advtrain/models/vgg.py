"""VGGs with BatchNorm for CIFAR, as the distillation literature defines them."""

import torch.nn.functional as F
from torch import Tensor, nn

CONVOLUTIONS = {8: (1, 1, 1, 1, 1), 11: (1, 1, 2, 2, 2), 13: (2, 2, 2, 2, 2), 16: (2, 2, 3, 3, 3), 19: (2, 2, 4, 4, 4)}
CHANNELS = (64, 128, 256, 512, 512)


class VGG(nn.Module):
    """VGG-8 to -19 (Simonyan & Zisserman, 2014, arXiv:1409.1556) with BatchNorm and one linear layer.

    The definition of CRD (Tian et al., 2020, arXiv:1910.10699) and mdistiller, whose state dicts load strictly: five
    stages, pooling by 2 after the first three (after the fourth for images of 64 pixels and more), and a mean over the
    rest. Takes images in [0, 1], shape (n, 3, h, w), without normalisation; returns logits, shape (n, C). Initialised
    as there: convolutions by He et al. (fan-out), the linear layer with deviation 0.01.

    Args:
        num_classes: C.
        depth: 8, 11, 13, 16 or 19, counted as if there were three linear layers.

    Raises:
        ValueError: an argument is out of range.
    """

    def __init__(self, *, num_classes: int = 100, depth: int = 13) -> None:
        super().__init__()
        if type(num_classes) is not int or num_classes < 1:
            raise ValueError(f"model.num_classes: expected an integer of at least 1, got {num_classes!r}; count them")
        if type(depth) is not int or depth not in CONVOLUTIONS:
            raise ValueError(f"model.depth: expected 8, 11, 13, 16 or 19, got {depth!r}; choose one of them")
        inputs = (3, *CHANNELS)
        stages = [_stage(*sizes) for sizes in zip(inputs, CHANNELS, CONVOLUTIONS[depth], strict=False)]
        self.block0, self.block1, self.block2, self.block3, self.block4 = stages
        self.classifier = nn.Linear(512, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d) and module.bias is not None:
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
                nn.init.zeros_(module.bias)
        nn.init.normal_(self.classifier.weight, std=0.01)
        nn.init.zeros_(self.classifier.bias)

    def forward(self, x: Tensor) -> Tensor:
        large = x.shape[2] >= 64
        for stage in (self.block0, self.block1, self.block2):
            x = F.max_pool2d(F.relu(stage(x)), 2)
        x = F.relu(self.block3(x))
        x = F.relu(self.block4(F.max_pool2d(x, 2) if large else x))
        return self.classifier(x.mean((2, 3)))


def _stage(channels_in: int, channels_out: int, convolutions: int) -> nn.Sequential:
    """Convolutions and BatchNorms with ReLU between them; the last ReLU is the caller's, as in CRD's names."""
    layers: list[nn.Module] = []
    for i in range(convolutions):
        layers += [nn.ReLU()] if i else []
        layers += [nn.Conv2d(channels_out if i else channels_in, channels_out, 3, 1, 1), nn.BatchNorm2d(channels_out)]
    return nn.Sequential(*layers)
