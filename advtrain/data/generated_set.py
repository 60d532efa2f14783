"""A pool of labelled images on disk, of which a batch takes some: an uncompressed .npz file or a converted folder."""

import zipfile
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from advtrain.data.image_files import ImageFiles, Stretch
from advtrain.data.manifest import read_manifest, shard_start, verify
from advtrain.data.npz_member import Member, member
from advtrain.types import SettingError

SETTING = "data.generated"
BLOCK = 1 << 20  # labels read at a time


@dataclass(frozen=True)
class GeneratedSet:
    """Images on disk and their labels.

    Attributes:
        images: the images.
        labels: uint8 or uint16, shape (n,): one or two bytes per image are what a process keeps.
        num_classes: C.
    """

    images: ImageFiles
    labels: np.ndarray
    num_classes: int

    def __len__(self) -> int:
        return len(self.labels)

    @cached_property
    def class_counts(self) -> np.ndarray:
        """int64, shape (C,)."""
        return count(self.labels, self.num_classes)

    @cached_property
    def by_class(self) -> np.ndarray:
        """Where the images of class 0 are, in order, then those of class 1, …: uint32, shape (n,)."""
        order = np.empty(len(self), np.uint32)
        ends = np.cumsum(self.class_counts) - self.class_counts
        for first in range(0, len(self), BLOCK):  # in blocks: NumPy's argsort of all would take 8 more bytes per image
            block = self.labels[first : first + BLOCK]
            counts = count(block, self.num_classes)
            places = np.repeat(ends - (np.cumsum(counts) - counts), counts) + np.arange(len(block))
            order[places] = first + np.argsort(block, kind="stable")
            ends += counts
        return order


def count(labels: np.ndarray, num_classes: int) -> np.ndarray:
    """Images of each class, int64, shape (C,); `labels` are read in blocks."""
    blocks = (labels[first : first + BLOCK] for first in range(0, len(labels), BLOCK))
    return sum((np.bincount(block, minlength=num_classes) for block in blocks), np.zeros(num_classes, np.int64))


def open_generated(path: Path, *, image_shape: tuple[int, int, int], num_classes: int) -> GeneratedSet:
    """The set at `path`; labels are read, images are not.

    Args:
        path: of an .npz file with uncompressed `image` and `label`, or of a converted folder.
        image_shape: (channels, height, width) that the images must have.
        num_classes: C; labels must be below.

    Raises:
        SettingError: it is missing, damaged or something else.
    """
    channels, height, width = image_shape
    if path.is_dir():
        return _open_folder(path, (height, width, channels), num_classes)
    return _open_npz(path, (height, width, channels), num_classes)


def _open_npz(path: Path, shape: tuple[int, int, int], num_classes: int) -> GeneratedSet:
    image, label = npz_arrays(SETTING, path)
    _check_shape(path, image.shape[1:], shape)
    if image.start is None:
        raise SettingError(
            f"{SETTING}: expected an .npz file whose images can be read in place, got a compressed one; convert it "
            f"once with python -m advtrain.data.convert {path} {path.with_suffix('')} and give that folder"
        )
    labels = read_labels(SETTING, label)
    _check_classes(path, int(labels.max()) + 1, num_classes)
    return GeneratedSet(ImageFiles([Stretch(path, image.start, len(labels))], shape), labels, num_classes)


def _open_folder(path: Path, shape: tuple[int, int, int], num_classes: int) -> GeneratedSet:
    manifest = read_manifest(SETTING, path)
    _check_shape(path, tuple(manifest.image_shape), shape)
    _check_classes(path, len(manifest.class_counts), num_classes)
    stretches = []
    for file in manifest.shards:
        shard = path / file.name
        stretches.append(Stretch(shard, shard_start(SETTING, shard, (file.images, *shape)), file.images))
    labels = np.load(path / manifest.labels.name)
    if count(labels, len(manifest.class_counts)).tolist() != manifest.class_counts:
        raise SettingError(
            f"{SETTING}: expected the class counts of the manifest in {path / manifest.labels.name}, got others; "
            "copy it again or convert the source again"
        )
    return GeneratedSet(ImageFiles(stretches, shape), labels, num_classes)


def verify_generated(path: Path) -> None:
    """Reads all of the set and compares it with the sums that belong to it: SHA-256 of a folder, CRC-32 of an .npz.

    Raises:
        SettingError: something is damaged.
    """
    if path.is_dir():
        verify(SETTING, path, read_manifest(SETTING, path))
        return
    with zipfile.ZipFile(path) as archive:
        damaged = archive.testzip()
    if damaged is not None:
        raise SettingError(f"{SETTING}: expected {path} as it was written, got a damaged {damaged}; copy it again")


def npz_arrays(setting: str, path: Path) -> tuple[Member, Member]:
    """The arrays `image` (uint8, shape (n, h, w, c)) and `label` (integers, shape (n,)) of an .npz file.

    Raises:
        SettingError: they are missing or something else.
    """
    image, label = member(setting, path, "image"), member(setting, path, "label")
    if image.dtype != np.uint8 or len(image.shape) != 4 or 0 in image.shape or not image.by_rows:
        found = f"{image.dtype} of shape {image.shape}{'' if image.by_rows else ', stored by columns'}"
        raise SettingError(
            f"{setting}: expected image as uint8 of shape (n, h, w, c), got {found} in {path}; "
            "write it anew with numpy.savez(path, image=…, label=…)"
        )
    if label.dtype.kind not in "iu" or label.shape != image.shape[:1]:
        raise SettingError(
            f"{setting}: expected label as {image.shape[0]} integers, got {label.dtype} of shape {label.shape} "
            f"in {path}; write it anew with numpy.savez(path, image=…, label=…)"
        )
    return image, label


def read_labels(setting: str, label: Member) -> np.ndarray:
    """The labels in as few bytes as they need, read in blocks: published files hold eight bytes for each.

    Raises:
        SettingError: one is negative or above 65,535.
    """
    labels = np.empty(label.shape, np.uint16)
    with label.elements() as file:
        for first in range(0, len(labels), BLOCK):
            n = min(BLOCK, len(labels) - first)
            block = np.frombuffer(file.read(n * label.dtype.itemsize), label.dtype)
            if block.min() < 0 or block.max() > np.iinfo(np.uint16).max:
                raise SettingError(
                    f"{setting}: expected labels from 0 to 65535, got {block.min()} to {block.max()} in {label.path}; "
                    "number the classes from 0"
                )
            labels[first : first + n] = block
    return labels.astype(np.uint8) if labels.max() <= np.iinfo(np.uint8).max else labels


def _check_shape(path: Path, found: tuple[int, ...], expected: tuple[int, int, int]) -> None:
    if found != expected:
        got, wanted = ("×".join(map(str, shape)) for shape in (found, expected))
        raise SettingError(f"{SETTING}: expected images of {wanted}, got {got} in {path}; give a set for this data=")


def _check_classes(path: Path, found: int, num_classes: int) -> None:
    if found > num_classes:
        raise SettingError(
            f"{SETTING}: expected labels from 0 to {num_classes - 1}, got one of {found - 1} in {path}; "
            "give a set for this data="
        )
