"""Ratios on one CPU thread: our step, attack, loss and loader against the published way, torchattacks, pairs and PIL.

    python -m benchmarks ratios results/benchmarks/ratios.json       # 11 minutes of one core, mostly ResNet-18
    python -m benchmarks ratios OUT.json --only losses,augmentation  # some of its parts
    python -m benchmarks ratios OUT.json --toy --rounds 2            # everything, at a size that shows nothing

One process, one thread, process time, both sides built once, turns in random order: see `benchmarks.timing`. A parity
figure stands beside every time. Evaluation has a benchmark of its own: `python -m benchmarks autoattack`.
"""

import argparse
import json
import shlex
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from torch import nn

from advtrain.engine.run_directory import git_commit
from advtrain.evaluation.records import hardware, versions, write_record
from advtrain.models import PreActResNet, SmallCNN, SmallPreActResNet
from advtrain.sources import find
from benchmarks.comparisons import attack, augmenting, losses, roofline, steps
from benchmarks.comparisons.inputs import as_bytes, image_like, labels

SEED = 0
WANTED = {"step, eager": 1.6, "step, compiled": 1.9, "ikl, C = 100": 50.0, "ikl, C = 1000": 1000.0, "augmentation": 8.0}
BUNDLE = Path(__file__).resolve().parents[1] / "checkpoints" / "cifar10_cpu"


@dataclass(frozen=True)
class Sizes:
    """How much work each part does.

    Attributes:
        networks: of the steps, by name; the first is also the roofline's, the last the attack's.
        images: per batch of the steps and the attack.
        side: of the images, in pixels.
        rungs: of the steps.
        fewer_rungs: of the first network with IKL, which does the same passes as TRADES.
        attack_steps: of every attack.
        pairs: number of classes → images, for the loss over pairs.
        many_classes: of the comparison with KL, and the images of its batches.
        wide: makes the network of that many classes.
        augmented: images of an epoch, and those per batch.
        ceilings: side of the matrices, floats copied.
        rounds: of every comparison.
        least: seconds that a turn of what is quick shall take.
    """

    networks: dict[str, Callable[[], nn.Module]]
    images: int
    side: int
    rungs: tuple[str, ...]
    fewer_rungs: tuple[str, ...]
    attack_steps: int
    pairs: dict[int, int]
    many_classes: tuple[int, int]
    wide: Callable[[], nn.Module]
    augmented: tuple[int, int]
    ceilings: tuple[int, int]
    rounds: int
    least: float


def trained() -> nn.Module:
    """The small CIFAR-10 network of the README, with its weights."""
    config = {"source": str(BUNDLE), "eval": {"checkpoint": "best"}, "trust": False}
    return find(config, torch.device("cpu")).model


def full(rounds: int) -> Sizes:
    return Sizes(
        networks={"PreActResNet-18": PreActResNet, "preact_resnet_small": trained},
        images=32,
        side=32,
        rungs=tuple(steps.RUNGS),
        fewer_rungs=("eager", "compile=step"),
        attack_steps=10,
        pairs={10: 128, 100: 128, 1000: 32},
        many_classes=(1000, 128),
        wide=partial(SmallPreActResNet, num_classes=1000),
        augmented=(2560, 128),
        ceilings=(1536, 2**25),
        rounds=rounds,
        least=0.1,
    )


def toy(rounds: int) -> Sizes:
    small = partial(SmallCNN, in_channels=3, image_size=8, width=2, hidden=8)
    return Sizes(
        networks={"toy": partial(small, num_classes=10)},
        images=4,
        side=8,
        rungs=("eager", "compile=step", "eager, bf16"),  # each compiled one takes seconds
        fewer_rungs=("eager",),
        attack_steps=2,
        pairs={5: 4},
        many_classes=(12, 4),
        wide=partial(small, num_classes=12),
        augmented=(16, 8),
        ceilings=(32, 1024),
        rounds=rounds,
        least=0.0,
    )


def step_ratios(sizes: Sizes) -> dict[str, Any]:
    """Training steps of each network and loss against the published way."""
    x, y = image_like(sizes.images, sizes.side, SEED), labels(sizes.images, 10, SEED)
    found = {}
    for number, (name, network) in enumerate(sizes.networks.items()):
        for loss in ("trades", "ikl"):
            case = steps.Case(network, loss, x, y, steps=sizes.attack_steps)
            words = sizes.fewer_rungs if loss == "ikl" and number == 0 else sizes.rungs
            rungs = {word: steps.RUNGS[word] for word in words}
            title = f"{name}, {loss.upper()}-{sizes.attack_steps}"
            found[title] = {"images": len(x), "ways": steps.measured(case, rungs, rounds=sizes.rounds)}
            tell(title, found[title]["ways"])
    return found


def attack_ratios(sizes: Sizes) -> dict[str, Any]:
    """PGD against torchattacks' on the last network; in words where that is not installed."""
    if not attack.installed():
        print(attack.MISSING)
        return {"left_out": attack.MISSING}
    name, network = list(sizes.networks.items())[-1]
    x, y = image_like(sizes.images, sizes.side, SEED), labels(sizes.images, 10, SEED)
    ways = attack.measured(network, x, y, steps=sizes.attack_steps, rounds=sizes.rounds)
    tell("attack", ways)
    return {"model": name, "images": len(x), "steps": sizes.attack_steps, "ways": ways}


