"""Run by test_distributed.py, alone or under torchrun: 20 float64 steps of five epochs with every loss.

Then with two views of the images and with mixed ones.

usage: python distributed_worker.py DIRECTORY
"""

import sys
from pathlib import Path

import torch
from toy import DATA, LOSSES, VARIANTS, network, trainer  # beside this file

from advtrain import distributed


def main() -> None:
    directory = Path(sys.argv[1])
    torch.set_num_threads(1)
    with distributed.process_group(torch.device("cpu")):
        for norm in (False, True):
            for name, loss in (LOSSES if norm else LOSSES | VARIANTS).items():
                place = directory / f"{name}{'-norm' if norm else ''}"
                run = trainer(place, network(norm), loss=loss(), epochs=5, sync_batchnorm=norm)
                run.fit()
        for name, parts in DATA.items():
            trainer(directory / name, epochs=5, **parts()).fit()


if __name__ == "__main__":
    main()
