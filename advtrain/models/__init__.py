"""Networks. All take images in [0, 1] and normalise inside, if at all; RobustBench loads the state dicts strictly.

The files of the architectures import nothing but PyTorch: an exported bundle carries its file as it is. torchvision and
timm are imported when one of their models is built. `load_weights` and `checkpoint_blocks` work on any model.
"""

from advtrain.models.dm_wide_resnet import DMWideResNet
from advtrain.models.gradient_checkpointing import checkpoint_blocks
from advtrain.models.libraries import conv_stem_model, resnet_50, timm_model, torchvision_model
from advtrain.models.mobilenet_v1 import MobileNetV1
from advtrain.models.mobilenet_v2 import MobileNetV2
from advtrain.models.normalize import Normalize
from advtrain.models.preact_resnet import PreActResNet
from advtrain.models.preact_resnet_small import SmallPreActResNet
from advtrain.models.resnet import ResNet
from advtrain.models.shufflenet_v1 import ShuffleNetV1
from advtrain.models.shufflenet_v2 import ShuffleNetV2
from advtrain.models.small_cnn import SmallCNN
from advtrain.models.thin_resnet import ThinResNet
from advtrain.models.vgg import VGG
from advtrain.models.weights import load_weights
from advtrain.models.wide_resnet import WideResNet

__all__ = [
    "VGG",
    "DMWideResNet",
    "MobileNetV1",
    "MobileNetV2",
    "Normalize",
    "PreActResNet",
    "ResNet",
    "ShuffleNetV1",
    "ShuffleNetV2",
    "SmallCNN",
    "SmallPreActResNet",
    "ThinResNet",
    "WideResNet",
    "checkpoint_blocks",
    "conv_stem_model",
    "load_weights",
    "resnet_50",
    "timm_model",
    "torchvision_model",
]
