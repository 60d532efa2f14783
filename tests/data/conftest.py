"""A small stand-in for ImageNet."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

CLASSES = ("apple", "bear", "crab")


@pytest.fixture(scope="session")
def class_folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """train/ with 8, 6 and 4 images of three classes, val/ with 4 of each; red grows to the right, green downwards."""
    root = tmp_path_factory.mktemp("folders")
    rng = np.random.default_rng(0)
    for part, counts in (("train", (8, 6, 4)), ("val", (4, 4, 4))):
        for name, count in zip(CLASSES, counts, strict=True):
            (root / part / name).mkdir(parents=True)
            for i in range(count):
                height, width = rng.integers(40, 64, 2)
                ramp = np.zeros((height, width, 3), np.uint8)
                ramp[:, :, 0] = np.linspace(0, 255, width)
                ramp[:, :, 1] = np.linspace(0, 255, height)[:, None]
                ramp[:, :, 2] = rng.integers(256)
                Image.fromarray(ramp).save(root / part / name / f"{i:02}.png")
    return root
