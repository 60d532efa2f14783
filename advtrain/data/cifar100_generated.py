"""CIFAR-100 with generated images in every training batch."""

from advtrain.data.cifar100 import CIFAR100
from advtrain.data.cifar_generated import CIFARGenerated


class CIFAR100Generated(CIFARGenerated):
    """CIFAR-100 and a set of generated images; see `CIFARGenerated` for the arguments. Evaluated as CIFAR-100."""

    name = "cifar100"
    real = CIFAR100
