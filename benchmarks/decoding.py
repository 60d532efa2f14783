"""What it costs to turn JPEG files into training images: CPU time per image of several ways, on one thread.

    python -m benchmarks decoding /datasets/imagenet_small [results/benchmarks/decoding.json]

Every way reads a file, cuts out a random part, scales it to size × size, flips it half of the time and ends with uint8
pixels; `advtrain` is the whole loader without worker processes, up to float32 batches. The images are taken as they are
and, since those of a small folder may already be small, enlarged to 500 × 375 pixels, the usual size of ImageNet's
(quality 90; interpolated pictures compress better than sharp ones, so real ones take longer to decode). The ways take
turns in random order; what is reported is process time, which other processes on the machine disturb little, as medians
over the rounds and as ratios to Pillow within a round.
"""

import json
import random
import shlex
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional

from advtrain.data import ImageFolder
from advtrain.data.decoding import read_rgb
from advtrain.engine.run_directory import git_commit
from advtrain.evaluation.records import hardware, versions

ROUNDS = 7
PER_CLASS = 20
SIZES = (64, 224)
LARGE = (500, 375)
Way = Callable[[list[Path]], Any]


def crop_of(size: int) -> v2.RandomResizedCrop:
    return v2.RandomResizedCrop(size, scale=(0.08, 1.0))


def pillow(size: int) -> Callable[[Path], Tensor]:
    """Decoding, cropping and scaling by Pillow, as torchvision's reference scripts do it."""
    transform = v2.Compose([crop_of(size), v2.RandomHorizontalFlip(), v2.PILToTensor()])

    def way(path: Path) -> Tensor:
        with Image.open(path) as image:
            return transform(image.convert("RGB"))

    return way


