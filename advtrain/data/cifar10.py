"""CIFAR-10."""

from advtrain.data.cifar import CIFAR


class CIFAR10(CIFAR):
    """60,000 colour images of 10 classes; see `CIFAR` for the arguments. `root` holds cifar-10-batches-py/."""

    name = "cifar10"
    classes = 10
    torchvision_name = "CIFAR10"
    folder = "cifar-10-batches-py"
    files = (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch", "batches.meta")
