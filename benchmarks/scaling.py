"""Seconds per epoch on 1 … 512 GPUs, computed and not measured: the tables of docs/scaling.md.

    python -m benchmarks scaling                                               # prints the tables
    python -m benchmarks scaling --write                                       # into docs/scaling.md
    python -m benchmarks scaling --measured results/benchmarks/gpu_*.json --write   # with step times that were measured

F is the work of one forward pass of one image, counted on our models, as are parameters and layers. A step of b images
on each of n GPUs costs

    compute(b) = passes · max(b · F / rate, launches · 5 µs)     passes: TRADES, IKL 2 K + 7; PGD-AT 2 K + 3; standard 3
    ring       = 2 (n - 1) / n · bytes / bandwidth + hops · latency, for each bucket of gradients
    exposed    = max(last bucket, all buckets - backward · (1 - 1 / buckets))

and an epoch as many steps as it has images for. bytes are 4 for each parameter. Only the outer backward (4 passes of
TRADES and IKL, 2 of the others) has gradients to send; the buckets travel while it runs, the last one after it.
"""

import argparse
import json
import math
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import nn

from advtrain.composition import compose
from advtrain.config import build
from advtrain.recipes.cost import forward_flop

PAGE = Path(__file__).resolve().parents[1] / "docs" / "scaling.md"
BEGIN, END = "<!-- python -m benchmarks scaling --write: begin -->", "<!-- end -->"
GPUS = (1, 8, 64, 512)

PEAK = 790e12  # FLOP/s, bf16 matrix products of one H200, measured once outside of this repository
MFUS = (0.30, 0.50)  # shares of it that the training step is supposed to reach
NODE = 8  # GPUs
NVLINK = 0.8 * 450e9  # bytes/s and direction: 900 GB/s of an H100 or H200 in both directions (data sheet), 80 % of it
INFINIBAND = 0.8 * 50e9  # bytes/s: one link of 400 Gb/s for each node, 80 % of it
RING_HOP = (5e-6, 10e-6)  # seconds, in a node and between nodes } of the order of those in NCCL's own cost model,
TREE_HOP = 28e-6  # seconds, both                                } src/graph/tuning.cc, protocol Simple
BUCKET = 25 * 2**20  # bytes: DistributedDataParallel's bucket_cap_mb
LAUNCH = 5e-6  # seconds that a kernel takes at least; without a CUDA graph
EXTRA = {"trades": (7, 4), "ikl": (7, 4), "pgd_at": (3, 2), "standard": (3, 2)}  # passes beyond 2 K; backward's


@dataclass(frozen=True)
class Job:
    """A network, a loss and the batch of its recipe.

    Attributes:
        model: word of `model=`.
        data: word of `data=`.
        loss: one of `EXTRA`.
        attack_steps: K; 0 for none.
        images: per epoch.
        batch: of the recipe, over all GPUs; of one GPU where the batch grows with them.
        per_gpu: images of one GPU where the batch grows with the GPUs.
        rate: FLOP/s of one GPU.
    """

    model: str
    data: str
    loss: str
    attack_steps: int
    images: int
    batch: int
    per_gpu: int = 128
    rate: float = PEAK

    @property
    def passes(self) -> int:
        return 2 * self.attack_steps + EXTRA[self.loss][0]

    @property
    def title(self) -> str:
        return f"{self.model}, {self.loss}-{self.attack_steps}, {self.data}"


JOBS = (
    Job("preact_resnet_18", "cifar10", "trades", 10, 50_000, 128),
    Job("wrn_34_10", "cifar10", "trades", 10, 50_000, 128),
    Job("wrn_70_16", "cifar10", "trades", 10, 50_000, 128),
    Job("resnet_50", "imagenet", "ikl", 3, 1_281_167, 512),
)
RIVALS = (("standard", 0), ("pgd_at", 10), ("trades", 10))  # who waits how long for the same all-reduce


@dataclass(frozen=True)
class Size:
    """What is counted on a network.

    Attributes:
        flop: of a forward pass of one image, F.
        parameters: how many numbers are trained.
        launches: kernels of a forward pass: one for a convolution or a linear layer, two for a normalisation and the
            activation behind it.
    """

    flop: int
    parameters: int
    launches: int


@cache
def size(model: str, data: str) -> Size:
    """Counts on shapes alone."""
    chosen = compose("train", [f"model={model}", f"data={data}"])["model"]
    pixels = 32 if data.startswith("cifar") else 224
    with torch.device("meta"):
        network: nn.Module = build(chosen)
    kinds = [type(module) for module in network.modules()]
    products = sum(issubclass(kind, nn.Conv2d | nn.Linear) for kind in kinds)
    norms = sum(issubclass(kind, nn.BatchNorm2d) for kind in kinds)
    return Size(
        flop=forward_flop(chosen, (3, pixels, pixels)),
        parameters=sum(parameter.numel() for parameter in network.parameters()),
        launches=products + 2 * norms,
    )


