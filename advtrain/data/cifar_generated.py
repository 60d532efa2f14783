"""What CIFAR-10 and CIFAR-100 with generated images share."""

from typing import ClassVar

from advtrain.data.cifar import CIFAR
from advtrain.data.generated import Generated


class CIFARGenerated(Generated):
    """Base of both sets: CIFAR, with generated images in every training batch.

    Args:
        generated, generated_fraction, class_balanced, verify_manifest: see `Generated`.
        root, download, num_classes: see `CIFAR`.
        validation_size, split_seed, augment, padding: see `ArrayDataset`.
    """

    real: ClassVar[type[CIFAR]]

    def __init__(
        self,
        *,
        generated: str,
        generated_fraction: float = 0.7,
        class_balanced: bool = False,
        verify_manifest: bool = False,
        root: str = "data",
        download: bool = True,
        num_classes: int | None = None,
        validation_size: int = 1024,
        split_seed: int = 0,
        augment: str = "crop_flip",
        padding: int = 4,
    ) -> None:
        real = self.real(
            root=root,
            download=download,
            num_classes=num_classes,
            validation_size=validation_size,
            split_seed=split_seed,
            augment=augment,
            padding=padding,
        )
        super().__init__(
            real,
            generated=generated,
            generated_fraction=generated_fraction,
            class_balanced=class_balanced,
            verify_manifest=verify_manifest,
        )
