"""Run by test_acceleration_distributed.py, alone or under torchrun: float64 runs, compiled if there are two processes.

Writes the loss of each step, and how many graphs the training pass has become.

usage: python acceleration_worker.py DIRECTORY
"""

import json
import sys
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch._dynamo.backends.debugging import aot_eager
from toy import LOSSES, trainer  # beside this file

from advtrain import distributed
from advtrain.engine import AWP
from advtrain.engine.acceleration import Acceleration, compiled
from advtrain.engine.step import TrainingStep

CASES = {"ikl": True, "gkl": False}  # the loss, and whether BatchNorm; with it passes would have their own statistics


def network(norm: bool) -> nn.Module:
    """Its last two layers fill the first bucket of DDP's all-reduce, 1 MiB; the others are in the second."""
    torch.manual_seed(3)
    middle = nn.BatchNorm2d(6) if norm else nn.Identity()
    first = nn.Sequential(nn.Conv2d(3, 6, 3), middle, nn.ReLU(), nn.Flatten(), nn.Linear(96, 400), nn.ReLU())
    return nn.Sequential(first, nn.Linear(400, 400), nn.ReLU(), nn.Linear(400, 4))


def run(directory: Path, model: nn.Module, loss: str, acceleration: Acceleration) -> None:
    parts = {"loss": LOSSES[loss](), "weight_perturbation": AWP(), "epochs": 1}
    run = trainer(directory, model, sync_batchnorm=CASES[loss], accumulation=1 if CASES[loss] else 2, **parts)
    run.step = TrainingStep(
        run.model,
        run.loss,
        run.optimizer,
        numerics=run.numerics,
        batch_size=run.settings.images_per_step,
        accumulation=run.settings.accumulation,
        attack_batchnorm=run.settings.attack_batchnorm,
        clip_norm=None,
        seed=run.seed,
        acceleration=acceleration,
    )
    run.fit()


def main() -> None:
    directory = Path(sys.argv[1])
    torch.set_num_threads(1)
    with distributed.process_group(torch.device("cpu")):
        for loss, norm in CASES.items():
            for compile in ("off",) if distributed.world_size() == 1 else ("model", "step"):
                model, graphs = network(norm), 0

                def counted(graph: torch.fx.GraphModule, inputs: Any, model: nn.Module = model) -> Any:
                    nonlocal graphs
                    graphs += torch.is_grad_enabled() and all(p.requires_grad for p in model.parameters())
                    return aot_eager(graph, inputs)

                compiled.BACKEND = counted
                place = directory / f"{loss}-{compile}"
                run(place, model, loss, Acceleration(compile))
                if distributed.is_main():
                    (place / "graphs.json").write_text(json.dumps(graphs))


if __name__ == "__main__":
    main()
