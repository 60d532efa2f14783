"""PGD by itself, ours against torchattacks' on the same model, from the same start."""

import importlib.util
import os
import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from advtrain.attacks import PGD
from advtrain.engine.acceleration import Acceleration, Passes
from advtrain.losses import PGDAT
from benchmarks.timing import Work, compared, interleaved, significant

EPS, STEP_SIZE = 8 / 255, 2 / 255
RIVAL = "torchattacks"
FOLDER = "ADVTRAIN_TORCHATTACKS"  # the variable that names where it is, when it is not installed
MISSING = (
    "torchattacks is not there: pip install --no-deps --target FOLDER torchattacks==3.5.1, and set "
    f"{FOLDER}=FOLDER. Beside robustbench it must not be installed: its wheel overwrites that with an old one."
)
CONTIGUOUS, LAST = torch.contiguous_format, torch.channels_last
RUNGS = {"eager, contiguous": ("off", CONTIGUOUS), "eager": ("off", LAST), "compile=step": ("step", LAST)}


def installed() -> bool:
    """Whether torchattacks can be imported; looks into the folder of the variable, too, after everything else."""
    if FOLDER in os.environ and os.environ[FOLDER] not in sys.path:
        sys.path.append(os.environ[FOLDER])
    return importlib.util.find_spec(RIVAL) is not None


def rival(model: nn.Module, x: Tensor, y: Tensor, steps: int) -> Callable[[], Tensor]:
    """torchattacks.PGD as its users call it: on a model in the usual layout whose parameters take gradients."""
    import torchattacks

    attack = torchattacks.PGD(model, eps=EPS, alpha=STEP_SIZE, steps=steps, random_start=True)

    def work() -> Tensor:
        torch.manual_seed(0)
        return attack(x, y)

    return work


def ours(
    model: nn.Module, x: Tensor, y: Tensor, steps: int, compilation: str, layout: torch.memory_format
) -> Callable[[], Tensor]:
    """Ours, from the start that torchattacks draws: a uniform draw of the global generator, in the usual layout."""
    passes = Passes(model.requires_grad_(False).to(memory_format=layout), Acceleration(compilation))
    attack: Any = PGD(eps=EPS, steps=steps, step_size=STEP_SIZE).using(passes.ascent)
    loss, images = PGDAT(), x.to(memory_format=layout)

    def work() -> Tensor:
        torch.manual_seed(0)
        start = (x + torch.empty_like(x).uniform_(-EPS, EPS)).clamp(0, 1)
        objective = loss.inner(passes.attacked, images, y)
        return attack(objective, images, start=start.to(memory_format=layout))

    return work


def measured(network: Callable[[], nn.Module], x: Tensor, y: Tensor, *, steps: int, rounds: int) -> dict[str, Any]:
    """Times, ratios to torchattacks, and how far the adversarial images lie apart.

    In the same layout they are the same bit for bit, where the number of images is a power of two: torchattacks
    maximises their mean, ours the sum. In another layout or compiled, sums are rounded in another order, a sign step
    turns a gradient near zero into a whole step, and the paths part; how near the gradients are is told for the steps.
    """
    torch.compiler.reset()

    def model() -> nn.Module:
        torch.manual_seed(0)
        return network().eval().requires_grad_(True)

    ways: dict[str, Any] = {RIVAL: rival(model(), x, y, steps)}
    ways |= {name: ours(model(), x, y, steps, *how) for name, how in RUNGS.items()}
    theirs = ways[RIVAL]()
    images = {name: way() for name, way in ways.items()}
    works: dict[str, Work] = ways
    found = compared(interleaved(works, rounds=rounds, seed=0), RIVAL)
    for name, figures in found.items():
        figures["images_per_second"] = significant(1e3 * len(x) / figures["milliseconds"])
        distance = (images[name] - theirs).abs()
        figures["parity"] = {
            "pixels_equal": significant((distance == 0).double().mean().item(), 6),
            "largest_difference": significant(distance.max().item(), 3),
        }
    return found
