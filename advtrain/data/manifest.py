"""The folder that `python -m advtrain.data.convert` writes: shards of images, their labels, and what they must be.

manifest.json        see `Manifest`
labels.npy           uint8 or uint16, shape (n,)
images-00000.npy …   uint8, shape (m, h, w, c)
"""

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib import format as npy

from advtrain.data.npz_member import HEADERS
from advtrain.types import SettingError

MANIFEST_FILE = "manifest.json"
LABELS_FILE = "labels.npy"
FORMAT = "advtrain-images-1"


@dataclass(frozen=True)
class File:
    """A file of the folder: its name, how many images it is about, its size in bytes and its SHA-256."""

    name: str
    images: int
    bytes: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """What the folder holds.

    Attributes:
        source: the files that were converted: name, images, and the CRC-32 of their arrays image and label.
        image_shape: (h, w, c).
        class_counts: images of each class, from class 0 to the last one that occurs.
        labels: the file of the labels.
        shards: the files of the images, in order.
    """

    source: list[dict[str, Any]]
    image_shape: list[int]
    class_counts: list[int]
    labels: File
    shards: list[File]

    @property
    def images(self) -> int:
        return sum(shard.images for shard in self.shards)

    def json(self) -> str:
        return json.dumps({"format": FORMAT, "images": self.images, **asdict(self)}, indent=2) + "\n"


def read_manifest(setting: str, folder: Path) -> Manifest:
    """The manifest of a folder, whose files must be there in their sizes.

    Raises:
        SettingError: they are not, or there is no manifest that can be read.
    """
    path = folder / MANIFEST_FILE
    if not path.is_file():
        raise SettingError(
            f"{setting}: expected an .npz file or a folder with {MANIFEST_FILE}, got {folder}; "
            f"make the folder with python -m advtrain.data.convert SOURCE {folder}"
        )
    try:
        stored = json.loads(path.read_text())
        if stored.pop("format") != FORMAT:
            raise ValueError("another format")
        images = stored.pop("images")
        labels, shards = File(**stored.pop("labels")), [File(**shard) for shard in stored.pop("shards")]
        manifest = Manifest(labels=labels, shards=shards, **stored)
        if images != manifest.images or any(Path(file.name).name != file.name for file in [labels, *shards]):
            raise ValueError("contradictions")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise SettingError(
            f"{setting}: expected a manifest of the form {FORMAT}, got {path} ({error}); convert the source again"
        ) from error
    for file in [labels, *shards]:
        size = (folder / file.name).stat().st_size if (folder / file.name).is_file() else None
        if size != file.bytes:
            raise SettingError(
                f"{setting}: expected {folder / file.name} with {file.bytes} bytes, got "
                f"{'no such file' if size is None else f'{size} bytes'}; copy it again or convert the source again"
            )
    return manifest


def verify(setting: str, folder: Path, manifest: Manifest) -> None:
    """Reads every file of the folder and compares its SHA-256.

    Raises:
        SettingError: one is another.
    """
    for file in [manifest.labels, *manifest.shards]:
        with (folder / file.name).open("rb") as content:
            found = hashlib.file_digest(content, "sha256").hexdigest()
        if found != file.sha256:
            raise SettingError(
                f"{setting}: expected {folder / file.name} with SHA-256 {file.sha256}, got {found}; "
                "the file is damaged: copy it again or convert the source again"
            )


def shard_start(setting: str, path: Path, shape: tuple[int, ...]) -> int:
    """Where the first image of a shard of `shape` is in its file.

    Raises:
        SettingError: the file holds something else.
    """
    with path.open("rb") as file:
        try:
            found, _, dtype = HEADERS[npy.read_magic(file)](file)
        except (ValueError, KeyError) as error:
            raise SettingError(f"{setting}: expected a .npy file, got {path} ({error}); convert again") from error
        if (found, dtype) != (shape, np.uint8):
            raise SettingError(
                f"{setting}: expected {path} with uint8 of shape {shape}, got {dtype} of shape {found}; convert again"
            )
        return file.tell()
