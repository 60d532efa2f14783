"""Entry for robustbench/model_zoo/cifar10.py, Linf."""

from architecture import SmallPreActResNet

ENTRIES = {
    "Advtrain2026_cifar10_cpu": {
        "model": lambda: SmallPreActResNet(num_classes=10, width=32, blocks=1, activation='relu', in_channels=3),
        "gdrive_id": "to be filled by the author",
    },
}
