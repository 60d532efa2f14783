"""What AutoAttack costs with each engine: work per iteration, CPU time per attack, and a whole evaluation.

    python -m benchmarks autoattack checkpoints/cifar10_cpu /datasets results/benchmarks/autoattack.json
    python -m benchmarks autoattack checkpoints/cifar10_cpu /datasets OUT.json --full 1000

One process, one thread, process time, which other processes on the machine disturb little. The first form counts the
passes and host synchronisations per iteration of each attack, then lets the engines take turns in random order on the
same batch, with fewer iterations than AutoAttack's; what is reported are medians over the rounds and ratios to upstream
within a round. An engine's share of a whole evaluation follows from them and AutoAttack's own numbers of iterations.
The second form runs AutoAttack as it is, each engine in a process of its own, and compares the verdicts image by
image. With --device cuda the clock is the wall's, read when the device is idle.

`upstream` is PyPI's pyautoattack as its users call it, on a model whose parameters take gradients; `upstream_frozen` is
the same on one whose parameters do not.
"""

import argparse
import json
import random
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from advtrain.data import CIFAR10
from advtrain.engine.run_directory import git_commit
from advtrain.evaluation.autoattack import AttackPlan, run_autoattack, upstream
from advtrain.evaluation.autoattack.engines import batch_attack
from advtrain.evaluation.autoattack.exact import Execution, perturb
from advtrain.evaluation.autoattack.fast import GPU_BLOCK
from advtrain.evaluation.autoattack.outcome import ROBUST
from advtrain.evaluation.records import hardware, versions, write_record
from advtrain.evaluation.settings import AutoAttackSettings
from advtrain.sources import find
from benchmarks.counting import Counter

EPS = 8 / 255
ENGINES = ("upstream", "upstream_frozen", "exact", "fast")
# Iterations that are timed (per start, per target class; queries of Square) and how many targets.
SHORT = {
    "apgd-ce": AttackPlan("apgd-ce", "linf", EPS, iterations=25),
    "apgd-t": AttackPlan("apgd-t", "linf", EPS, iterations=12, target_classes=2),
    "fab-t": AttackPlan("fab-t", "linf", EPS, iterations=8, target_classes=2),
    "square": AttackPlan("square", "linf", EPS, iterations=150),
}
FULL = {"apgd-ce": 100, "apgd-t": 9 * 100, "fab-t": 9 * 100, "square": 5000}
Perturb = Callable[[Tensor, Tensor, AttackPlan], Tensor]


class Clock:
    """Seconds of work: the process's on a CPU, the wall's on a GPU."""

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def now(self) -> float:
        if self.device.type == "cpu":
            return time.process_time()
        torch.cuda.synchronize(self.device)
        return time.perf_counter()


def perturbers(model: nn.Module, device: torch.device) -> dict[str, Perturb]:
    """Each engine's way of attacking one batch."""
    return {
        "upstream": lambda x, y, plan: _with_gradients(model, lambda: upstream.perturb(model, x, y, plan, 0)),
        "upstream_frozen": lambda x, y, plan: upstream.perturb(model, x, y, plan, 0),
        "exact": _engine("exact", model, device),
        "fast": _engine("fast", model, device),
    }


def in_blocks(model: nn.Module) -> dict[str, Perturb]:
    """The engines as they run on a GPU, where the host looks once per block: for counting only."""
    ways = {"exact_in_blocks": Execution(block=GPU_BLOCK), "fast_in_blocks": Execution(block=GPU_BLOCK, shrink=True)}
    return {name: partial(_in_blocks, model, execution) for name, execution in ways.items()}


def _in_blocks(model: nn.Module, execution: Execution, x: Tensor, y: Tensor, plan: AttackPlan) -> Tensor:
    return perturb(model, x, y, plan, 0, execution).images


def _engine(name: str, model: nn.Module, device: torch.device) -> Perturb:
    attack = batch_attack(name, model, device)
    return lambda x, y, plan: attack(x, y, plan, 0).images


def _with_gradients(model: nn.Module, call: Callable[[], Any]) -> Any:
    with taking_gradients(model):
        return call()


@contextmanager
def taking_gradients(model: nn.Module) -> Iterator[None]:
    model.requires_grad_(True)
    try:
        yield
    finally:
        model.requires_grad_(False)
        model.zero_grad()


