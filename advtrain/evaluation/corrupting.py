"""Common corruptions on the fly, by the package `imagecorruptions` (PyPI: imagecorruptions-imaug).

The package is the Bethge Lab's collection of ImageNet-C's corruptions, kept up to date. It takes uint8 images of 32 or
more pixels a side and has one table of strengths, ImageNet-C's. CIFAR-10-C has a table of its own, with strengths of
about half and less (Gaussian noise: standard deviations 0.04 to 0.10 there, 0.08 to 0.38 here).
"""

import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from importlib import metadata
from typing import Any

import numpy as np
import torch

from advtrain.random import stream_seed
from advtrain.types import Images, Labels, SettingError

DISTRIBUTIONS = ("imagecorruptions-imaug", "imagecorruptions")  # of PyPI; both bring a package of the second name
INSTALL = "pip install 'advtrain[corruptions]'"
SMALLEST = 32  # pixels
SEEDED = ("impulse_noise", "glass_blur")  # families that draw from a generator of their own, and take a seed for it


@dataclass(frozen=True)
class OnTheFly:
    """Corrupted copies of images, each a function of its place, the family, the severity and the seed alone.

    Attributes:
        x: clean images in [0, 1], on the CPU; rounded to 256 levels before they are corrupted, as files are.
        y: labels.
        seed: of what is random in a corruption.
    """

    x: Images
    y: Labels
    seed: int

    def __post_init__(self) -> None:
        channels, height, width = self.x.shape[1:]
        if channels != 3 or min(height, width) < SMALLEST:
            raise SettingError(
                f"eval.corruptions: expected colour images of at least {SMALLEST} × {SMALLEST} pixels, got {channels} "
                f"× {height} × {width}; set eval.corruptions.enabled=false"
            )

    @property
    def name(self) -> str:
        distribution, version = _installed()
        return f"corruptions (on the fly, {distribution} {version})"

    def refusal(self, family: str) -> str | None:
        """Why the package cannot make the family; None where it can."""
        known = _package().get_corruption_names("common")
        return None if family in known else f"{self.name} does not have it"

    def images(self, family: str, severity: int) -> tuple[Images, Labels]:
        pixels = (self.x * 255).round().to(torch.uint8).permute(0, 2, 3, 1).contiguous().numpy()
        corrupted = np.empty_like(pixels)
        for place, image in enumerate(pixels):
            corrupted[place] = corrupt(image, family, severity, stream_seed(self.seed, family, severity, place))
        return torch.from_numpy(corrupted).permute(0, 3, 1, 2).contiguous().float() / 255, self.y

    def record(self) -> dict[str, Any]:
        distribution, version = _installed()
        remark = (
            "ImageNet-C's strengths; on images of 32 pixels much harsher than CIFAR-10-C, never to be compared with it"
        )
        return {"package": distribution, "version": version, "strengths": remark}


def corrupt(image: np.ndarray, family: str, severity: int, seed: int) -> np.ndarray:
    """One corrupted image, uint8 (h, w, 3), the same for the same arguments. NumPy's global generator is left alone.

    Raises:
        SettingError: the package is missing or broken.
    """
    package, seed = _package(), seed % 2**32  # all that NumPy's global generator takes
    own = {"seed": seed} if family in SEEDED else {}
    with _numpy_seeded(seed):
        return package.corrupt(image, severity=severity, corruption_name=family, **own)


@contextmanager
def _numpy_seeded(seed: int) -> Iterator[None]:
    before = np.random.get_state()
    try:
        np.random.seed(seed)
        yield
    finally:
        np.random.set_state(before)


@cache
def _package() -> Any:
    try:
        return importlib.import_module("imagecorruptions")
    except ImportError as error:
        raise SettingError(
            f"eval.corruptions: expected the package imagecorruptions, got {error}; {INSTALL} (a missing libGL: "
            "pip install --force-reinstall opencv-python-headless), or name the folder of CIFAR-10-C in "
            "eval.corruptions.root"
        ) from error


def _installed() -> tuple[str, str]:
    _package()
    for distribution in DISTRIBUTIONS:
        try:
            return distribution, metadata.version(distribution)
        except metadata.PackageNotFoundError:
            continue
    return "imagecorruptions", "unknown"
