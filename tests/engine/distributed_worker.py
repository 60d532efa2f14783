"""Run by test_distributed.py, alone or under torchrun: 20 float64 steps of five epochs with every loss.

Then with two views of the images and with mixed ones.

usage: python distributed_worker.py DIRECTORY
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from toy import DATA, LOSSES, VARIANTS, network, trainer, weights_of  # beside this file

from advtrain import distributed
from advtrain.attacks import Free
from advtrain.engine import Trainer
from advtrain.losses import PGDAT


@contextmanager
def teacher_left_alone(run: Trainer) -> Iterator[None]:
    """Processes share nothing of a teacher: one whose counter differs on each of them keeps it, and all else."""
    if run.loss.teacher is None:
        yield
        return
    teacher, rank = run.loss.teacher.model, distributed.rank()
    teacher[1].num_batches_tracked += rank
    before, own = weights_of(teacher), {id(tensor) for tensor in (*teacher.parameters(), *teacher.buffers())}
    replicated = (*run.step._replica.parameters(), *run.step._replica.buffers())
    assert not own & {id(tensor) for tensor in replicated}
    yield
    assert all(torch.equal(now, then) for now, then in zip(weights_of(teacher), before, strict=True))
    assert all(p.grad is None for p in teacher.parameters()) and teacher[1].num_batches_tracked == rank


def main() -> None:
    directory = Path(sys.argv[1])
    torch.set_num_threads(1)
    with distributed.process_group(torch.device("cpu")):
        for norm in (False, True):
            for name, loss in (LOSSES if norm else LOSSES | VARIANTS).items():
                place = directory / f"{name}{'-norm' if norm else ''}"
                run = trainer(place, network(norm), loss=loss(), epochs=5, sync_batchnorm=norm)
                with teacher_left_alone(run):
                    run.fit()
        for name, parts in DATA.items():
            trainer(directory / name, epochs=5, **parts()).fit()
        trainer(directory / "free", network(), loss=PGDAT(), attack=Free(eps=0.05, replays=5), epochs=1).fit()


if __name__ == "__main__":
    main()
