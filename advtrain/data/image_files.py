"""uint8 images that stay on disk and are read one by one, with memory that does not grow with their number."""

import os
import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np


@dataclass(frozen=True)
class Stretch:
    """Images that lie one after the other in a file.

    Attributes:
        path: the file.
        start: where the first byte of the first image is.
        images: how many there are.
    """

    path: Path
    start: int
    images: int


class ImageFiles:
    """Images in any order from files of any size.

    Read by position (pread) instead of through a memory map: a map counts every page that was ever touched as resident
    memory of the process, up to the whole file, while this holds the images asked for and nothing else. The pages are
    in the system's cache either way, where all processes of a machine share them. Threads may read at the same time.

    Args:
        stretches: where the images are, in order.
        shape: (h, w, c) of an image.
    """

    def __init__(self, stretches: Sequence[Stretch], shape: tuple[int, int, int]) -> None:
        self.shape = shape
        self._bytes = int(np.prod(shape))
        self._stretches = stretches
        self._ends = np.cumsum([stretch.images for stretch in stretches])
        self._files = [os.open(stretch.path, os.O_RDONLY) for stretch in stretches]
        weakref.finalize(self, _close, self._files)
        if hasattr(os, "posix_fadvise"):  # Linux: reading ahead would fetch neighbours that nobody asked for
            for file in self._files:
                os.posix_fadvise(file, 0, 0, os.POSIX_FADV_RANDOM)

    def __len__(self) -> int:
        return int(self._ends[-1])

    def read(self, indices: np.ndarray) -> np.ndarray:
        """The images at `indices` (int64, shape (n,)), uint8, shape (n, h, w, c).

        Raises:
            OSError: a file is shorter than it was.
        """
        images = np.empty((len(indices), *self.shape), np.uint8)
        memory = images.reshape(-1).data
        where = np.searchsorted(self._ends, indices, side="right")
        for i, (index, part) in enumerate(zip(indices, where, strict=True)):
            stretch = self._stretches[part]
            place = int(index) - int(self._ends[part]) + stretch.images
            row = memory[i * self._bytes : (i + 1) * self._bytes]
            if os.preadv(self._files[part], [row], stretch.start + place * self._bytes) != self._bytes:
                raise OSError(f"{stretch.path}: expected image {place}, got the end of the file; it was cut short")
        return images


def _close(files: Sequence[int]) -> None:
    for file in files:
        os.close(file)
