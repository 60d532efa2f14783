"""Run by test_stored_logits_processes.py, alone or under torchrun: float64 runs with a file of the teacher's logits.

usage: python lessons_worker.py DIRECTORY
"""

import sys
from pathlib import Path
from typing import Any

import torch
from toy import LOSSES, Toy, trainer  # beside this file

from advtrain import distributed
from advtrain.engine.stored_logits import StoredLogits


def main() -> None:
    directory = Path(sys.argv[1])
    torch.set_num_threads(1)
    with distributed.process_group(torch.device("cpu")):
        spread = "fsdp" if distributed.world_size() > 1 else "none"
        runs: dict[str, dict[str, Any]] = {
            "augmented": {"replay_epochs": 2},
            "stored": {"data": Toy(augment="none")},
            "sharded": {"replay_epochs": 2, "sharding": spread},
        }
        for name, changes in runs.items():
            run = trainer(directory / name, loss=LOSSES["ikl_kd"](), attack=None, epochs=3, save_every=3, **changes)
            run.stored = StoredLogits(directory / f"{name}.npy", {})
            run.fit()


if __name__ == "__main__":
    main()