def loss_ratios(sizes: Sizes) -> dict[str, Any]:
    """IKL against pairs of classes and against KL, alone and in a step."""
    effort = {"rounds": sizes.rounds, "least": sizes.least}
    pairs = {str(c): losses.against_pairs(n, c, **effort) for c, n in sizes.pairs.items()}
    classes, n = sizes.many_classes
    alone = losses.against_kl(n, classes, **effort)
    x = image_like(n, sizes.side, SEED)
    step = losses.steps_against_kl(sizes.wide, x, classes, steps=sizes.attack_steps, rounds=sizes.rounds)
    for title, part in {**{f"IKL, C = {c}": part for c, part in pairs.items()}, "KL": alone, "KL, step": step}.items():
        tell(title, part["ways"])
    return {"pairs": pairs, "kl": {"classes": classes, "loss": alone, "step": step}}


def augmentation_ratios(sizes: Sizes) -> dict[str, Any]:
    """Crop and flip on the device against PIL."""
    n, batch_size = sizes.augmented
    images, y = as_bytes(image_like(n, sizes.side, SEED)), labels(n, 10, SEED)
    found = augmenting.measured(images, y, batch_size=batch_size, rounds=sizes.rounds)
    tell("augmentation", found["ways"])
    return found


def roofline_figures(sizes: Sizes) -> dict[str, Any]:
    """Ceilings of this core, the first network's convolutions, one step of its attack, and a bound on the ratio."""
    name, network = next(iter(sizes.networks.items()))
    n, side, k = sizes.images, sizes.side, sizes.attack_steps
    effort = {"rounds": max(sizes.rounds // 2, 1), "least": sizes.least / 4}
    layers = roofline.layers(network(), n, side, **effort)
    ours = {"forward": k + 3, "input_gradient": k + 2, "weight_gradient": 2}
    theirs = ours | {"forward": 2 * k + 2}
    return {
        "model": name,
        "images": n,
        "ceilings": roofline.ceilings(*sizes.ceilings, **effort),
        "layers": layers,
        "attack_steps": roofline.attack_steps(network, n, side, 10, rounds=effort["rounds"]),
        "convolutions_of_a_step": {
            "published": theirs | {"milliseconds": roofline.step_milliseconds(layers, "contiguous", theirs)},
            "ours": ours | {"milliseconds": roofline.step_milliseconds(layers, "channels_last", ours)},
        },
    }


PARTS = {  # in this order
    "losses": loss_ratios,
    "augmentation": augmentation_ratios,
    "attack": attack_ratios,
    "roofline": roofline_figures,
    "steps": step_ratios,
}


def tell(title: str, ways: dict[str, Any]) -> None:
    """One line per way, while the benchmark runs."""
    for name, figures in ways.items():
        ratio, (low, high) = figures["ratio"], figures["range"]
        print(f"{title:32}{name:20}{figures['milliseconds']:>10g} ms{ratio:>10g} ({low:g} to {high:g})", flush=True)


def heading(rounds: int) -> dict[str, Any]:
    """Where what is measured now comes from."""
    installed = {"torchattacks": metadata.version("torchattacks")} if attack.installed() else {}
    return {
        "command": shlex.join(["python", "-m", "benchmarks", "ratios", *sys.argv[1:]]),
        "git_commit": git_commit(),
        "seed": SEED,
        "measured": f"process time on one thread, {rounds} rounds in random order; medians, ranges over the rounds",
        "hardware": hardware("cpu"),
        "versions": versions() | {name: metadata.version(name) for name in ("torchvision", "pillow")} | installed,
        "wanted": WANTED,
    }


def joined(head: dict[str, Any], parts: dict[str, Any], path: Path) -> dict[str, Any]:
    """The record of these parts, with what another command measured at the same commit and wrote into `path` before."""
    old = json.loads(path.read_text()) if path.is_file() else {}
    others = {name: old[name] for name in PARTS if name in old and name not in parts}
    if not others or old["git_commit"] != head["git_commit"] or old["versions"] != head["versions"]:
        return head | parts
    both = {key: " && ".join(dict.fromkeys((old[key], head[key]))) for key in ("command", "measured")}
    return head | both | others | parts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--only", default=",".join(PARTS), help="parts, separated by commas")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--toy", action="store_true", help="tiny sizes")
    arguments = parser.parse_args()
    chosen = arguments.only.split(",")
    if wrong := set(chosen) - set(PARTS):
        parser.error(f"--only: expected some of {', '.join(PARTS)}, got {', '.join(sorted(wrong))}")
    torch.set_num_threads(1)
    sizes = (toy if arguments.toy else full)(arguments.rounds)
    head, found = heading(arguments.rounds), {}  # the commit before a record is written, which would make it dirty
    for name in (name for name in PARTS if name in chosen):
        found[name] = PARTS[name](sizes)
        write_record(joined(head, found, arguments.out), arguments.out)  # what is stopped keeps what it had found
    print(arguments.out)
