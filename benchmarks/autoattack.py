"""What AutoAttack costs with each engine: work per iteration, CPU time per attack, and a whole evaluation.

    python -m benchmarks autoattack checkpoints/cifar10_cpu /datasets results/benchmarks/autoattack.json
    python -m benchmarks autoattack checkpoints/cifar10_cpu /datasets OUT.json --full 1000

One process, one thread, process time, which other processes on the machine disturb little. The first form counts the
passes and host synchronisations per iteration of each attack, then lets the engines take turns in random order on the
same batch, with fewer iterations than AutoAttack's; what is reported are medians over the rounds and ratios to upstream
within a round. An engine's share of a whole evaluation follows from them and AutoAttack's own numbers of iterations.
The second form runs AutoAttack as it is, each engine in a process of its own (on a GPU one after the other in this
one), and compares the verdicts image by image. With --device cuda the clock is the wall's, when the device is idle.

`upstream` is PyPI's pyautoattack as its users call it, on a model whose parameters take gradients; `upstream_frozen` is
the same on one whose parameters do not. All compute in exact float32 but where the engine says otherwise, and
`upstream_defaults`: that is `upstream` in what PyTorch does when nothing is said, on GPUs TF32 in convolutions.
"""

import argparse
import json
import random
import shlex
import statistics
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from advtrain.data import CIFAR10
from advtrain.engine.run_directory import git_commit
from advtrain.evaluation.autoattack import AttackPlan, upstream
from advtrain.evaluation.autoattack.engines import batch_attack
from advtrain.evaluation.autoattack.exact import Execution, perturb
from advtrain.evaluation.autoattack.fast import GPU_BLOCK
from advtrain.evaluation.modes import exact_float32
from advtrain.evaluation.records import hardware, versions, write_record
from advtrain.sources import find
from benchmarks.autoattack_full import EPS, Clock, alone, full, taking_gradients
from benchmarks.counting import Counter

ENGINES = {
    "cpu": ("upstream", "upstream_frozen", "exact", "fast"),
    "cuda": ("upstream", "upstream_defaults", "exact", "fast"),
}
# Iterations that are timed (per start, per target class; queries of Square) and how many targets.
SHORT = {
    "apgd-ce": AttackPlan("apgd-ce", "linf", EPS, iterations=25),
    "apgd-t": AttackPlan("apgd-t", "linf", EPS, iterations=12, target_classes=2),
    "fab-t": AttackPlan("fab-t", "linf", EPS, iterations=8, target_classes=2),
    "square": AttackPlan("square", "linf", EPS, iterations=150),
}
FULL = {"apgd-ce": 100, "apgd-t": 9 * 100, "fab-t": 9 * 100, "square": 5000}
Perturb = Callable[[Tensor, Tensor, AttackPlan], Tensor]


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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("bundle", help="a bundle, or another model of CIFAR-10 that advtrain-eval takes")
    parser.add_argument("data", help="folder with cifar-10-batches-py")
    parser.add_argument("out", type=Path)
    parser.add_argument("--full", type=int, default=0, metavar="N", help="run AutoAttack on the first N test images")
    parser.add_argument("--engines", help="separated by commas; the first is what the others are compared with")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--batch", type=int, default=250, help="images of a batch")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--jobs", type=int, default=1, help="processes at a time, of the form with --full")
    parser.add_argument("--keep", help="folder for what each engine found; what is there is not run again")
    parser.add_argument("--one", help=argparse.SUPPRESS)  # how --full calls itself
    arguments = _checked(parser)
    torch.set_num_threads(1)
    with exact_float32():
        _measure(arguments)


def _checked(parser: argparse.ArgumentParser) -> argparse.Namespace:
    """The command line with its engines as a list, or its end with one line that says what was expected."""
    arguments = parser.parse_args()
    known = tuple(dict.fromkeys(engine for engines in ENGINES.values() for engine in engines))
    arguments.engines = arguments.engines.split(",") if arguments.engines else list(ENGINES[arguments.device])
    for engine in [*arguments.engines, *([arguments.one] if arguments.one else [])]:
        if engine not in known:
            parser.error(f"--engines: expected some of {', '.join(known)}, got {engine!r}; choose among them")
    if arguments.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: expected a CUDA GPU, got none; leave it out")
    return arguments


def _measure(arguments: argparse.Namespace) -> None:
    device = torch.device(arguments.device)
    clock = Clock(device)
    config = {"source": arguments.bundle, "eval": {"checkpoint": "best"}, "trust": False}
    model = find(config, device).model.requires_grad_(False)
    data = CIFAR10(root=arguments.data, download=False)
    data.check()
    split = data.split("test")
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
    indices = torch.arange(arguments.full)
    images, labels = split.fetch(indices, "cpu"), split.labels[indices]

    def one(engine: str) -> dict[str, Any]:
        return alone(model, images, labels, engine, clock, arguments.batch)

    def save(results: dict[str, Any]) -> None:
        record["full"] = results
        write_record(record, arguments.out)

    if arguments.one:
        torch.save(one(arguments.one), arguments.out)
        return
    if arguments.full:
        full(arguments, arguments.engines, one, save)
    else:
        x, y = _robust_batch(model, split, arguments.batch, device)
        ways = {name: way for name, way in perturbers(model, device).items() if name in arguments.engines}
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
