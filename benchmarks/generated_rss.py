"""Resident memory and speed of drawing batches from a generated set, beside a memory map of the same file.

    python -m benchmarks generated_rss [--images 2000000] [--steps 6000] [--folder /tmp] [--set FILE] [--out FILE]

Writes (or takes, with --set) an uncompressed .npz file of so many CIFAR-sized images (6.1 GB for two million; removed
at the end) and starts three processes: one draws batches of 512 with 358 generated rows through the training loader,
one gathers as many images from a memory map, and one does nothing, for the libraries' own share. Each tells RssAnon
(its own memory) and RssFile (pages of mapped files) of /proc/self/status before and after.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.lib import format as npy

from advtrain.data.arrays import ArraySplit, Presentation, whole
from advtrain.data.augmentations import Chain
from advtrain.data.generated_loader import GeneratedLoader
from advtrain.data.generated_set import npz_arrays, open_generated
from advtrain.engine.run_directory import git_commit
from advtrain.evaluation.records import hardware, versions

SEED = 0  # of orders
BATCH, GENERATED = 512, 358  # arXiv:2302.04638
BLOCK = 20_000
WAYS = {
    "loader": "GeneratedLoader, as in training: reads by position, four threads, eight batches ahead",
    "memory map": "numpy.memmap of the same array, as many random images gathered in one thread",
    "nothing": "the libraries are imported and the set is opened",
}


def write_set(path: Path, images: int) -> None:
    """An uncompressed .npz file; the pixels of a block of random images, repeated."""
    block = np.random.default_rng(0).integers(0, 256, (BLOCK, 32, 32, 3), dtype=np.uint8).tobytes()
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        with archive.open("image.npy", "w", force_zip64=True) as file:
            npy.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": (images, 32, 32, 3)})
            for first in range(0, images, BLOCK):
                file.write(block[: min(BLOCK, images - first) * 3072])
        with archive.open("label.npy", "w", force_zip64=True) as file:
            npy.write_array(file, np.arange(images) % 10)


def resident() -> dict[str, float]:
    """RssAnon and RssFile of this process in MB."""
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return {key: round(int(lines[key].split()[0]) * 1024 / 1e6, 1) for key in ("RssAnon", "RssFile")}


def measure(way: str, path: Path, steps: int) -> dict[str, Any]:
    """What one way costs, in this process."""
    torch.set_num_threads(1)
    pool = open_generated(path, image_shape=(3, 32, 32), num_classes=10)
    loader = make_loader(
        whole(torch.zeros(50_000, 3, 32, 32, dtype=torch.uint8), torch.zeros(50_000).long()), pool, steps
    )
    before, drawn = resident(), 0
    started, cpu = time.perf_counter(), time.process_time()
    if way == "loader":
        for batch in loader.epoch(1):
            drawn += len(batch.x) * GENERATED // BATCH
    elif way == "memory map":
        image, _ = npz_arrays("file", path)
        assert image.start is not None
        mapped = np.memmap(path, np.uint8, "r", image.start, image.shape)
        rng = np.random.default_rng(1)
        for _ in range(steps):
            drawn += len(mapped[rng.integers(0, len(mapped), GENERATED)])
    spent = {"seconds": time.perf_counter() - started, "cpu_seconds": time.process_time() - cpu}
    found = {"what": WAYS[way], "generated_images_drawn": drawn, "MB_before": before, "MB_after": resident()}
    return found | ({key: round(value, 2) for key, value in spent.items()} if drawn else {})


def make_loader(split: ArraySplit, pool: Any, steps: int) -> GeneratedLoader:
    return GeneratedLoader(
        split,
        pool,
        generated_rows=GENERATED,
        class_balanced=False,
        presentation=Presentation(Chain()),
        steps_per_epoch=steps,
        batch_size=BATCH,
        seed=SEED,
        rank=0,
        world_size=1,
        device="cpu",
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=2_000_000)
    parser.add_argument("--steps", type=int, default=6000)
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()))
    parser.add_argument("--set", type=Path, help="of such images, which is kept")
    parser.add_argument("--out", type=Path, default=Path("results/benchmarks/generated_rss.json"))
    parser.add_argument("--way", choices=WAYS, help="what a child process of this script does")
    arguments = parser.parse_args()
    if arguments.way:
        print(json.dumps(measure(arguments.way, arguments.folder, arguments.steps)))
        return
    path = arguments.set or arguments.folder / f"advtrain-rss-{os.getpid()}.npz"
    try:
        if arguments.set is None:
            write_set(path, arguments.images)
        command = [
            sys.executable,
            "-m",
            "benchmarks",
            "generated_rss",
            "--folder",
            str(path),
            "--steps",
            str(arguments.steps),
            "--way",
        ]
        found = {
            way: json.loads(subprocess.run([*command, way], check=True, capture_output=True, text=True).stdout)
            for way in WAYS
        }
        size = path.stat().st_size
    finally:
        if arguments.set is None:
            path.unlink(missing_ok=True)
    record = {
        "command": f"python -m benchmarks generated_rss --images {arguments.images} --steps {arguments.steps}",
        "git_commit": git_commit(),
        "seed": SEED,
        "hardware": {**hardware("cpu"), "page_cache": "not controlled"},
        "versions": versions(),
        "file": {"images": arguments.images, "GB": round(size / 1e9, 3)},
        "batch": {"size": BATCH, "generated": GENERATED},
        **found,
    }
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(record, indent=2, ensure_ascii=False) + "\n")
    print(arguments.out.read_text())