def pass_seconds(job: Job, per_gpu: float) -> float:
    """One forward pass of `per_gpu` images: as fast as the GPU computes, and no faster than kernels are launched."""
    counted = size(job.model, job.data)
    return max(per_gpu * counted.flop / job.rate, counted.launches * LAUNCH)


def filling_batch(job: Job) -> int:
    """The images that one GPU needs at least for a pass to take longer than the launches of its kernels."""
    counted = size(job.model, job.data)
    return math.ceil(counted.launches * LAUNCH * job.rate / counted.flop)


def all_reduce_seconds(amount: float, gpus: int) -> float:
    """An all-reduce of `amount` bytes, by a ring or, where its many hops take longer, by a tree: NCCL has both."""
    if gpus == 1:
        return 0.0
    nodes = math.ceil(gpus / NODE)
    bandwidth = NVLINK if nodes == 1 else INFINIBAND
    hops, between = 2 * (gpus - 1), 2 * (nodes - 1)
    ring = hops / gpus * amount / bandwidth + (hops - between) * RING_HOP[0] + between * RING_HOP[1]
    tree = 2 * amount / bandwidth + 2 * (min(gpus, NODE) - 1 + math.log2(nodes)) * TREE_HOP
    return min(ring, tree)


def exposed_seconds(job: Job, per_gpu: float, gpus: int) -> float:
    """What of the all-reduce the outer backward does not hide."""
    amount = 4 * size(job.model, job.data).parameters
    buckets = math.ceil(amount / BUCKET)
    one = all_reduce_seconds(amount / buckets, gpus)
    backward = EXTRA[job.loss][1] * pass_seconds(job, per_gpu)
    return max(one, buckets * one - backward * (1 - 1 / buckets))


@dataclass(frozen=True)
class Point:
    """A job on so many GPUs.

    Attributes:
        gpus: n.
        per_gpu: images of one GPU in a step.
        compute, exposed: seconds of a step.
        epoch: seconds.
        efficiency: images per second and GPU, relative to one GPU with the batch that one GPU would have.
    """

    gpus: int
    per_gpu: float
    compute: float
    exposed: float
    epoch: float
    efficiency: float


def point(job: Job, gpus: int, *, strong: bool) -> Point:
    """One row: the recipe's batch shared by all (strong scaling), or `per_gpu` images for each (weak)."""
    alone = job.batch if strong else job.per_gpu
    per_gpu = job.batch / gpus if strong else job.per_gpu
    compute, exposed = job.passes * pass_seconds(job, per_gpu), exposed_seconds(job, per_gpu, gpus)
    per_image = (compute + exposed) / (per_gpu * gpus)
    efficiency = job.passes * pass_seconds(job, alone) / alone / (per_image * gpus)
    return Point(gpus, per_gpu, compute, exposed, job.images * per_image, efficiency)


def last_useful(job: Job) -> int:
    """The largest power of two of GPUs at which strong scaling still makes good use of half of each."""
    powers = [2**i for i in range(10) if 2**i <= job.batch]
    return max(n for n in powers if point(job, n, strong=True).efficiency >= 0.5)


def rates(job: Job, measured: dict[tuple[str, int], float]) -> list[Job]:
    """The job at the rates it is computed for: the measured one, or the two of the model."""
    key = (job.model, job.passes)
    found = [measured[key] * job.passes * size(job.model, job.data).flop] if key in measured else []
    return [replace(job, rate=rate) for rate in (found or [share * PEAK for share in MFUS])]


def measured_rates(record: Mapping[str, Any]) -> dict[tuple[str, int], float]:
    """Images per second of our fastest step by (model, passes), from a record of `python -m benchmarks gpu`."""
    found: dict[tuple[str, int], float] = {}
    for case in record.get("cases", {}).values():
        speeds = [
            rung["images_per_second"]
            for name, rung in case.get("rungs", {}).items()
            if rung["status"] == "timed" and "published" not in name
        ]
        if speeds:
            key = (case["model"], 2 * case["attack_steps"] + EXTRA[case["loss"]][0])
            found[key] = max(found.get(key, 0.0), *speeds)
    return found


def measured_in(records: Iterable[Path]) -> dict[tuple[str, int], float]:
    """`measured_rates` of all these files; of the same step by the last."""
    return dict(pair for record in records for pair in measured_rates(json.loads(record.read_text())).items())


