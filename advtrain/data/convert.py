"""Makes a folder of shards, whose images can be read in place, of .npz files, compressed ones too.

    python -m advtrain.data.convert 50m.npz /datasets/50m          then data.generated=/datasets/50m
    python -m advtrain.data.convert folder_of_npz /datasets/50m    its *.npz in the order of their names

Each file has the arrays `image` (uint8, n × h × w × c) and `label` (integers, n). Images are streamed: a block is in
memory at a time. A conversion that was stopped continues after its last whole shard when it is called again, and a
finished one is left as it is. See `advtrain.data.manifest` for what is written.
"""

import argparse
import hashlib
import io
import itertools
import json
import os
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib import format as npy

from advtrain import checks
from advtrain.data.generated_set import count, npz_arrays, read_labels
from advtrain.data.manifest import LABELS_FILE, MANIFEST_FILE, File, Manifest, read_manifest
from advtrain.data.npz_member import Member
from advtrain.types import SettingError

SHARD_IMAGES = 1_000_000  # 3 GB of CIFAR images: what is lost when a conversion is stopped, and few enough open files
BLOCK_BYTES = 16 << 20
STATE_FILE = "conversion.json"  # the shards that are finished; goes when the manifest comes
UNFINISHED = ".unfinished"

Report = Callable[[str], None]


def convert(source: Path, target: Path, *, shard_images: int = SHARD_IMAGES, report: Report = print) -> Manifest:
    """Converts `source`, an .npz file or a folder of such, into the folder `target`.

    Args:
        shard_images: images per shard.
        report: called with a line after each shard.

    Raises:
        SettingError: the source cannot be used, the disk is too small, or the target holds something else.
    """
    checks.integer("shard_images", shard_images, low=1)
    arrays = _arrays(source)
    identity = [_identity(image, label) for image, label in arrays]
    if (target / MANIFEST_FILE).is_file():
        manifest = read_manifest("target", target)
        if manifest.source != identity:
            raise _other_content(target)
        report(f"{target}: converted already")
        return manifest
    target.mkdir(parents=True, exist_ok=True)
    labels = np.concatenate([read_labels("source", label) for _, label in arrays])
    counts = count(labels, int(labels.max()) + 1)
    shards = _write_shards([image for image, _ in arrays], identity, target, shard_images, report)
    content = io.BytesIO()
    npy.write_array(content, labels, version=(1, 0))
    label_file = File(LABELS_FILE, len(labels), len(content.getvalue()), hashlib.sha256(content.getvalue()).hexdigest())
    _write(target / LABELS_FILE, content.getvalue())
    shape = list(arrays[0][0].shape[1:])
    manifest = Manifest(identity, shape, counts.tolist(), label_file, shards)
    _write(target / MANIFEST_FILE, manifest.json().encode())
    (target / STATE_FILE).unlink(missing_ok=True)
    report(f"{target}: {manifest.images:,} images, {min(counts):,} to {max(counts):,} of a class")
    return manifest


def _arrays(source: Path) -> list[tuple[Member, Member]]:
    """Images and labels of each file of the source."""
    files = sorted(source.glob("*.npz")) if source.is_dir() else [source]
    if not files:
        raise SettingError(f"source: expected .npz files in {source}, got none; check the path")
    arrays = [npz_arrays("source", file) for file in files]
    for image, _ in arrays:
        if image.shape[1:] != arrays[0][0].shape[1:]:
            expected, got = ("×".join(map(str, found.shape[1:])) for found in (arrays[0][0], image))
            raise SettingError(
                f"source: expected images of {expected} as in {arrays[0][0].path}, got {got} in {image.path}; "
                "convert them apart"
            )
    return arrays


def _identity(image: Member, label: Member) -> dict[str, Any]:
    return {
        "name": image.path.name,
        "images": image.shape[0],
        "image_crc32": f"{image.crc32:08x}",
        "label_crc32": f"{label.crc32:08x}",
    }


