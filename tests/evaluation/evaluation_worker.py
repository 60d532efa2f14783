"""Run by test_processes.py, alone or under torchrun: evaluates a toy model, with a progress line after each batch.

usage: python evaluation_worker.py FOLDER SECONDS

Every batch of an attack takes SECONDS longer than it needs, so that there is time to kill the process.
"""

import sys
import time
from pathlib import Path

import torch
from conftest import linear_problem  # beside this file

from advtrain import distributed
from advtrain.evaluation import (
    AutoAttackSettings,
    EvaluationSettings,
    MaskingSettings,
    PGDSettings,
    ScreenSettings,
    evaluate,
)
from advtrain.evaluation.autoattack import stages

SETTINGS = EvaluationSettings(
    masking=MaskingSettings(enabled=False),
    batch_size=7,
    pgd=PGDSettings(steps=3, restarts=2),
    screen=ScreenSettings(enabled=True, n_examples=20, batch_size=6),
    autoattack=AutoAttackSettings(version="custom", attacks=["apgd-ce", "apgd-t", "fab-t"], batch_size=5),
)


def main() -> None:
    folder, seconds = Path(sys.argv[1]), float(sys.argv[2])
    torch.set_num_threads(1)
    problem = linear_problem(4, n=40)
    attack_and_judge = stages.attack_and_judge

    def slower(*arguments):
        time.sleep(seconds)
        return attack_and_judge(*arguments)

    stages.attack_and_judge = slower
    with distributed.process_group(torch.device("cpu")):
        result = evaluate(
            problem.model,
            problem.split,
            norm="linf",
            eps=problem.eps,
            settings=SETTINGS,
            progress=lambda line: print(f"[{distributed.rank()}] {line}", flush=True),
            folder=folder,
        )
        distributed.leave()
    if distributed.is_main():
        result.save(folder)


if __name__ == "__main__":
    main()
