"""Run by test_stored_logits_processes.py, alone or under torchrun: runs with stored logits, in float64.

usage: python lessons_worker.py DIRECTORY
"""

import sys
from pathlib import Path
from typing import Any

import torch

from advtrain import distributed
from tests.engine.lessons import LOSSES, lesson
from tests.engine.toy import Toy

RUNS: dict[str, dict[str, Any]] = {
    "augmented": {},
    "stored": {"data": Toy(augment="none"), "replay_epochs": None},
    "sharded": {"sharding": "fsdp"},
}


def main() -> None:
    directory = Path(sys.argv[1])
    torch.set_num_threads(1)
    with distributed.process_group(torch.device("cpu")):
        for name, changes in RUNS.items():
            if name == "sharded" and distributed.world_size() == 1:
                changes = {}  # there is nothing to spread over
            lesson(directory / name, directory / f"{name}.npy", loss=LOSSES["ikl_kd"](), epochs=4, **changes).fit()


if __name__ == "__main__":
    main()