def counters(ways: dict[str, Perturb], x: Tensor, y: Tensor, convolutions: int) -> dict[str, Any]:
    """Per iteration of each attack: passes (in whole networks), host synchronisations, operations."""
    found: dict[str, Any] = {}
    for name, plan in SHORT.items():
        for engine, way in ways.items():
            low, high = (_count(way, x, y, plan, factor) for factor in (1, 2))
            steps = plan.iterations * max(plan.target_classes, 1)
            per_step = {key: (high[key] - low[key]) / steps for key in high}
            for key in ("forward", "input_gradient", "weight_gradient"):
                per_step[key] /= convolutions
            found.setdefault(name, {})[engine] = {key: round(value, 2) for key, value in per_step.items()}
            print(f"{name:8} {engine:16} {found[name][engine]}", flush=True)
    return found


def _count(perturb: Perturb, x: Tensor, y: Tensor, plan: AttackPlan, factor: int) -> dict[str, int]:
    longer = AttackPlan(
        plan.name, plan.norm, plan.eps, iterations=plan.iterations * factor, target_classes=plan.target_classes
    )
    with Counter() as counter:
        perturb(x, y, longer)
    return counter.counts


def ratios(ways: dict[str, Perturb], x: Tensor, y: Tensor, rounds: int, clock: Clock) -> dict[str, Any]:
    """CPU milliseconds per iteration and batch, and ratios to upstream within each round."""
    order = random.Random(0)
    times: dict[str, dict[str, list[float]]] = {name: {engine: [] for engine in ways} for name in SHORT}
    for number in range(rounds + 1):  # the first one warms up
        for name, plan in SHORT.items():
            for engine in order.sample(list(ways), len(ways)):
                started = clock.now()
                ways[engine](x, y, plan)
                if number:
                    times[name][engine].append(clock.now() - started)
        print(f"round {number} of {rounds}", flush=True)
    result: dict[str, Any] = {}
    for name, plan in SHORT.items():
        steps = plan.iterations * max(plan.target_classes, 1)
        result[name] = {
            engine: {
                "ms_per_iteration": round(1000 * statistics.median(values) / steps, 2),
                **_ratio([a / b for a, b in zip(values, times[name]["upstream"], strict=True)]),
            }
            for engine, values in times[name].items()
        }
    # The whole: each round's time per iteration, times AutoAttack's iterations.
    whole = {engine: [_whole(times, engine, i) for i in range(rounds)] for engine in ways}
    result["weighted by AutoAttack's iterations"] = {
        engine: _ratio([a / b for a, b in zip(values, whole["upstream"], strict=True)])
        for engine, values in whole.items()
    }
    return result


def _whole(times: dict[str, dict[str, list[float]]], engine: str, number: int) -> float:
    return sum(
        times[name][engine][number] * FULL[name] / (plan.iterations * max(plan.target_classes, 1))
        for name, plan in SHORT.items()
    )


def _ratio(values: list[float]) -> dict[str, Any]:
    low, high = round(min(values), 3), round(max(values), 3)
    return {"to_upstream": round(statistics.median(values), 3), "range": [low, high]}


def alone(model: nn.Module, x: Tensor, y: Tensor, engine: str, clock: Clock, out: Path) -> None:
    """AutoAttack as it is by one engine: seconds of work and verdicts, into a file."""
    settings = AutoAttackSettings(engine=engine.removesuffix("_frozen"))
    how: Any = {"norm": "linf", "eps": EPS, "settings": settings, "device": clock.device, "report": print}
    wall, started = time.perf_counter(), clock.now()
    with nullcontext() if engine != "upstream" else taking_gradients(model):
        outcome = run_autoattack(model, x, y, **how)
    figures: dict[str, Any] = {
        "git_commit": git_commit(),
        "work_seconds": round(clock.now() - started, 1),
        "seconds": round(time.perf_counter() - wall, 1),
        "robust": int(outcome.robust.sum()),
        "n_examples": len(x),
        "settings": outcome.settings,
        "after": outcome.after,
        "flags": outcome.flags,
    }
    torch.save({"figures": figures, "broken_by": outcome.broken_by, "x_adv": outcome.x_adv}, out)


