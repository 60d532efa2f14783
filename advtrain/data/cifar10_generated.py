"""CIFAR-10 with generated images in every training batch."""

from advtrain.data.cifar10 import CIFAR10
from advtrain.data.cifar_generated import CIFARGenerated


class CIFAR10Generated(CIFARGenerated):
    """CIFAR-10 and a set of generated images; see `CIFARGenerated` for the arguments. Evaluated as CIFAR-10."""

    name = "cifar10"
    real = CIFAR10
