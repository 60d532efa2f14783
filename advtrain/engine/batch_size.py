"""trainer.batch_size=auto: the largest batch whose training step fits in memory, found before training starts.

A batch fits when optimiser steps of a trial run on random images of that batch do: attack, weight perturbation, both
passes of the outer loss, optimiser state and average, in the last epoch's form. Each trial has a model, a loss and an
average of its own, which go with it, and random numbers are drawn aside: the run that follows starts as if nothing had
been. Trials run uncompiled, which takes no less memory than the compiled step.

On a GPU the trial is run and its memory read off; what runs out of memory does not fit. On a CPU nothing says that
memory runs out before the system ends the process, so the bytes of a few small steps are counted (`LiveBytes`) and
extended in a straight line: beyond some size all that grows with the batch is activations, at a fixed rate per image.

A larger batch is other mathematics: fewer, less noisy steps. The learning rate is not scaled with it.
"""

import gc
import json
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from advtrain import distributed
from advtrain.data.base import Batch
from advtrain.engine.checkpoints import write_text
from advtrain.engine.memory import LiveBytes, host_memory
from advtrain.engine.trainer import Trainer
from advtrain.types import SettingError

ROWS = 8  # the rows of each process are a multiple of this many
LEAST_STEPS = 16  # that an epoch keeps, however much memory there is: with one step an epoch nothing is learnt
GPU_SHARE = 0.9  # of the memory that is free before the trials; the rest is for fragments and the validation
HOST_SHARE = 0.7  # of the memory that the host has left: workspaces and fragments are not counted
SAME_SLOPE = 0.02  # relative difference of two slopes that counts as none
LARGEST_TRIAL = 256  # rows of the steps that are counted on a CPU
EXECUTION = "execution.json"

OUT_OF_MEMORY = ("out of memory", "ALLOC_FAILED", "unable to find an engine to execute")


@dataclass(frozen=True)
class Found:
    """The rows of this process that fit, and why it is not more."""

    rows: int
    reason: str