def full(arguments: argparse.Namespace, engines: list[str]) -> dict[str, Any]:
    """Each engine in a process of its own, because what one leaves behind in the allocator would help the next."""
    with tempfile.TemporaryDirectory() as temporary, ThreadPoolExecutor(arguments.jobs) as pool:
        files = {engine: Path(arguments.keep or temporary) / f"{engine}.pt" for engine in engines}

        def work(engine: str) -> None:
            if files[engine].is_file():
                return
            words = [arguments.bundle, arguments.data, str(files[engine]), "--full", str(arguments.full)]
            words += ["--device", arguments.device, "--one", engine]
            subprocess.run([sys.executable, "-m", "benchmarks", "autoattack", *words], check=True)

        list(pool.map(work, engines))
        found = {engine: torch.load(file, weights_only=True) for engine, file in files.items()}
    first, base = found[engines[0]], engines[0]
    result = {}
    for engine, one in found.items():
        verdicts = (one["broken_by"] != first["broken_by"]).nonzero().flatten().tolist()
        robust = ((one["broken_by"] == ROBUST) != (first["broken_by"] == ROBUST)).nonzero().flatten().tolist()
        result[engine] = one["figures"] | {
            f"work_to_{base}": round(one["figures"]["work_seconds"] / first["figures"]["work_seconds"], 3),
            f"robust_unlike_{base}": robust,
            f"robust_or_attack_unlike_{base}": verdicts,
            f"adversarial_images_unlike_{base}": int((one["x_adv"] != first["x_adv"]).flatten(1).any(1).sum()),
        }
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("bundle")
    parser.add_argument("data", help="folder with cifar-10-batches-py")
    parser.add_argument("out", type=Path)
    parser.add_argument("--full", type=int, default=0, metavar="N", help="run AutoAttack on the first N test images")
    parser.add_argument("--engines", default=",".join(ENGINES))
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--batch", type=int, default=250, help="images of a batch, of the counting and timing form")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--jobs", type=int, default=1, help="processes at a time, of the form with --full")
    parser.add_argument("--keep", help="folder for what each engine found; what is there is not run again")
    parser.add_argument("--one", help=argparse.SUPPRESS)  # how --full calls itself
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    device = torch.device(arguments.device)
    clock = Clock(device)
    config = {"source": arguments.bundle, "eval": {"checkpoint": "best"}, "trust": False}
    model = find(config, device).model.requires_grad_(False)
    split = CIFAR10(root=arguments.data, download=False).split("test")
    engines = arguments.engines.split(",")
    record: dict[str, Any] = {
        "command": shlex.join(["python", "-m", "benchmarks", "autoattack", *sys.argv[1:]]).replace(
            arguments.data, "/datasets"
        ),
        "git_commit": git_commit(),
        "seed": 0,
        "measured": "process time on one thread" if device.type == "cpu" else "time until the device is idle",
        "model": Path(arguments.bundle).name,
        "hardware": hardware(device),
        "versions": versions(),
    }
    if arguments.one:
        indices = torch.arange(arguments.full)
        alone(model, split.fetch(indices, "cpu"), split.labels[indices], arguments.one, clock, arguments.out)
        return
    if arguments.full:
        record["full"] = full(arguments, engines)
    else:
        x, y = _robust_batch(model, split, arguments.batch, device)
        ways = {name: way for name, way in perturbers(model, device).items() if name in engines}
        convolutions = sum(isinstance(module, nn.Conv2d) for module in model.modules())
        record["batch"] = len(x)
        record["per_iteration"] = counters(ways | in_blocks(model), x[:16], y[:16], convolutions)
        record["cpu_time"] = ratios(ways, x, y, arguments.rounds, clock)
    write_record(record, arguments.out)
    print(json.dumps({key: record[key] for key in ("full", "cpu_time") if key in record}, indent=2))


def _robust_batch(model: nn.Module, split: Any, size: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Images that a short APGD does not break: those on which AutoAttack spends its time."""
    indices = torch.arange(4 * size)
    x, y = split.fetch(indices, device), split.labels[indices].to(device)
    with torch.no_grad():
        correct = model(x).argmax(1) == y
    x, y = x[correct], y[correct]
    x_adv = upstream.perturb(model, x, y, AttackPlan("apgd-ce", "linf", EPS, iterations=20), 0)
    with torch.no_grad():
        robust = model(x_adv).argmax(1) == y
    return x[robust][:size], y[robust][:size]