def pillow_reduced(size: int) -> Callable[[Path], Tensor]:
    """Pillow, decoding at a half, a quarter or an eighth where the part cut out stays larger than what is wanted."""
    crop, end = crop_of(size), v2.Compose([v2.RandomHorizontalFlip(), v2.PILToTensor()])

    def way(path: Path) -> Tensor:
        with Image.open(path) as image:
            box, (width, height) = crop.make_params([image]), image.size
            reduction = max(1, min(box["height"], box["width"]) // size)
            image.draft(None, (width // reduction, height // reduction))
            across, down = image.width / width, image.height / height
            edges = (box["left"], box["top"], box["left"] + box["width"], box["top"] + box["height"])
            scaled = tuple(edge * factor for edge, factor in zip(edges, (across, down) * 2, strict=True))
            return end(image.convert("RGB").resize((size, size), Image.Resampling.BILINEAR, box=scaled))

    return way


def torchvision(size: int) -> Callable[[Path], Tensor]:
    """Decoding by torchvision, cropping and scaling of tensors."""
    transform = v2.Compose([crop_of(size), v2.RandomHorizontalFlip()])
    return lambda path: transform(read_rgb(path))


def simplejpeg_reduced(size: int) -> Callable[[Path], Tensor] | None:
    """Decoding at n eighths by simplejpeg, cropping and scaling of tensors; None where it is not installed."""
    try:
        import simplejpeg  # pyright: ignore[reportMissingImports]
    except ImportError:
        return None
    crop, flip = crop_of(size), v2.RandomHorizontalFlip()

    def way(path: Path) -> Tensor:
        content = path.read_bytes()
        height, width, *_ = simplejpeg.decode_jpeg_header(content)
        box = crop.make_params([torch.empty(3, height, width, device="meta")])
        factor = min(1.0, size / min(box["height"], box["width"]))
        least = {"min_height": int(height * factor) + 1, "min_width": int(width * factor) + 1} if factor < 1 else {}
        image = torch.from_numpy(simplejpeg.decode_jpeg(content, min_factor=1, **least)).permute(2, 0, 1)
        across, down = image.shape[2] / width, image.shape[1] / height
        top, left = round(box["top"] * down), round(box["left"] * across)
        high, wide = max(1, round(box["height"] * down)), max(1, round(box["width"] * across))
        return flip(functional.resized_crop(image, top, left, high, wide, [size, size]))

    return way


def loader(folder: Path, size: int, classes: int) -> Way:
    """advtrain's own loader, for one epoch in batches of 20."""
    data = ImageFolder(
        root=str(folder), num_classes=classes, validation_size=classes, size=size, resize=size, workers=0
    )
    batches = data.train_loader(batch_size=20, seed=0)
    return lambda files: sum(len(batch.y) for batch in batches.epoch(1))


def ways(folder: Path, size: int, classes: int) -> dict[str, Way]:
    single = {way.__name__: way(size) for way in (pillow, pillow_reduced, torchvision, simplejpeg_reduced)}
    named: dict[str, Way] = {
        name: lambda files, way=way: sum(way(file).shape[0] > 0 for file in files)
        for name, way in single.items()
        if way is not None
    }
    return named | {"advtrain": loader(folder, size, classes)}


def measured(folder: Path, size: int) -> dict[str, Any]:
    """Milliseconds of CPU time per image of every way, and how that compares with Pillow in the same round."""
    files = sorted(folder.glob("train/*/*"))
    named = ways(folder, size, classes=len({file.parent for file in files}))
    times: dict[str, list[float]] = {name: [] for name in named}
    order = random.Random(0)
    for round_number in range(ROUNDS + 1):
        for name in order.sample(list(named), len(named)):
            torch.manual_seed(round_number)
            started = time.process_time()
            images = named[name](files)
            if round_number:  # the first one warms up
                times[name].append((time.process_time() - started) / images * 1e3)
    result = {}
    for name, values in times.items():
        speedups = [reference / value for reference, value in zip(times["pillow"], values, strict=True)]
        result[name] = {
            "ms_per_image": round(statistics.median(values), 3),
            "images_per_second_and_core": round(1e3 / statistics.median(values)),
            "times_pillow": round(statistics.median(speedups), 2),
            "times_pillow_range": [round(min(speedups), 2), round(max(speedups), 2)],
        }
    return result


def prepared(source: Path, target: Path, large: bool) -> Path:
    """Some images of every class of `source`, as they are or enlarged, with a val/ that the loader wants to see."""
    for number, folder in enumerate(sorted((source / "train").iterdir())):
        for part, chosen in (("train", slice(PER_CLASS)), ("val", slice(1))):
            (target / part / str(number)).mkdir(parents=True)
            for file in sorted(folder.glob("*.JPEG"))[chosen]:
                copy = target / part / str(number) / file.name
                if large:
                    with Image.open(file) as image:
                        image.convert("RGB").resize(LARGE, Image.Resampling.BICUBIC).save(copy, "JPEG", quality=90)
                else:
                    copy.write_bytes(file.read_bytes())
    return target


def main() -> None:
    if len(sys.argv) not in (2, 3):
        sys.exit(__doc__)
    torch.set_num_threads(1)
    source = Path(sys.argv[1]).expanduser()
    results: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as scratch:
        for kind, large in (("as they are", False), ("enlarged to 500 × 375", True)):
            folder = prepared(source, Path(scratch) / str(large), large)
            files = sorted(folder.glob("train/*/*"))
            results[kind] = {"images": len(files), "mean_bytes": round(np.mean([f.stat().st_size for f in files]))}
            for size in SIZES:
                results[kind][f"to {size} pixels"] = measured(folder, size)
                print(kind, size, json.dumps(results[kind][f"to {size} pixels"], indent=1), flush=True)
    record = {
        "command": shlex.join(["python", "-m", "benchmarks", "decoding", "/datasets/imagenet_small", *sys.argv[2:]]),
        "git_commit": git_commit(),
        "measured": f"process time on one thread, {ROUNDS} rounds in random order, medians; other jobs ran beside it",
        "hardware": hardware("cpu"),
        "versions": versions() | {"pillow": Image.__version__},
        "results": results,
    }
    if len(sys.argv) == 3:
        Path(sys.argv[2]).write_text(json.dumps(record, indent=2, ensure_ascii=False) + "\n")
