"""trainer.batch_size=auto: the largest batch whose training step fits in memory, found before training starts.

A batch fits when optimiser steps of a trial run on random images of that batch do: attack, weight perturbation, both
passes of the outer loss, optimiser state and average, in the last epoch's form. Each trial has a model, a loss and an
average of its own, which go with it, and random numbers are drawn aside: the run that follows starts as if nothing had
been. Trials run uncompiled; what compilation changes of the memory is not looked at.

On a GPU the trial is run and its memory read off; what runs out of memory does not fit. On a CPU nothing says that
memory runs out before the system ends the process, so the bytes of a few small steps are counted (`LiveBytes`) and
extended in a straight line: beyond some size all that grows with the batch is activations, at a fixed rate per image.

A larger batch is other mathematics: fewer, less noisy steps. The learning rate is not scaled with it.
"""

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from advtrain import distributed
from advtrain.config import TrainerSettings
from advtrain.data.base import Batch
from advtrain.engine.execution import RECORD, record_execution, recorded_execution
from advtrain.engine.memory import bytes_per_row, fits_on_gpu, host_memory
from advtrain.engine.trainer import Trainer
from advtrain.types import SettingError

ROWS = 8  # the rows of each process are a multiple of this many
LEAST_STEPS = 16  # that an epoch keeps, however much memory there is: with one step an epoch nothing is learnt
GPU_SHARE = 0.9  # of the memory that is free before the trials; the rest is for fragments, DDP and the validation
HOST_SHARE = (
    0.5  # of the memory that the host has left: workspaces and fragments are not counted, see docs/performance.md
)
LARGEST_TRIAL = 64  # times the smallest one, of steps whose bytes are counted on a CPU
ENOUGH = f"more would leave fewer than {LEAST_STEPS} steps an epoch"
STATEFUL = ("attack", "loss", "weight_perturbation", "averaging")  # each trial has its own


@dataclass(frozen=True)
class Found:
    """The rows of this process that fit, and why it is not more."""

    rows: int
    reason: str


def check(settings: TrainerSettings) -> None:
    """Confirms that the batch can be divided over processes and passes.

    Raises:
        SettingError: it cannot.
    """
    processes = distributed.launched_processes()
    if settings.batch_size == "auto":
        return
    rows, rest = divmod(settings.images_per_step, processes)
    if rest or rows < settings.accumulation:
        raise SettingError(
            f"trainer.batch_size: expected a multiple of {processes} processes with at least "
            f"trainer.accumulation={settings.accumulation} images each, got {settings.batch_size}; change one of them"
        )


def own_rows(
    parts: Mapping[str, Any], make: Callable[[dict[str, Any]], Trainer], directory: Path, device: torch.device
) -> Found | None:
    """What fits in this process's memory; None where the batch size is a number, given or recorded.

    To be called before processes join their group: one that runs out of memory would leave the others waiting.

    Args:
        parts: of the run, by config group, with the settings under "trainer".
        make: a trainer of such parts.
        directory: of the run.
        device: of the run.

    Raises:
        SettingError: not even the smallest batch fits.
    """
    settings: TrainerSettings = parts["trainer"]
    if settings.batch_size != "auto" or recorded(directory):
        return None

    def trial(rows: int) -> None:
        own = {group: copy.deepcopy(parts[group]) for group in STATEFUL}
        own["trainer"] = replace(settings, batch_size=rows, compile="off", cuda_graph=None)
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            take_steps(make({**parts, **own}), rows)

    return find_rows(trial, device, images=len(parts["data"].split("train")), accumulation=settings.accumulation)


