"""The training loop, read top to bottom.

    epoch:  batches → adversarial images → outer loss → optimiser step → average
            → class prior → validation of the averaged model on held-out images → checkpoint

All random draws are named by (seed, purpose, epoch, step), so a run that was stopped continues on the same path: what
a checkpoint must hold is the weights, their average, the optimiser's and the loss's state, and the counters.
"""

import math
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from advtrain import distributed
from advtrain.attacks import PGD, PGDSchedule
from advtrain.config import ThreatSettings, TrainerSettings
from advtrain.data.base import Dataset
from advtrain.engine import checkpoints
from advtrain.engine.averaging import Averaging
from advtrain.engine.batchnorm import natural_images
from advtrain.engine.loggers import Logger, MetricsFile
from advtrain.engine.meter import Meter
from advtrain.engine.numerics import device_named, numerics
from advtrain.engine.optimizers import SGD, AdamW
from advtrain.engine.progress import TrainingProgress, console
from advtrain.engine.schedules import Schedule
from advtrain.engine.step import TrainingStep
from advtrain.engine.validation import margin_attack, validate
from advtrain.engine.weight_perturbations import WeightPerturbation
from advtrain.losses import Loss


class Diverged(RuntimeError):
    """The loss is no longer a finite number."""


class Interrupted(Exception):
    """A signal asked the run to stop, and its state is saved."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.exit_code = 128 + number


@dataclass
class Position:
    """Where training is: what a checkpoint counts.

    Attributes:
        epoch: completed epochs.
        step: completed steps of the epoch under way.
        best_epoch, best_robust, best_clean: the best validation so far, by robust accuracy.
        seconds: spent in training by all sessions of this run.
    """

    epoch: int = 0
    step: int = 0
    best_epoch: int = 0
    best_robust: float = -1.0
    best_clean: float = -1.0
    seconds: float = 0.0


@dataclass(frozen=True)
class Ingredients:
    """The independent choices that a run composes; see the config groups of the same names."""

    data: Dataset
    model: nn.Module
    attack: PGD | PGDSchedule | None
    loss: Loss
    optimizer: SGD | AdamW
    schedule: Schedule
    weight_perturbation: WeightPerturbation
    averaging: Averaging
    logger: Logger
    threat: ThreatSettings = field(default_factory=ThreatSettings)


class Trainer:
    """Trains a model and keeps its last and best state in a run directory.

    Args:
        ingredients: what to train and how.
        settings: how training runs, whatever is trained.
        seed: of the run.
        directory: the run directory; checkpoints and metrics.jsonl are written there by the main process.
        config: the resolved configuration, for the logger.
    """

    def __init__(
        self, ingredients: Ingredients, settings: TrainerSettings, *, seed: int, directory: Path, config: dict[str, Any]
    ) -> None:
        self.parts, self.settings, self.seed, self.directory = ingredients, settings, seed, directory
        self._config = config
        self.device = device_named(settings.device)
        self.numerics = numerics(settings, self.device, ingredients.data.image_shape[0])
        self.train_loader = ingredients.data.train_loader(
            batch_size=settings.batch_size,
            seed=seed,
            rank=distributed.rank(),
            world_size=distributed.world_size(),
            device=self.device,
        )
        self.held_out = ingredients.data.split("validation")

        model = ingredients.model
        if settings.sync_batchnorm:
            model = distributed.synchronise_batchnorm(model, self.device)
        self.model = model.to(self.device, self.numerics.dtype).to(memory_format=self.numerics.memory_format)
        self.loss = ingredients.loss.to(self.device)
        self.averaged = ingredients.averaging.attach(self.model)
        self.optimizer = ingredients.optimizer.build(self.model)
        self.step = TrainingStep(
            self.model,
            self.loss,
            self.optimizer,
            numerics=self.numerics,
            batch_size=settings.batch_size,
            accumulation=settings.accumulation,
            attack_batchnorm=settings.attack_batchnorm,
            clip_norm=settings.clip_norm,
            seed=seed,
        )
        self.position = Position()
        self._stop_signal = 0

    @property
    def last_path(self) -> Path:
        return self.directory / "checkpoints" / "last.pt"

    @property
    def best_path(self) -> Path:
        return self.directory / "checkpoints" / "best.pt"

    def fit(self) -> Position:
        """Trains to the last epoch, from where the run directory's last checkpoint left off.

        Raises:
            Interrupted: SIGINT or SIGTERM came; the state is saved, and the same command continues.
            Diverged: the loss became NaN or infinite.
        """
        if self.last_path.is_file():
            self._restore(checkpoints.load(self.last_path, self.device))
        if self.position.epoch >= self.settings.epochs:
            return self.position
        done = self._global_step()
        progress = TrainingProgress(self.settings.epochs, self.train_loader.steps_per_epoch, done)
        metrics = MetricsFile(self.directory / "metrics.jsonl", done) if distributed.is_main() else None
        if metrics is not None:
            self.parts.logger.start(self.directory, self._config)
        try:
            with self._listening(), progress.shown():
                while self.position.epoch < self.settings.epochs:
                    self._train_epoch(self.position.epoch + 1, progress, metrics)
        finally:
            if metrics is not None:
                self.parts.logger.finish()
        return self.position

    def _train_epoch(self, epoch: int, progress: TrainingProgress, metrics: MetricsFile | None) -> None:
        settings, position = self.settings, self.position
        attack = None
        if self.parts.attack is not None and self.loss.needs_attack:
            attack = self.parts.attack.for_epoch(epoch, settings.epochs)
        perturbation = self.parts.weight_perturbation.for_epoch(epoch)
        meter = Meter(settings.batch_size)
        self.model.train()
        self.loss.train()
        started = time.perf_counter()

        for batch in self.train_loader.epoch(epoch, start_step=position.step):
            self._set_learning_rate()
            parts = self.step(batch, attack, perturbation, epoch, position.step)
            position.step += 1
            done = self._global_step()
            self.parts.averaging.after_step(done)
            meter.add(parts)
            progress.step(done)
            if position.step % settings.log_every == 0 or position.step == self.train_loader.steps_per_epoch:
                record = meter.read()
                progress.numbers(record)
                self._log(metrics, done, {"epoch": epoch, "lr": self.optimizer.param_groups[0]["lr"], **record})
                _check_finite(record["loss"], epoch, position.step)
            if self._must_stop():
                position.seconds += time.perf_counter() - started
                self._save(self.last_path)
                raise Interrupted(self._stop_signal)

        self.loss.end_epoch()
        self.parts.averaging.after_epoch(epoch)
        position.epoch, position.step = epoch, 0
        is_best = self._validate(progress, metrics) if self._due(settings.validation.every) else False
        position.seconds += time.perf_counter() - started
        if is_best:
            self._save(self.best_path)
        if self._due(settings.save_every):
            self._save(self.last_path)

    def _validate(self, progress: TrainingProgress, metrics: MetricsFile | None) -> bool:
        """Validates the averaged model; returns whether it is the best so far."""
        self._prepare_average()
        threat, settings, position = self.parts.threat, self.settings.validation, self.position
        accuracy = validate(
            self.averaged,
            self.held_out,
            margin_attack(threat, settings),
            settings,
            seed=self.seed,
            device=self.device,
            dtype=self.numerics.dtype,
            memory_format=self.numerics.memory_format,
        )
        # Ties go to the better clean accuracy, then to the later epoch.
        is_best = (accuracy.robust, accuracy.clean) >= (position.best_robust, position.best_clean)
        if is_best:
            position.best_epoch = position.epoch
            position.best_robust, position.best_clean = accuracy.robust, accuracy.clean
        progress.validation(position.epoch, accuracy.clean, accuracy.robust, is_best)
        record = {"validation_clean": accuracy.clean, "validation_robust": accuracy.robust}
        self._log(metrics, self._global_step(), {"epoch": position.epoch, **record})
        return is_best

    def _due(self, every: int) -> bool:
        return self.position.epoch % every == 0 or self.position.epoch == self.settings.epochs

    def _global_step(self) -> int:
        return self.position.epoch * self.train_loader.steps_per_epoch + self.position.step

    def _set_learning_rate(self) -> None:
        progress = self._global_step() / self.train_loader.steps_per_epoch
        factor = self.parts.schedule.factor(progress, self.settings.epochs)
        for group in self.optimizer.param_groups:
            group["lr"] = self.parts.optimizer.lr * factor

    def _log(self, metrics: MetricsFile | None, step: int, record: dict[str, float]) -> None:
        if metrics is not None:
            metrics.log(step, record)
            self.parts.logger.log(step, record)

    def _prepare_average(self) -> None:
        """Whoever uses the averaged model, on whichever process, meets the same statistics of BatchNorm."""
        split = self.parts.data.split("train")
        self.parts.averaging.before_use(partial(natural_images, split, seed=self.seed, numerics=self.numerics))
        distributed.share_buffers(self.averaged)

    def _save(self, path: Path) -> None:
        self._prepare_average()
        self.loss.synchronise()
        if distributed.is_main():
            checkpoints.save(
                path,
                {
                    "model": self.model.state_dict(),
                    "averaged": self.averaged.state_dict(),
                    "optimizer": self.optimizer.state_dict(),
                    "loss": self.loss.state_dict(),
                    "position": asdict(self.position),
                },
            )
        distributed.barrier()

    def _restore(self, state: dict[str, Any]) -> None:
        self.model.load_state_dict(state["model"])
        self.averaged.load_state_dict(state["averaged"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.loss.load_state_dict(state["loss"])
        self.position = Position(**state["position"])
        if not distributed.is_main():  # what was gathered in mid-epoch by all processes is the main one's now
            self.loss.forget_gathered()
        where = f"epoch {self.position.epoch}, step {self.position.step}"
        console.print(f"resuming {self.directory} after {where}")

    @contextmanager
    def _listening(self) -> Iterator[None]:
        """Turns SIGINT and SIGTERM into a request to stop after the step under way."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        previous = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

        def request(number: int, frame: object) -> None:
            if self._stop_signal:  # asked twice: the person means it
                raise KeyboardInterrupt
            self._stop_signal = number

        try:
            for number in previous:
                signal.signal(number, request)
            yield
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)

    def _must_stop(self) -> bool:
        """Whether any process was asked to stop. Several processes agree only every few steps, to spare the wait."""
        if distributed.world_size() == 1:
            return bool(self._stop_signal)
        if self.position.step % 10:
            return False
        flag = torch.tensor([self._stop_signal], device=self.device)
        self._stop_signal = int(distributed.all_reduce_max(flag).item())
        return bool(self._stop_signal)


def _check_finite(loss: float, epoch: int, step: int) -> None:
    if not math.isfinite(loss):
        raise Diverged(
            f"expected a finite loss, got {loss} in epoch {epoch} by step {step}; "
            "lower optimizer.lr, set trainer.clip_norm=1, or use trainer.precision=fp32"
        )
