"""What a training step asks of the device, counted: ours beside the published one, against what formulas derive.

    python -m benchmarks counters [OUT.json] [--steps 10] [--batch 2] [--networks preact_resnet18 …] [--compiled]

Counts do not depend on the machine or on its load, so they are gates: the exit status is 1 where one is not what
benchmarks/formulas.py derives from the layers of the network. Nothing expected is recorded from what the code did.
`--compiled` compiles the attack and looks into its graphs: no break, no weight gradient, none for a second radius.
"""

import argparse
import json
import shlex
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from advtrain.attacks import PGD
from advtrain.data.base import Batch
from advtrain.engine import AWP, EMA, SGD, NoPerturbation
from advtrain.engine.numerics import Numerics
from advtrain.engine.run_directory import git_commit
from advtrain.engine.step import TrainingStep
from advtrain.evaluation.records import hardware, versions, write_record
from advtrain.losses import IKL, PGDAT, TRADES
from advtrain.models import PreActResNet, SmallCNN, SmallPreActResNet
from benchmarks import formulas, published
from benchmarks.compiled_graphs import graphs_of_attack
from benchmarks.counting import Counter, SavedForBackward
from benchmarks.formulas import Layers, Passes, layers_of

EPS, STEP_SIZE = 8 / 255, 2 / 255
CLASSES = 10
# Network, channels and pixels of its images, and how many convolutions it has.
NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, int, int], int]] = {
    "preact_resnet18": (PreActResNet, (3, 32, 32), 20),  # 1 + 4 stages of 2 blocks of 2 + 3 projections
    "preact_resnet_small": (lambda: SmallPreActResNet(width=8), (3, 32, 32), 12),  # 1 + 4 blocks of 2 + 3 projections
    "small_cnn": (SmallCNN, (1, 8, 8), 2),
}
LOSSES: dict[str, Callable[[], Any]] = {
    "pgd_at": PGDAT,
    "trades": TRADES,
    "ikl": lambda: IKL(num_classes=CLASSES, inner="ikl"),
    "ikl_awp": lambda: IKL(num_classes=CLASSES, inner="ikl"),
}
Step = Callable[[Tensor, Tensor, int], Any]  # images, labels, attack steps


@dataclass(frozen=True)
class Gate:
    """One figure and the range in which it has to be."""

    name: str
    measured: int
    least: int
    most: int

    @property
    def holds(self) -> bool:
        return self.least <= self.measured <= self.most

    def record(self) -> dict[str, Any]:
        wanted = self.least if self.least == self.most else [self.least, self.most]
        return {"name": self.name, "expected": wanted, "measured": self.measured, "holds": self.holds}


