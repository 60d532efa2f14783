"""CIFAR-100."""

from advtrain.data.cifar import CIFAR


class CIFAR100(CIFAR):
    """60,000 colour images of 100 classes; see `CIFAR` for the arguments. `root` holds cifar-100-python/."""

    name = "cifar100"
    classes = 100
    torchvision_name = "CIFAR100"
    folder = "cifar-100-python"
    files = ("train", "test", "meta")
