"""Networks. All take images in [0, 1] and normalise inside, if at all; RobustBench loads the state dicts strictly.

The files of the architectures import nothing but PyTorch: an exported bundle carries its file as it is. torchvision and
timm are imported when one of their models is built.
"""

from advtrain.models.dm_wide_resnet import DMWideResNet
from advtrain.models.libraries import resnet_50, timm_model
from advtrain.models.normalize import Normalize
from advtrain.models.preact_resnet import PreActResNet
from advtrain.models.preact_resnet_small import SmallPreActResNet
from advtrain.models.small_cnn import SmallCNN
from advtrain.models.wide_resnet import WideResNet

__all__ = [
    "DMWideResNet",
    "Normalize",
    "PreActResNet",
    "SmallCNN",
    "SmallPreActResNet",
    "WideResNet",
    "resnet_50",
    "timm_model",
]