def find_rows(trial: Callable[[int], None], device: torch.device, *, images: int, accumulation: int) -> Found:
    """The most rows per process for which `trial` fits in memory.

    To be called before processes join their group: one that runs out of memory would leave the others waiting.

    Args:
        trial: takes optimiser steps with so many rows and leaves nothing behind.
        device: of the run.
        images: in the training split.
        accumulation: passes that the rows are split into.

    Raises:
        SettingError: not even the smallest batch fits.
    """
    processes = distributed.launched_processes()
    at_most = max(1, images // LEAST_STEPS // processes)
    unit = ROWS * -(-accumulation // ROWS)  # rounded up
    unit = unit if at_most >= unit else accumulation
    if device.type == "cuda":
        fits, share = fits_on_gpu(trial, device), f"a {1 - GPU_SHARE:.0%} share of the GPU's free memory kept back"
    else:
        line = bytes_per_row(trial, unit)
        room = HOST_SHARE * host_memory() / processes
        fits = line.within(room)
        share = f"{line}, of {HOST_SHARE:.0%} of the host's free memory ({room / 2**30:.1f} GiB a process)"
    rows = largest(fits, unit=unit, at_most=at_most)
    if rows == 0:
        raise SettingError(
            f"trainer.batch_size=auto: expected memory for {unit} images a process, got less; set "
            "trainer.activation_checkpointing=true, or choose a smaller model"
        )
    if rows + unit > at_most:
        return Found(rows, f"an epoch keeps {LEAST_STEPS} steps")
    return Found(rows, f"what fits in memory: {share}")


def largest(fits: Callable[[int], bool], *, unit: int, at_most: int) -> int:
    """The largest multiple of `unit` up to `at_most` that was seen to fit; 0 where `unit` does not.

    Doubles from `unit` on until it is too much, then halves the interval until that is a sixteenth of what fits: 6 %
    more images are not worth further trials. What is returned has been tried, even if `fits` is not monotone.
    """
    best, trial = 0, unit
    while trial <= at_most and fits(trial):
        best, trial = trial, 2 * trial
    too_many = min(trial, at_most // unit * unit + unit)
    while best and too_many - best > max(unit, best // 16):
        middle = (best + too_many) // 2 // unit * unit
        if fits(middle):
            best = middle
        else:
            too_many = middle
    return best


def fits_on_gpu(trial: Callable[[int], None], device: torch.device) -> Callable[[int], bool]:
    """Whether a trial of so many rows runs in the share of the GPU's memory that this process may take.

    Several processes need DDP's copy of the gradients, too, which the trials are without: it is in what is kept back.
    """

    def fits(rows: int) -> bool:
        torch.cuda.empty_cache()
        room = GPU_SHARE * (torch.cuda.mem_get_info(device)[0] + torch.cuda.memory_reserved(device))
        torch.cuda.reset_peak_memory_stats(device)
        enough = runs(trial, rows)
        peak = torch.cuda.max_memory_reserved(device)
        gc.collect()  # the frames of an error hold tensors
        torch.cuda.empty_cache()
        return enough and peak <= room

    return fits


def runs(trial: Callable[[int], None], rows: int) -> bool:
    """Whether the trial comes through; False where memory runs out."""
    try:
        trial(rows)
    except RuntimeError as error:  # torch.OutOfMemoryError is one; cuDNN and cuBLAS have words of their own
        if not any(words in str(error) for words in OUT_OF_MEMORY):
            raise
        return False
    return True


@dataclass(frozen=True)
class Line:
    """Bytes of a step as a function of its rows."""

    constant: float
    per_row: float

    def __str__(self) -> str:
        return f"a step takes {self.constant / 2**20:,.0f} MiB and {self.per_row / 2**20:,.2f} MiB an image"

    def within(self, room: float) -> Callable[[int], bool]:
        return lambda rows: self.constant + self.per_row * rows <= room


def bytes_per_row(trial: Callable[[int], None], first: int) -> Line:
    """The line on which the bytes of larger steps lie, from steps of `first` rows, twice as many, and so on.

    The peak of a step is the largest of several peaks, each on a line of its own: with few rows that of the update,
    where gradients are, with many that of the passes. So the slope rises until it stays; the last one is taken.

    Raises:
        SettingError: it still rises at 256 rows.
    """
    rows, peak, slope = first, peak_bytes(trial, first), 0.0
    while rows < max(LARGEST_TRIAL, 4 * first):
        higher = peak_bytes(trial, 2 * rows)
        before, slope = slope, (higher - peak) / rows
        rows, peak = 2 * rows, higher
        if before and abs(slope - before) <= SAME_SLOPE * slope:
            return Line(peak - slope * rows, slope)
    raise SettingError(
        f"trainer.batch_size=auto: expected memory in proportion to the batch by {rows} images, got a rate that still "
        "grows; give a number"
    )


def peak_bytes(trial: Callable[[int], None], rows: int) -> int:
    """The most bytes that are alive at a time in a trial, the model's among them."""
    gc.collect()
    with LiveBytes() as memory:
        trial(rows)
    return memory.peak


def take_steps(trainer: Trainer, rows: int, count: int = 2) -> None:
    """Optimiser steps of a trial run on random images; the second one meets the optimiser's state."""
    data, epoch = trainer.parts.data, trainer.settings.epochs
    shape = (rows, *data.image_shape)
    views = [torch.rand(shape, device=trainer.device) for _ in range(trainer.loss.views)]
    labels = torch.arange(rows, device=trainer.device) % (data.num_classes or 1)
    if data.mix != "none":
        labels = F.one_hot(labels, data.num_classes or 1).float()
    batch = Batch(views[0], labels, slice(0, rows), *views[1:])
    trainer.model.train()
    trainer.loss.train()
    for step in range(count):
        perturbation = trainer.parts.weight_perturbation.for_epoch(epoch)
        trainer.step(batch, trainer.attack_of(epoch), perturbation, epoch, step)
        trainer.parts.averaging.after_step(step + 1)


def trials(make: Callable[[int], Trainer], device: torch.device) -> Callable[[int], None]:
    """Trial runs that leave nothing behind: `make` gives each a trainer with parts of its own."""

    def trial(rows: int) -> None:
        with ExitStack() as aside:
            aside.enter_context(torch.random.fork_rng([device] if device.type == "cuda" else []))
            trainer = make(rows)
            aside.enter_context(trainer.numerics.products())
            take_steps(trainer, rows)

    return trial


def agreed(found: Found | None, directory: Path, device: torch.device) -> int:
    """The batch size of all processes together: what is recorded, or else the smallest of what they found.

    The main process's record decides, since others may not see it. A new number is recorded there.

    Args:
        found: by this process; None where it saw a record.
        directory: of the run.
        device: of the run.
    """
    recorded = distributed.broadcast_object(recorded_batch_size(directory) if distributed.is_main() else None)
    if isinstance(recorded, int):
        return recorded
    assert found is not None, "the main process has no record, though this one saw it"
    rows = -int(distributed.all_reduce_max(torch.tensor(-found.rows, device=device)))
    batch_size = rows * distributed.world_size()
    if distributed.is_main():
        record(directory, batch_size=batch_size, batch_size_reason=found.reason)
    return batch_size


def recorded_batch_size(directory: Path) -> int | None:
    """The number that an earlier session of the run found; None for a run that starts.

    Raises:
        SettingError: the run has a checkpoint and no record.
    """
    path = directory / EXECUTION
    recorded = json.loads(path.read_text()).get("batch_size") if path.is_file() else None
    if recorded is None and (directory / "checkpoints" / "last.pt").is_file():
        raise SettingError(
            f"trainer.batch_size=auto: expected the number with which the run began in {path}, got none; restore that "
            "file, or start anew under another name=…"
        )
    return recorded


def record(directory: Path, **facts: Any) -> None:
    """Adds to execution.json, what a run found out about the machine that it is on."""
    path = directory / EXECUTION
    before = json.loads(path.read_text()) if path.is_file() else {}
    write_text(path, json.dumps(before | facts, indent=2) + "\n")