def tables(measured: dict[tuple[str, int], float], jobs: Sequence[Job] = JOBS) -> str:
    """All tables, with a line that says what the step times are."""
    computed = "computed, not measured: 30 % and 50 % of 790 TFLOP/s"
    names = " and ".join(dict.fromkeys(job.model for job in jobs if (job.model, job.passes) in measured))
    origin = f"at the measured rate of one GPU for {names}; for the others {computed}" if names else computed
    lines = [f"Step times: {origin}. Where a cell has two values, they are for 30 % and 50 %.", ""]
    lines += _table(
        ("network, loss-K, data", "F GFLOP", "parameters", "all-reduce MB", "passes", "images that fill a GPU"),
        ([job.title, *_counted(job), job.passes, _both(job, measured, filling_batch)] for job in jobs),
    )
    for strong, title in ((False, "The batch grows with the GPUs"), (True, "The recipe's batch, shared by the GPUs")):
        lines += [f"**{title}**", ""]
        heads = ("network", "GPUs", "batch", "images/GPU", "compute ms", "all-reduce not hidden ms")
        rows = (_row(job, n, strong, measured) for job in jobs for n in GPUS if not strong or job.batch >= n)
        lines += _table((*heads, "efficiency %", "s/epoch"), rows)
    lines += ["Share of a step that waits for the all-reduce, %, at 64 GPUs of 128 images, 50 % of the rate:", ""]
    rows = ([job.model, *(_waiting(job, loss, k) for loss, k in RIVALS)] for job in jobs)
    lines += _table(("network", *(f"{loss}, {2 * k + EXTRA[loss][0]} passes" for loss, k in RIVALS)), rows)
    ends = ", ".join(f"{_both(job, measured, last_useful)} ({job.model}, {job.batch} images)" for job in jobs)
    lines += [f"GPUs up to which the recipe's batch keeps them at half their speed or better: {ends}."]
    return "\n".join(lines)


def _counted(job: Job) -> tuple[str, str, str]:
    counted = size(job.model, job.data)
    return f"{counted.flop / 1e9:.2f}", f"{counted.parameters:,}", f"{4 * counted.parameters / 1e6:.1f}"


def _row(job: Job, gpus: int, strong: bool, measured: dict[tuple[str, int], float]) -> list[object]:
    found = [point(one, gpus, strong=strong) for one in rates(job, measured)]
    per_gpu = found[0].per_gpu
    cells = (
        [f"{1e3 * one.compute:.1f}" for one in found],
        [f"{1e3 * one.exposed:.2f}" for one in found],
        [f"{100 * one.efficiency:.0f}" for one in found],
        [f"{one.epoch:.3g}" for one in found],
    )
    batch = f"{round(per_gpu * gpus):,}"
    return [job.model, gpus, batch, f"{per_gpu:g}", *(" / ".join(cell) for cell in cells)]


def _both(job: Job, measured: dict[tuple[str, int], float], value: Callable[[Job], int]) -> str:
    return " / ".join(dict.fromkeys(str(value(one)) for one in rates(job, measured)))


def _waiting(job: Job, loss: str, steps: int) -> str:
    found = point(replace(job, loss=loss, attack_steps=steps, rate=MFUS[1] * PEAK), 64, strong=False)
    return f"{100 * found.exposed / (found.compute + found.exposed):.1f}"


def _table(heads: Sequence[str], rows: Iterable[Sequence[object]]) -> list[str]:
    lines = [heads, ["---", *["---:"] * (len(heads) - 1)], *rows]
    return [*("| " + " | ".join(map(str, line)) + " |" for line in lines), ""]


def written(page: str, content: str) -> str:
    """The page with the content between its markers."""
    before, _, rest = page.partition(BEGIN)
    after = rest.partition(END)[2]
    return f"{before}{BEGIN}\n{content}\n{END}{after}"


def main() -> None:
    words = argparse.ArgumentParser(prog=sys.argv[0], description=(__doc__ or "").splitlines()[0])
    words.add_argument("--measured", type=Path, nargs="+", default=[], help="records of `python -m benchmarks gpu`")
    words.add_argument("--write", action="store_true", help="into docs/scaling.md")
    arguments = words.parse_args()
    if absent := [str(record) for record in arguments.measured if not record.is_file()]:
        words.error(f"--measured: expected records, got no such file: {', '.join(absent)}; see results/benchmarks")
    content = tables(measured_in(arguments.measured))
    if arguments.write:
        PAGE.write_text(written(PAGE.read_text(), content))
        print(PAGE)
    else:
        print(content)


if __name__ == "__main__":
    main()
