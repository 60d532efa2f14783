"""What CIFAR-10 and CIFAR-100 share (Krizhevsky, "Learning Multiple Layers of Features from Tiny Images", 2009)."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from advtrain import checks, distributed
from advtrain.data.array_dataset import ArrayDataset
from advtrain.data.base import fixed_classes
from advtrain.types import SettingError


class CIFAR(ArrayDataset):
    """Base of both sets: 50,000 colour images of 32 × 32 pixels for training, 10,000 for testing, read by torchvision.

    Args:
        root: folder that holds, or receives, torchvision's folder.
        download: fetch the files when they are not there.
        num_classes: fixed; here because models take it from the data's config.
        settings: of the split and of augmentation, see `ArrayDataset`.
    """

    image_shape = (3, 32, 32)
    classes: int
    torchvision_name: str  # in torchvision.datasets
    folder: str
    files: tuple[str, ...]

    def __init__(
        self,
        *,
        root: str = "data",
        download: bool = True,
        num_classes: int | None = None,
        **settings: Any,
    ) -> None:
        super().__init__(
            num_classes=fixed_classes(num_classes, self.classes),
            **settings,
        )
        self.root = Path(root).expanduser()
        self.download = checks.flag("data.download", download)

    def check(self) -> None:
        super().check()
        absent = self._absent()
        if absent and not self.download:
            folder = self.root / self.folder
            got = f"no {', '.join(absent)}" if folder.is_dir() else "no such folder"
            raise SettingError(
                f"data.root: expected {folder}/ with {', '.join(self.files)}, got {got}; "
                f"give the folder that holds {self.folder}/, or use data.download=true"
            )

    def read(self, train: bool) -> tuple[Tensor, Tensor]:
        from torchvision import datasets

        official = getattr(datasets, self.torchvision_name)
        if self.download:
            if distributed.local_rank() == 0 and self._absent():
                self._fetch(official)
            distributed.barrier()
        try:
            part = official(self.root, train=train, download=False)
        except RuntimeError as error:  # torchvision compares checksums
            raise SettingError(
                f"data.root: expected the official files in {self.root / self.folder}, got others; "
                "remove that folder and use data.download=true"
            ) from error
        return torch.from_numpy(part.data).permute(0, 3, 1, 2), torch.tensor(part.targets)

    def _absent(self) -> list[str]:
        return [file for file in self.files if not (self.root / self.folder / file).is_file()]

    def _fetch(self, official: type) -> None:
        try:
            official(self.root, train=True, download=True)
        except (OSError, RuntimeError) as error:
            raise SettingError(
                f"data.download: expected to fetch {self.torchvision_name} into {self.root}, got {error}; "
                f"try again, or give the folder that holds {self.folder}/ as data.root"
            ) from error
