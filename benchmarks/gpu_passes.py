"""How fast a frozen model's passes are in each arithmetic, and what AutoAttack would cost with them.

    python -m benchmarks gpu_passes results/benchmarks/gpu_passes.json

Passes of PreActResNet-18 without gradient and with the images' one, in float32, TF32, bfloat16 and float16, in both
memory layouts, with BatchNorm folded into the convolutions or not, with cuDNN's rules for deterministic algorithms or
its own timings, and, with --compiled, through torch.compile with CUDA graphs. Ways are timed until --seconds are over;
those that engines use come first. From the number of passes of AutoAttack's attacks follow the seconds for 1,000 images
that stay robust: a lower bound, which leaves out the attacks' own steps.
"""

import argparse
import shlex
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from advtrain.engine.run_directory import git_commit
from advtrain.evaluation.autoattack.passes import passes, tf32
from advtrain.evaluation.autoattack.plan import AttackPlan, plans
from advtrain.evaluation.modes import exact_float32
from advtrain.evaluation.records import hardware, versions, write_record
from advtrain.models import PreActResNet, SmallPreActResNet
from benchmarks.counting import Counter
from benchmarks.gpu_timing import Clock, Deadline, clock_of, one_line, significant

DTYPES = {"fp32": torch.float32, "tf32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class Way(NamedTuple):
    """How passes are computed.

    Attributes:
        arithmetic: a key of DTYPES.
        layout: NCHW or NHWC.
        body: plain, folded or compiled.
        algorithms: "deterministic" as cuDNN's rules say, or "timed" by cuDNN.
    """

    arithmetic: str
    layout: str
    body: str
    algorithms: str = "deterministic"


# What engine=exact does, then what engine=fast does, then the alternatives.
EXACT, FAST = Way("fp32", "NCHW", "plain"), {name: Way(name, "NHWC", "folded") for name in DTYPES}
RULES = (
    EXACT,
    *FAST.values(),
    Way("fp32", "NCHW", "folded"),
    Way("tf32", "NCHW", "folded"),
    Way("tf32", "NCHW", "plain"),
)
TIMED = tuple(way._replace(algorithms="timed") for way in RULES)
COMPILED = tuple(FAST[name]._replace(body="compiled") for name in ("tf32", "bf16", "fp32"))
# Which way each engine attacks by.
ENGINES = {
    "exact": dict.fromkeys(("apgd-ce", "apgd-t", "fab-t", "square"), EXACT),
    "fast": {"apgd-ce": FAST["bf16"], "apgd-t": FAST["bf16"], "fab-t": FAST["tf32"], "square": FAST["fp16"]},
}


def numbers(plan: AttackPlan) -> tuple[int, int]:
    """Passes of our engines for an image that stays robust: without gradient, and with the images'."""
    if plan.name == "square":
        return plan.iterations + 2, 0
    starts = max(plan.target_classes, 1) * plan.restarts
    if plan.name.startswith("fab"):
        return starts * (plan.iterations + 1) + 1, starts * plan.iterations
    return starts + 2, starts * plan.iterations  # the last step's gradient is left out, the start has one


def seconds(row: dict[str, Any], plan: AttackPlan, images: int = 1000) -> float:
    """Of an attack on images that stay robust, by a way whose rates are in `row`."""
    forwards, gradients = numbers(plan)
    return images * (forwards / row["forward_images_per_s"] + gradients / row["gradient_images_per_s"])


def predictions(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Seconds per 1,000 robust images for each attack and in all: by each way alone, and by the engines."""
    planned, _ = plans("standard", (), norm="linf", eps=8 / 255, num_classes=10)
    known = {tuple(row["way"]): row for row in rows if "forward_images_per_s" in row}
    uses = {" ".join(way): dict.fromkeys((plan.name for plan in planned), Way(*way)) for way in known}
    found: dict[str, Any] = {}
    for name, ways in (ENGINES | uses).items():
        if all(tuple(way) in known for way in ways.values()):
            each = {plan.name: seconds(known[tuple(ways[plan.name])], plan) for plan in planned}
            found[name] = {key: significant(value) for key, value in (each | {"all": sum(each.values())}).items()}
    return found


def timed(model: nn.Module, way: Way, x: Tensor, clock: Clock, least: float) -> dict[str, Any]:
    """Images per second of one way; why not, where it fails."""
    row: dict[str, Any] = {"way": list(way)}
    started = time.monotonic()
    try:
        with exact_float32(), _algorithms(way.algorithms), _arithmetic(way):
            forward = _forward(model, way, x.device)
            for kind, work in (("forward", _without_gradient), ("gradient", _with_gradient)):
                once = _lasting(partial(work, forward, x), clock, least)
                row[f"{kind}_images_per_s"] = significant(len(x) / once)
    except RuntimeError as error:  # out of memory, or an arithmetic that the device does not have
        row = {"way": list(way), "error": one_line(error)}
    return row | {"wall_seconds": round(time.monotonic() - started, 2)}


def _lasting(work: Callable[[], object], clock: Clock, least: float) -> float:
    """Seconds per call, over as many calls as take about `least` seconds, behind three that warm up."""
    for _ in range(2):
        work()
    once = clock.seconds(work)
    return max(clock.seconds(work, max(1, round(least / max(once, 1e-9)))), 1e-12)


def _forward(model: nn.Module, way: Way, device: torch.device) -> Callable[[Tensor], Tensor]:
    if way.body == "plain":
        return model  # in the layout and the arithmetic of float32 that the caller has set
    compiled = way.body == "compiled"
    return passes(model, device, DTYPES[way.arithmetic], channels_last=way.layout == "NHWC", compiled=compiled)


@torch.no_grad()
def _without_gradient(forward: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    return forward(x)


def _with_gradient(forward: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    leaf = x.detach().requires_grad_()
    (gradient,) = torch.autograd.grad(forward(leaf).sum(), leaf)
    return gradient


def _arithmetic(way: Way) -> AbstractContextManager[None]:
    return tf32() if way.arithmetic == "tf32" else nullcontext()


@contextmanager
def _algorithms(word: str) -> Iterator[None]:
    """In `exact_float32`, which puts everything back."""
    if word == "timed":
        torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = False, True
    yield


def gigaflop(model: nn.Module, x: Tensor) -> float:
    """Of one image's forward pass."""
    with Counter() as counter, torch.no_grad():
        model(x[:1])
    return sum(counter.flops.values()) / 1e9


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--toy", action="store_true", help="a small network on a CPU: shows that everything runs")
    parser.add_argument("--batch", type=int, default=512, help="images")
    parser.add_argument("--seconds", type=float, default=15.0, help="after which no further way is begun")
    parser.add_argument("--compiled", action="store_true", help="torch.compile, too: half a minute for each way")
    arguments = parser.parse_args()
    if not arguments.toy and not torch.cuda.is_available():
        parser.error("expected a CUDA GPU, got none; --toy shows on a CPU that everything runs")
    device = torch.device("cpu" if arguments.toy else "cuda")
    until = Deadline(time.monotonic() + arguments.seconds)
    torch.manual_seed(0)
    network = SmallPreActResNet(num_classes=10, width=4, blocks=1) if arguments.toy else PreActResNet()
    model = network.eval().requires_grad_(False).to(device)
    x = torch.rand(4 if arguments.toy else arguments.batch, 3, 32, 32, device=device)
    record: dict[str, Any] = {
        "command": shlex.join(["python", "-m", "benchmarks", "gpu_passes", *sys.argv[1:]]),
        "git_commit": git_commit(),
        "seed": 0,
        "toy": arguments.toy,
        "hardware": hardware(device),
        "versions": versions(),
        "measured": clock_of(device).measures,
        "model": type(network).__name__,
        "batch": len(x),
        "gigaflop": significant(gigaflop(model, x)),
        "rows": [],
        "seconds_per_1000_robust_images": {},
    }
    rows = record["rows"]
    for way in (*RULES, *TIMED, *(COMPILED if arguments.compiled else ())):
        if until.left() <= 0:
            rows.append({"way": list(way), "error": "no time left"})
        else:
            rows.append(timed(model, way, x, clock_of(device), 0.002 if arguments.toy else 0.2))
        print(_line(rows[-1], record["gigaflop"]), flush=True)
        record["seconds_per_1000_robust_images"] = predictions(rows)
        write_record(record, arguments.out)
    for name, each in record["seconds_per_1000_robust_images"].items():
        print(f"{name:32}", "  ".join(f"{attack} {value:g} s" for attack, value in each.items()))


def _line(row: dict[str, Any], gigaflop: float) -> str:
    head = f"{' '.join(row['way']):32}"
    if "error" in row:
        return f"{head} {row['error']}"
    forward, gradient = row["forward_images_per_s"], row["gradient_images_per_s"]
    rates = forward * gigaflop / 1e3, 2 * gradient * gigaflop / 1e3
    return (
        f"{head} forward {forward:10.0f} images/s ({rates[0]:6.1f} TFLOP/s), with gradient {gradient:10.0f} "
        f"({rates[1]:6.1f})  [{row['wall_seconds']} s]"
    )