def batch_of(network: str, images: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    _, shape, _ = NETWORKS[network]
    return torch.rand(images, *shape, generator=generator), torch.arange(images) % CLASSES


def built(network: str) -> nn.Module:
    torch.manual_seed(0)
    return NETWORKS[network][0]().train()


def lean_step(name: str, model: nn.Module, images: int) -> Step:
    """Ours, as the trainer builds it where nothing is compiled: channels last for images of three colours."""
    first = next(model.parameters())
    layout = torch.channels_last if first.shape[1] == 3 else torch.contiguous_format
    step = TrainingStep(
        model.to(memory_format=layout),
        LOSSES[name]().to(first.device),
        SGD(lr=0.1).build(model),
        numerics=Numerics(first.device, memory_format=layout),
        batch_size=images,
        accumulation=1,
        attack_batchnorm="eval",
        clip_norm=None,
        seed=0,
    )
    perturbation = AWP() if name == "ikl_awp" else NoPerturbation()

    def take(x: Tensor, y: Tensor, steps: int) -> Any:
        attack = PGD(eps=EPS, steps=steps, step_size=STEP_SIZE, init="gaussian")
        return step(Batch(x, y, slice(0, images)), attack, perturbation, 1, 0)

    return take


def published_step(name: str, model: nn.Module, steps: int) -> Step:
    """The rival, ready for `steps` attack steps and for one."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4)
    balls = [published.Ball(EPS, k, STEP_SIZE) for k in (steps, 1)]
    takes = {ball.steps: published.build(name, model, optimizer, ball, num_classes=CLASSES) for ball in balls}
    return lambda x, y, k: takes[k](x, y)


def count(step: Step, x: Tensor, y: Tensor, steps: int) -> dict[str, Any]:
    """What one step does; of bytes, what one with a single attack step does, since all attack steps keep as many."""
    with SavedForBackward() as saved:
        step(x, y, 1)  # which allocates the momentum
    with Counter() as counter:
        step(x, y, steps)
    flops = {f"{kind}_flops": value for kind, value in counter.flops.items()}
    kept = {"attack_pass": saved.passes[0], "training_pass": max(saved.passes[1:])}
    return counter.counts | flops | {"bytes": kept, "waits": dict(counter.waits)}


def gates_of(name: str, found: dict[str, dict[str, Any]], layers: Layers, steps: int) -> list[Gate]:
    """Those of one loss; `found` holds what was counted of both ways."""
    gates = []
    for way, figures in found.items():
        passes = Passes(name, way == "lean", steps)
        for key, value in formulas.counts(layers, passes).items():
            gates.append(Gate(f"{name}, {way}, {key}", figures[key], value, value))
        for key, (least, most) in formulas.kept_bytes(layers, passes).items():
            gates.append(Gate(f"{name}, {way}, bytes of the {key}", figures["bytes"][key], least, most))
    # A natural pass that our step saves is at least its convolutions. On the other side are losses per image, named
    # random streams and accuracies: at most ten small operations for each pass and thirty for each step.
    lean, rival = Passes(name, True, steps), Passes(name, False, steps)
    saved = (rival.natural - lean.natural) * layers.convolutions
    most = found["published"]["operations"] - saved + 10 * lean.forward + 30
    return [*gates, Gate(f"{name}, lean, operations", found["lean"]["operations"], 1, most)]


def small_work(model: nn.Module) -> tuple[dict[str, int], list[Gate]]:
    """Operations of what a step does beside its passes.

    AWP takes nine on all its weights at once (two norms, γ‖w‖, no division by zero, the ratio, the product, the copy,
    the sum and the way back) and memory for each copy. EMA takes one for all numbers and one for all counters. SGD
    takes four for each parameter (decay, m · velocity, + gradient, the move) and two marks for the profiler; on a GPU
    it is one fused kernel.
    """
    parameters = list(model.parameters())
    optimizer, average = SGD(lr=0.1).build(model), EMA()
    average.attach(model)
    perturbation = AWP()(model, lambda: None)

    def perturb() -> None:
        with perturbation:
            pass

    bounds: dict[str, tuple[Callable[[], Any], int]] = {
        "ema": (lambda: average.after_step(1), 2),
        "sgd": (optimizer.step, 4 * len(parameters) + 2),
        "awp": (perturb, 9 + sum(p.dim() > 1 for p in parameters)),  # the last one, since it empties the gradients
    }
    for parameter in parameters:
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()  # allocates the momentum
    found, gates = {}, []
    for name, (work, most) in bounds.items():
        with Counter() as counter:
            work()
        found[name] = counter.counts["operations"]
        gates.append(Gate(f"{name}, operations", found[name], 1, most))
        gates.append(Gate(f"{name}, host_syncs", counter.counts["host_syncs"], 0, 0))
    return found, gates


def measure(network: str, steps: int, images: int, losses: tuple[str, ...] = published.STEPS) -> dict[str, Any]:
    """Counts and gates of one network."""
    x, y = batch_of(network, images)
    layers = layers_of(built(network), x)
    convolutions = NETWORKS[network][2]
    gates = [Gate("convolutions of the network", layers.convolutions, convolutions, convolutions)]
    record: dict[str, Any] = {"steps": steps, "batch": images, "layers": vars(layers)}
    for name in losses:
        ways = {
            "lean": lean_step(name, built(network), images),
            "published": published_step(name, built(network), steps),
        }
        record[name] = {way: count(step, x, y, steps) for way, step in ways.items()}
        gates += gates_of(name, record[name], layers, steps)
    record["small_work"], more = small_work(built(network))
    record["gates"] = [gate.record() for gate in gates + more]
    return record


def measure_compiled(network: str, images: int) -> dict[str, Any]:
    """TRADES's attack, compiled: a graph of the natural logits, forward alone, and one of the step for all radii.

    The step computes the gradient of each convolution's input and no other.
    """
    x, y = batch_of(network, images)
    found = graphs_of_attack(built(network), TRADES(), x, y)
    n = NETWORKS[network][2]
    wanted = {"graphs": 2, "graph_breaks": 0, "forward": 2 * n, "input_gradient": n, "weight_gradient": 0}
    gates = [Gate(f"compiled attack, {key}", found[key], value, value) for key, value in wanted.items()]
    return {"attack": found, "gates": [gate.record() for gate in gates]}


def table(network: str, record: dict[str, Any]) -> str:
    """What was counted, for people."""
    head = ("forward", "input_gradient", "weight_gradient", "host_syncs", "operations")
    lines = [f"{network}: {record['steps']} attack steps, {record['batch']} images"]
    lines.append(
        f"{'':20}" + "".join(f"{word.replace('_', ' '):>17}" for word in head) + f"{'GFLOP':>10}{'MB kept':>10}"
    )
    for name in published.STEPS:
        for way, figures in record.get(name, {}).items():
            flops = (figures["convolution_flops"] + figures["matrix_flops"]) / 1e9
            row = "".join(f"{figures[key]:>17}" for key in head) + f"{flops:>10.4g}"
            lines.append(f"{name:9}{way:11}{row}{figures['bytes']['attack_pass'] / 1e6:>10.4g}")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, nargs="?")
    parser.add_argument("--steps", type=int, default=10, help="of the attack")
    parser.add_argument("--batch", type=int, default=2, help="images of a batch")
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    parser.add_argument("--compiled", action="store_true", help="look into the compiled attack step, too")
    arguments = parser.parse_args()
    record: dict[str, Any] = {
        "command": shlex.join(["python", "-m", "benchmarks", "counters", *sys.argv[1:]]),
        "git_commit": git_commit(),
        "seed": 0,
        "hardware": hardware("cpu"),
        "versions": versions(),
    }
    failed = []
    for network in arguments.networks:
        record[network] = measure(network, arguments.steps, arguments.batch)
        print(table(network, record[network]), flush=True)
        if arguments.compiled:
            record[network]["compiled"] = measure_compiled(network, arguments.batch)
            print(json.dumps(record[network]["compiled"]["attack"]), flush=True)
        gates = record[network]["gates"] + record[network].get("compiled", {"gates": []})["gates"]
        failed += [f"{network}: {gate}" for gate in gates if not gate["holds"]]
        print(f"{len(gates)} gates", flush=True)
    if arguments.out:
        write_record(record, arguments.out)
    if failed:
        sys.exit("\n".join(["counters: these are not what the formulas derive:", *failed]))