def _write_shards(
    images: Sequence[Member], identity: list[dict[str, Any]], target: Path, shard_images: int, report: Report
) -> list[File]:
    """Writes what is missing of the shards, in order."""
    done = _finished(target, identity, shard_images)
    total, shape = sum(image.shape[0] for image in images), images[0].shape[1:]
    first = sum(shard.images for shard in done)
    _check_space(target, (total - first) * int(np.prod(shape)))
    blocks = _blocks(images, first, shard_images)
    for start in range(first, total, shard_images):
        n = min(shard_images, total - start)
        name = f"images-{len(done):05}.npy"
        done.append(_write_shard(target / name, (n, *shape), blocks))
        _write_state(target, identity, shard_images, done)
        report(f"{target / name}: {start + n:,} of {total:,} images")
    return done


def _finished(target: Path, identity: list[dict[str, Any]], shard_images: int) -> list[File]:
    """The shards that an earlier call has finished."""
    if not (target / STATE_FILE).is_file():
        if any(target.iterdir()):
            raise _other_content(target)
        _write_state(target, identity, shard_images, [])
    state = json.loads((target / STATE_FILE).read_text())
    if (state["source"], state["shard_images"]) != (identity, shard_images):
        raise _other_content(target)
    shards = [File(**shard) for shard in state["shards"]]
    return list(itertools.takewhile(lambda shard: _is_whole(target / shard.name, shard.bytes), shards))


def _write_state(target: Path, identity: list[dict[str, Any]], shard_images: int, shards: list[File]) -> None:
    state = {"source": identity, "shard_images": shard_images, "shards": [asdict(shard) for shard in shards]}
    _write(target / STATE_FILE, json.dumps(state).encode())


def _is_whole(path: Path, size: int) -> bool:
    return path.is_file() and path.stat().st_size == size


def _blocks(images: Sequence[Member], first: int, shard_images: int) -> Iterator[bytes]:
    """The bytes of the images from number `first` on, in blocks that end where a shard ends."""
    start = 0  # of this file's images among all
    for image in images:
        end = start + image.shape[0]
        row = int(np.prod(image.shape[1:]))
        place = max(first, start)
        if place < end:
            with image.elements(place - start) as file:
                while place < end:
                    n = min(max(1, BLOCK_BYTES // row), end - place, shard_images - place % shard_images)
                    yield file.read(n * row)
                    place += n
        start = end


def _write_shard(path: Path, shape: tuple[int, ...], blocks: Iterator[bytes]) -> File:
    """Writes the next blocks as one .npy file, which has its name only when it is whole."""
    header = io.BytesIO()
    npy.write_array_header_1_0(header, {"descr": "|u1", "fortran_order": False, "shape": shape})
    size = len(header.getvalue()) + int(np.prod(shape))
    sha256, written = hashlib.sha256(), 0
    unfinished = path.with_name(path.name + UNFINISHED)
    with unfinished.open("wb") as file:
        block = header.getvalue()
        while True:
            file.write(block)
            sha256.update(block)
            written += len(block)
            if written >= size:
                break
            block = next(blocks)
        file.flush()
        os.fsync(file.fileno())
    os.replace(unfinished, path)
    return File(path.name, shape[0], size, sha256.hexdigest())


def _write(path: Path, content: bytes) -> None:
    """Writes a file at once or not at all."""
    unfinished = path.with_name(path.name + UNFINISHED)
    with unfinished.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    os.replace(unfinished, path)


def _check_space(target: Path, needed: int) -> None:
    free = shutil.disk_usage(target).free
    if free < needed:
        raise SettingError(
            f"target: expected {needed / 1e9:.1f} GB of free disk for the images, got {free / 1e9:.1f} GB at {target}; "
            "choose another folder"
        )


def _other_content(target: Path) -> SettingError:
    return SettingError(
        f"target: expected an empty folder or an earlier conversion of the same source into shards of the same "
        f"size, got {target} with something "
        "else; choose another folder or remove that one"
    )


def main() -> None:
    parser = argparse.ArgumentParser("python -m advtrain.data.convert", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("source", type=Path, help="an .npz file or a folder of such")
    parser.add_argument("target", type=Path, help="the folder to make")
    parser.add_argument("--shard-images", type=int, default=SHARD_IMAGES, help="images per shard (%(default)s)")
    arguments = parser.parse_args()
    try:
        convert(arguments.source.expanduser(), arguments.target.expanduser(), shard_images=arguments.shard_images)
    except SettingError as error:
        print(f"advtrain: error: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