def find_rows(trial: Callable[[int], None], device: torch.device, *, images: int, accumulation: int) -> Found:
    """The most rows per process for which `trial` fits in memory.

    Args:
        trial: takes optimiser steps with so many rows and leaves nothing behind.
        device: of the run.
        images: in the training split.
        accumulation: passes that the rows are split into.

    Raises:
        SettingError: not even the smallest batch fits.
    """
    processes = distributed.launched_processes()
    at_most = images // LEAST_STEPS // processes
    unit = ROWS * -(-accumulation // ROWS)  # rounded up
    if at_most < unit:  # of so few images there is no need to try
        return Found(max(at_most, accumulation), ENOUGH)
    if device.type == "cuda":
        fits, share = fits_on_gpu(trial, device, GPU_SHARE), f"{1 - GPU_SHARE:.0%} of the GPU's free memory kept back"
    else:
        line = bytes_per_row(trial, unit, min(images // processes, LARGEST_TRIAL * unit))
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
        return Found(rows, ENOUGH)
    return Found(rows, f"what fits in memory: {share}")


def largest(fits: Callable[[int], bool], *, unit: int, at_most: int) -> int:
    """The largest multiple of `unit` up to `at_most` that was seen to fit; 0 where `unit` does not.

    Doubles from `unit` on until it is too much, then halves the interval until that is a sixteenth of what fits: 6 %
    more images are not worth further trials. What is returned has been tried, even if `fits` is not monotone.
    """
    best, trial, top = 0, unit, at_most // unit * unit
    while trial < top and fits(trial):
        best, trial = trial, 2 * trial
    too_many = min(trial, top)
    if trial >= top > 0 and fits(top):
        return top
    while best and too_many - best > max(unit, best // 16):
        middle = (best + too_many) // 2 // unit * unit
        if fits(middle):
            best = middle
        else:
            too_many = middle
    return best


def take_steps(trainer: Trainer, rows: int, count: int = 2) -> None:
    """Optimiser steps of a trial run on random images; the second one meets the optimiser's state."""
    data, epoch = trainer.parts.data, trainer.settings.epochs
    shape = (rows, *data.image_shape)
    views = [torch.rand(shape, device=trainer.device) for _ in range(trainer.loss.views)]
    labels = torch.arange(rows, device=trainer.device) % (data.num_classes or 1)
    if data.mix != "none":
        labels = F.one_hot(labels, data.num_classes or 1).float()
    taught = None
    if trainer.stored is not None:  # its steps ask no teacher
        taught = torch.zeros(rows, data.num_classes or 1, dtype=trainer.numerics.dtype, device=trainer.device)
    batch = Batch(views[0], labels, slice(0, rows), *views[1:], taught=taught)
    trainer.model.train()
    trainer.loss.train()
    with trainer.numerics.products():
        for step in range(count):
            perturbation = trainer.parts.weight_perturbation.for_epoch(epoch)
            trainer.step(batch, trainer.attack_of(epoch), perturbation, epoch, step)
            trainer.parts.averaging.after_step(step + 1)


def settled(settings: TrainerSettings, found: Found | None, directory: Path, device: torch.device) -> TrainerSettings:
    """The settings with a number: of all processes together what is recorded, or else the smallest of what they found.

    The main process's record decides, since others may not see it. A new number is recorded there.

    Args:
        settings: of the run.
        found: by this process; None where the batch size is a number, given or recorded.
        directory: of the run.
        device: of the run.
    """
    if settings.batch_size != "auto":
        return settings
    facts = distributed.broadcast_object(recorded(directory) if distributed.is_main() else None)
    if not facts:
        assert found is not None, "the main process has no record, though this one saw it"
        rows = -int(distributed.all_reduce_max(torch.tensor(-found.rows, device=device)))
        facts = {"batch_size": rows * distributed.world_size(), "batch_size_reason": found.reason}
        record_execution(directory, **facts)
    assert isinstance(facts, dict)
    with_number = replace(settings, batch_size=facts["batch_size"])
    check(with_number)  # there may be more processes now
    return with_number


def recorded(directory: Path) -> dict[str, Any]:
    """The number that an earlier session of the run found, and why it is not more; empty for a run that starts.

    Raises:
        SettingError: the run has a checkpoint and no record.
    """
    facts = recorded_execution(directory)
    if "batch_size" not in facts and (directory / "checkpoints" / "last.pt").is_file():
        raise SettingError(
            f"trainer.batch_size=auto: expected the number with which the run began in {directory / RECORD}, got "
            "none; restore that file, or start anew under another name=…"
        )
    return {key: facts[key] for key in ("batch_size", "batch_size_reason") if key in facts}


def remarks(trainer: Trainer, asked: TrainerSettings) -> list[str]:
    """What a reader should know of a batch size that was found, one line each.

    Args:
        trainer: with the number.
        asked: the settings as they were given.
    """
    if asked.batch_size != "auto":
        return []
    size, usual = trainer.settings.images_per_step, int(TrainerSettings.batch_size)
    reason, steps = recorded(trainer.directory).get("batch_size_reason", ""), trainer.train_loader.steps_per_epoch
    lines = [
        f"batch     auto: {size:,} images a step, {steps:,} steps an epoch; {reason}",
        f"          optimizer.lr={trainer.parts.optimizer.lr:g} is not scaled with it",
    ]
    if size > usual:
        lines.append(
            f"warning   a batch of {size:,} is other mathematics than the {usual} of most recipes: fewer, less noisy "
            "steps; numbers published for those do not hold for it"
        )
    return lines
