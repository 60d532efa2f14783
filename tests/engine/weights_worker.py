"""Run by test_weights_distributed.py under torchrun: short float64 runs whose last states are written down.

DIRECTORY/one gets those of the main process alone, before it joins the group; DIRECTORY/two those of each process.

usage: python weights_worker.py DIRECTORY
"""

import sys
from pathlib import Path

import torch
from toy import network, trainer  # beside this file

from advtrain import distributed
from advtrain.engine import ASAM, AWP, EMA, SAM, SWA

# name: (weight perturbation, averaging, BatchNorm: None for a model without, else whether it is synchronised)
RUNS = {
    "awp": (lambda: AWP(gamma=0.05), None, None),
    "sam": (lambda: SAM(rho=0.2), None, None),
    "asam": (lambda: ASAM(rho=0.5), None, None),
    "recomputed": (None, lambda: EMA(decay=0.8, batchnorm="recomputed", batchnorm_batch_size=40), True),
    "awp-swa": (lambda: AWP(gamma=0.05), lambda: SWA(start_epoch=1, batchnorm_batch_size=30), True),
    "not-synchronised": (None, lambda: EMA(decay=0.8), False),
}


def run(directory: Path) -> None:
    """Every run; its averaged model and accuracies go to <directory>/<name>-<rank>.pt."""
    for name, (perturbation, averaging, synchronised) in RUNS.items():
        choices = {"weight_perturbation": perturbation, "averaging": averaging}
        made = {group: make() for group, make in choices.items() if make is not None}
        model = network(norm=synchronised is not None)
        accumulation = 2 if synchronised is None else 1  # batch statistics depend on how a batch is cut up
        sizes = {"batch_size": 48, "accumulation": accumulation}
        training = trainer(directory / name, model, sync_batchnorm=bool(synchronised), **sizes, **made)
        training.fit()
        position = training.position
        state = {
            "averaged": training.averaged.state_dict(),
            "accuracy": [position.best_epoch, position.best_robust, position.best_clean],
        }
        torch.save(state, directory / f"{name}-{distributed.rank()}.pt")


def main() -> None:
    torch.set_num_threads(1)
    directory = Path(sys.argv[1])
    if distributed.is_main():
        run(directory / "one")
    with distributed.process_group(torch.device("cpu")):
        run(directory / "two")


if __name__ == "__main__":
    main()
