"""Datasets, one file each. A dataset's file, and with it torchvision or scikit-learn, is imported on first use."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from advtrain.data.cifar10 import CIFAR10
    from advtrain.data.cifar10_generated import CIFAR10Generated
    from advtrain.data.cifar100 import CIFAR100
    from advtrain.data.cifar100_generated import CIFAR100Generated
    from advtrain.data.digits import Digits
    from advtrain.data.imagenet import ImageFolder
    from advtrain.data.imagenet_lt import ImageNetLT
    from advtrain.data.npz import Npz
    from advtrain.data.tiny_imagenet import TinyImageNet

__all__ = [
    "CIFAR10",
    "CIFAR100",
    "CIFAR10Generated",
    "CIFAR100Generated",
    "Digits",
    "ImageFolder",
    "ImageNetLT",
    "Npz",
    "TinyImageNet",
]

_FILES = {
    "CIFAR10": "cifar10",
    "CIFAR100": "cifar100",
    "CIFAR10Generated": "cifar10_generated",
    "CIFAR100Generated": "cifar100_generated",
    "Digits": "digits",
    "ImageFolder": "imagenet",
    "ImageNetLT": "imagenet_lt",
    "Npz": "npz",
    "TinyImageNet": "tiny_imagenet",
}


def __getattr__(name: str) -> Any:
    if name not in _FILES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"advtrain.data.{_FILES[name]}"), name)
