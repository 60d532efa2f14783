"""The teacher's logits from a file (`teacher.logits`): computed once, then streamed beside the batches.

What a file holds is in `advtrain.engine.logit_layouts`, how it is written and read in `advtrain.engine.logit_file`.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar, cast

import numpy as np
import torch

from advtrain import distributed
from advtrain.config import TrainerSettings
from advtrain.data.base import Batch, Dataset, TrainLoader
from advtrain.engine.fingerprints import of_images, of_network
from advtrain.engine.interrupts import Interrupted, StopRequest
from advtrain.engine.logit_file import (
    SETTING,
    LogitWriter,
    amount,
    check_belonging,
    described,
    open_logits,
    size,
)
from advtrain.engine.logit_layouts import Layout, layout_of, versions
from advtrain.engine.numerics import Numerics
from advtrain.engine.progress import console
from advtrain.engine.run_directory import flat, is_circumstance
from advtrain.losses import Distillation, Loss
from advtrain.types import Images, Logits, SettingError

T = TypeVar("T")

REPORTS = 4  # lines that tell how far the computation is


class TaughtLoader:
    """The batches of another loader with what the teacher says of them, read from a file.

    Args:
        loader: of the batches.
        layout: of the file.
        logits: its rows, memory-mapped: only those that this process needs are read.
        device: where the batches are.
        dtype: in which the teacher would have answered.
    """

    def __init__(
        self, loader: TrainLoader, layout: Layout, logits: np.ndarray, *, device: torch.device, dtype: torch.dtype
    ) -> None:
        self._loader, self._layout, self._logits = loader, layout, logits
        self._device, self._dtype = device, dtype
        self.steps_per_epoch = loader.steps_per_epoch

    def epoch(self, epoch: int, start_step: int = 0) -> Iterator[Batch]:
        """The batches of an epoch from `start_step` on."""
        for step, batch in enumerate(self._loader.epoch(epoch, start_step), start_step):
            rows = torch.from_numpy(np.array(self._logits[self._layout.of_batch(batch, epoch, step)]))
            if self._device.type == "cuda":
                rows = rows.pin_memory()
            yield replace(batch, taught=rows.to(self._device, non_blocking=True).to(self._dtype))


@dataclass(frozen=True)
class Lessons:
    """What a run asks its teacher, and how.

    Attributes:
        loader: of the run's batches.
        data: whose images they show.
        loss: holds the teacher.
        numerics: in which it is asked.
        settings: of the trainer.
        seed: of the run.
    """

    loader: TrainLoader
    data: Dataset
    loss: Distillation
    numerics: Numerics
    settings: TrainerSettings
    seed: int

    def answers(self, images: Images) -> Logits:
        """What the teacher says of this process's images of a batch: asked as in a training step, pass by pass."""
        n, passes = len(images), self.settings.accumulation
        pieces = [images[n * i // passes : n * (i + 1) // passes] for i in range(passes)]
        with self.numerics.casting():
            return torch.cat([self.loss.taught(self.numerics.images(x)) for x in pieces if len(x)])

    @property
    def stored_dtype(self) -> torch.dtype:
        """float32, which holds a bfloat16 exactly; float64 in runs of that precision."""
        return self.numerics.dtype


class StoredLogits:
    """The file of a run's teacher.

    Args:
        path: of a .npy file, which is computed where it is not there.
        data: the settings of the training data, which the file belongs to.
    """

    def __init__(self, path: Path, data: Mapping[str, Any]) -> None:
        self.path, self._data = path, data

    def streamed(self, lessons: Lessons, stop: StopRequest) -> TaughtLoader:
        """The run's batches with the logits of the file, which is computed first where it is not there.

        All processes call it alike.

        Args:
            lessons: of the run.
            stop: whether the run was asked to stop meanwhile.

        Raises:
            SettingError: the file belongs to something else, or cannot be written or read.
            Interrupted: a signal came; nothing of the file stays.
        """
        device = lessons.numerics.device
        layout = layout_of(lessons.loader, lessons.data, lessons.settings, seed=lessons.seed, device=device)
        if not distributed.on_main(self.path.is_file):
            self._compute(lessons, layout, stop)
        description = _agreed(lambda: self._confirmed(lessons, layout))
        rows = open_logits(self.path, description)
        console.print(f"logits    streamed from {self.path} ({layout.word}); the teacher is not asked for them")
        answered = getattr(torch, description["answered"])
        return TaughtLoader(lessons.loader, layout, rows, device=device, dtype=answered)

    def _confirmed(self, lessons: Lessons, layout: Layout) -> dict[str, Any]:
        description = described(self.path)
        check_belonging(self.path, description, self._facts(lessons, layout))
        return description

    def _facts(self, lessons: Lessons, layout: Layout) -> dict[str, Any]:
        """What a file must belong to in order to be used."""
        assert lessons.loss.teacher is not None
        settings = {
            f"data.{key}": value
            for key, value in flat(self._data).items()
            if not is_circumstance(f"data.{key}") and not key.startswith(("_target_", "threat_"))
        }
        return {
            "layout": layout.word,
            "teacher": of_network(lessons.loss.teacher.model),
            "data": lessons.data.name,
            **settings,
            "images": of_images(lessons.data),
            "precision": lessons.numerics.word,
            "dtype": _word(lessons.stored_dtype),
            "shape": [layout.rows, lessons.data.num_classes],
            **layout.facts(),
        }

    def _compute(self, lessons: Lessons, layout: Layout, stop: StopRequest) -> None:
        """Asks the teacher for all rows; the processes share the work, and the main one writes."""
        shape = (layout.rows, lessons.data.num_classes or 0)
        dtype = np.dtype(_word(lessons.stored_dtype))
        console.print(
            f"logits    asking the teacher for {shape[0]:,} × {shape[1]} ({layout.word}), "
            f"{amount(size(shape, dtype))}, into {self.path}"
        )
        writers: list[LogitWriter] = []  # one on the main process
        _agreed(lambda: writers.append(LogitWriter(self.path, shape, dtype)))
        writer = writers[0] if writers else None
        with stop.listening(), lessons.numerics.products(), writer or nullcontext():
            answered = _fill(writer, lessons, layout, stop)
            if writer is not None and lessons.loss.teacher is not None:
                facts = {**versions(), **self._facts(lessons, layout)}
                writer.finish({**facts, "answered": answered, "teacher_name": lessons.loss.teacher.name})
        distributed.barrier()


def _fill(writer: LogitWriter | None, lessons: Lessons, layout: Layout, stop: StopRequest) -> str:
    """Writes all rows; returns the dtype of the teacher's answers."""
    done, told, answered = 0, 0, ""
    for count, stretch in enumerate(layout.stretches(), 1):
        whole = torch.zeros(
            stretch.rows, lessons.data.num_classes or 0, dtype=lessons.stored_dtype, device=lessons.numerics.device
        )
        if len(stretch.images):
            answers = lessons.answers(stretch.images)
            answered = answered or _word(answers.dtype)
            whole[stretch.own] = answers.to(whole.dtype)
        # Gathered and written by one process: several that write into one file would need a disk that takes it.
        distributed.all_reduce_sum(whole)
        if writer is not None:
            writer.append(whole.cpu().numpy())
        done += stretch.rows
        if done * REPORTS // layout.rows > told:
            told = done * REPORTS // layout.rows
            console.print(f"          {done:,} of {layout.rows:,}")
        if stop.must_stop(count):
            raise Interrupted(stop.number, left="nothing of teacher.logits stays, and the same command begins it anew")
    return answered


def check_stored_logits(file: str | None, data: Dataset, loss: Loss, settings: TrainerSettings) -> None:
    """Confirms that the teacher's logits can be known beforehand.

    Args:
        file: `teacher.logits`.
        data: of the run.
        loss: of the run.
        settings: of the trainer.

    Raises:
        SettingError: they cannot.
    """
    if file is None:
        return
    given = f"{SETTING}={file}"
    if not loss.needs_teacher:
        raise SettingError(
            f"{given} with loss {type(loss).__name__}: expected a loss that holds a teacher; choose loss=kd (say), or "
            f"leave {SETTING} out"
        )
    if Path(file).suffix != ".npy":
        raise SettingError(f"{SETTING}: expected the path of a .npy file, got {file}; give it that ending")
    if loss.views > 1:
        raise SettingError(
            f"{given} with loss {type(loss).__name__} over {loss.views} views: expected one, since a file holds one "
            "row for each image; choose loss.second_view_weight=null"
        )
    if data.shows_stored_images or settings.replay_epochs is not None:
        return
    keys = ("augment", "mix", "second_view")
    moving = [f"data.{key}={getattr(data, key)}" for key in keys if getattr(data, key, "none") != "none"]
    off = "data.augment=none data.mix=none" if data.mix != "none" else "data.augment=none"
    raise SettingError(
        f"{given} with {' '.join(moving) or f'data {type(data).__name__}'} and trainer.replay_epochs=null: expected "
        "images that are known beforehand, got new ones in every epoch; set trainer.replay_epochs=10 (say)"
        + (f", or {off}" if moving else "")
    )


def stored_logits(file: str | None, data: Mapping[str, Any]) -> StoredLogits | None:
    """The file that `teacher.logits` names, if any.

    Args:
        file: the setting.
        data: the settings of the training data.
    """
    return None if file is None else StoredLogits(Path(file).expanduser(), data)


def _agreed(compute: Callable[[], T]) -> T:
    """What the main process computes, on every process; all fail alike where it is refused."""

    def attempt() -> tuple[T | None, str]:
        try:
            return compute(), ""
        except SettingError as error:
            return None, str(error)

    value, refusal = distributed.on_main(attempt)
    if refusal:
        raise SettingError(refusal)
    return cast(T, value)


def _word(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
