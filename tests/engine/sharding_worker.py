"""Run by test_sharding.py under torchrun: how a model lies on the processes must change no run.

DIRECTORY/one gets the runs of the main process alone, DIRECTORY/none those of two processes that hold everything and
DIRECTORY/fsdp those of two that hold a part each. DIRECTORY/onwards has runs that change from one to the other.

usage: python sharding_worker.py DIRECTORY
"""

import json
import shutil
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch import distributed as dist
from toy import trainer, with_teacher  # beside this file

from advtrain import distributed
from advtrain.attacks import Free
from advtrain.engine import ASAM, AWP, EMA, SAM, SWA, AdamW, Trainer
from advtrain.engine.sharding import state_bytes
from advtrain.losses import GKL, IKLKD, PGDAT, TRADES
from advtrain.models.gradient_checkpointing import checkpoint_blocks


class Block(nn.Module):
    """A residual block of 5 channels: an odd number, which two processes cannot share evenly."""

    def __init__(self, norm: bool) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(5) if norm else nn.Identity()
        self.conv = nn.Conv2d(5, 5, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv(self.norm(x).tanh())


def network(norm: bool = False, checkpointed: bool = False) -> nn.Module:
    torch.manual_seed(3)
    blocks = nn.Sequential(Block(norm), Block(norm))
    if checkpointed:
        checkpoint_blocks(blocks)
    return nn.Sequential(nn.Conv2d(3, 5, 3), blocks, nn.Flatten(), nn.Linear(5 * 4 * 4, 4))


# Every weight perturbation and optimiser, averages, and what runs passes of its own. Without BatchNorm each process
# cuts its part of the batch into three passes: batch statistics would depend on how a batch is cut.
RUNS: dict[str, Callable[[], dict[str, Any]]] = {
    "pgd_at": lambda: {"loss": PGDAT(), "weight_perturbation": AWP(gamma=0.05), "averaging": EMA(), "clip_norm": 0.3},
    "trades": lambda: {"loss": TRADES(), "weight_perturbation": SAM(), "averaging": SWA(start_epoch=1)},
    "ikl": lambda: {"weight_perturbation": AWP(gamma=0.05), "averaging": EMA(decay=0.8), "clip_norm": 0.5},
    "gkl": lambda: {
        "loss": GKL(num_classes=4, gamma=0.4),
        "weight_perturbation": ASAM(),
        "optimizer": AdamW(lr=0.01),
    },
    "norm": lambda: {
        "model": network(norm=True),
        "weight_perturbation": AWP(gamma=0.05),
        "averaging": EMA(decay=0.8, batchnorm="recomputed", batchnorm_batch_size=40),  # 3 batches: 2 and 1
        "sync_batchnorm": True,
        "accumulation": 1,
    },
    "checkpointed": lambda: {
        "model": network(norm=True, checkpointed=True),
        "attack_batchnorm": "train",
        "sync_batchnorm": True,
        "accumulation": 1,
    },
    "ikl_kd": lambda: {
        "loss": with_teacher(IKLKD(num_classes=4, warmup_epochs=2)),
        "weight_perturbation": AWP(gamma=0.05),
        "averaging": EMA(decay=0.8),
    },
    "free": lambda: {"loss": PGDAT(), "attack": Free(eps=0.05, replays=5), "accumulation": 1},
}

# Where two processes give other numbers than one: BatchNorm over each part of the batch, products in bfloat16.
APART: dict[str, Callable[[], dict[str, Any]]] = {
    "own-norm": lambda: {"model": network(norm=True), "weight_perturbation": AWP(gamma=0.05), "averaging": EMA()},
    "bf16": lambda: {"precision": "bf16", "weight_perturbation": AWP(gamma=0.05), "averaging": EMA()},
}


def run(directory: Path, name: str, sharding: str = "none", epochs: int = 2) -> Trainer:
    """Trains from where the directory's last checkpoint left off, or from the start."""
    choices = {"model": network(), "accumulation": 3, **(RUNS | APART)[name]()}
    settings = {"batch_size": 48, "epochs": epochs, "sharding": sharding, "channels_last": True, "device": "cpu"}
    training = trainer(directory / name, **settings, **choices)
    training.fit()
    return training


def held(training: Trainer) -> dict[str, list[int]]:
    """Bytes of storage that this process holds for weights, optimiser and average, and what was expected."""
    optimizer = [value for state in training.optimizer.state.values() for value in state.values() if value.dim() > 0]
    tensors = [[*training.model.parameters()], optimizer, [*training.averaged.parameters()]]
    storages = [sum(distributed.own_part(t).untyped_storage().nbytes() for t in kind) for kind in tensors]
    processes = distributed.world_size() if training.settings.sharding == "fsdp" else 1
    expected = state_bytes(network().to(training.numerics.dtype), processes=processes)
    return {"held": storages, "expected": [expected.weights, expected.optimizer, expected.average]}


def messages(training: Trainer) -> list[str]:
    """What FSDP sends in one more step: "all_gather" and "reduce_scatter", in their order."""
    seen: list[str] = []
    names = ("all_gather_into_tensor", "all_gather_single", "reduce_scatter_tensor", "reduce_scatter_single")
    originals = {name: getattr(dist, name) for name in names if hasattr(dist, name)}  # torch 2.15 renamed them
    for name, original in originals.items():
        setattr(dist, name, partial(_noted, seen, name, original))
    batch = next(iter(training.train_loader.epoch(3)))
    training.step(batch, training.parts.attack, training.parts.weight_perturbation, 3, 0)
    for name, original in originals.items():
        setattr(dist, name, original)
    return seen


def _noted(seen: list[str], name: str, original: Callable[..., Any], *args: Any, **settings: Any) -> Any:
    seen.append("_".join(name.split("_")[:2]))
    return original(*args, **settings)


def main() -> None:
    torch.set_num_threads(1)
    directory = Path(sys.argv[1])
    onwards = directory / "onwards"
    if distributed.is_main():
        for name in RUNS:
            run(directory / "one", name)
        run(onwards / "one", "ikl", epochs=4)
        shutil.copytree(directory / "one" / "ikl", onwards / "one-fsdp" / "ikl")
    notes: dict[str, Any] = {}
    with distributed.process_group(torch.device("cpu")):
        distributed.barrier()
        for sharding in ("none", "fsdp"):
            for name in RUNS | APART:
                training = run(directory / sharding, name, sharding)
                notes[f"{sharding} {name}"] = held(training)
                if name in ("pgd_at", "trades") and sharding == "fsdp":
                    notes[f"messages {name}"] = messages(training)
        run(onwards / "one-fsdp", "ikl", "fsdp", epochs=4)
        (directory / f"notes-{distributed.rank()}.json").write_text(json.dumps(notes))
    if distributed.is_main():
        shutil.copytree(directory / "fsdp" / "ikl", onwards / "fsdp-one" / "ikl")
        run(onwards / "fsdp-one", "ikl", epochs=4)


if __name__ == "__main__":
    main()
