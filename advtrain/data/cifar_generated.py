"""What CIFAR-10 and CIFAR-100 with generated images share."""

from typing import Any, ClassVar

from advtrain.data.cifar import CIFAR
from advtrain.data.generated import Generated


class CIFARGenerated(Generated):
    """Base of both sets: CIFAR, with generated images in every training batch.

    Args:
        generated, generated_fraction, class_balanced, verify_manifest: see `Generated`.
        validation_size: real images held out for choosing checkpoints.
        settings: of the real images, see `CIFAR`.
    """

    real: ClassVar[type[CIFAR]]

    def __init__(
        self,
        *,
        generated: str,
        generated_fraction: float = 0.7,
        class_balanced: bool = False,
        verify_manifest: bool = False,
        validation_size: int = 1024,
        **settings: Any,
    ) -> None:
        super().__init__(
            self.real(validation_size=validation_size, **settings),
            generated=generated,
            generated_fraction=generated_fraction,
            class_balanced=class_balanced,
            verify_manifest=verify_manifest,
        )
