"""The training loop, read top to bottom.

    epoch:  batches → adversarial images → outer loss → optimiser step → average
            → class prior → validation of the averaged model on held-out images → checkpoint

All random draws are named by (seed, purpose, epoch, step), so a run that was stopped continues on the same path: what
a checkpoint must hold is the weights, their average, the optimiser's and the loss's state, and the counters.
"""

import time
from collections.abc import Iterable
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

from advtrain import distributed
from advtrain.config import TrainerSettings
from advtrain.data.base import Batch
from advtrain.engine import checkpoints, collapse
from advtrain.engine.acceleration.start import confirmed, decide
from advtrain.engine.acceleration.subject import Subject
from advtrain.engine.batchnorm import natural_images
from advtrain.engine.epoch_cycle import EpochCycle
from advtrain.engine.execution import changes_of_mathematics, record_execution
from advtrain.engine.free import ReplayedLoader, WarmStart, free_attack
from advtrain.engine.ingredients import Ingredients, Position, check_finite
from advtrain.engine.interrupts import Interrupted, StopRequest
from advtrain.engine.loggers import MetricsFile
from advtrain.engine.meter import Meter
from advtrain.engine.numerics import check_numerics, device_named, numerics
from advtrain.engine.progress import TrainingProgress, console
from advtrain.engine.sharding import sharding_named
from advtrain.engine.step import TrainingStep
from advtrain.engine.stored_logits import Lessons, StoredLogits
from advtrain.engine.validation import selection, validate
from advtrain.losses import Distillation
from advtrain.models import checkpoint_blocks
from advtrain.types import Attack


class Trainer:
    """Trains a model and keeps its last and best state in a run directory.

    Args:
        ingredients: what to train and how.
        settings: how training runs, whatever is trained.
        seed: of the run.
        directory: the run directory; checkpoints and metrics.jsonl are written there by the main process.
        config: the resolved configuration, for the logger.
        stored: the file of the teacher's logits; None asks the teacher at every step.
    """

    def __init__(
        self,
        ingredients: Ingredients,
        settings: TrainerSettings,
        *,
        seed: int,
        directory: Path,
        config: dict[str, Any],
        stored: StoredLogits | None = None,
    ) -> None:
        self.parts, self.settings, self.seed, self.directory = ingredients, settings, seed, directory
        self.stored = stored
        self._config = config
        self.device = device_named(settings.device)
        check_numerics(settings, self.device)
        self.numerics = numerics(settings, self.device, ingredients.data.image_shape[0])
        self.train_loader = ingredients.data.train_loader(
            batch_size=settings.images_per_step,
            seed=seed,
            rank=distributed.rank(),
            world_size=distributed.world_size(),
            device=self.device,
        )
        if settings.replay_epochs is not None:
            self.train_loader = EpochCycle(self.train_loader, settings.replay_epochs)
        self.held_out = ingredients.data.split("validation")
        self.selection = selection(
            ingredients.threat, settings.validation, ingredients.attack, ingredients.loss, ingredients.data.num_classes
        )
        self.warm_start: WarmStart | None = None
        if free := free_attack(ingredients.attack, settings.epochs):
            self.train_loader = ReplayedLoader(self.train_loader, free.replays)
            shape = (settings.images_per_step, *ingredients.data.image_shape)
            self.warm_start = WarmStart(free, shape, device=self.device, dtype=self.numerics.dtype)

        model = ingredients.model
        if settings.sync_batchnorm:
            model = distributed.synchronise_batchnorm(model, self.device)
        self.model = model.to(self.device, self.numerics.dtype).to(memory_format=self.numerics.memory_format)
        if settings.activation_checkpointing:
            checkpoint_blocks(self.model, "trainer.activation_checkpointing")
        self.loss = ingredients.loss.to(self.device)
        if self.loss.teacher is not None:
            self.loss.teacher.to(self.device, self.numerics.dtype).to(memory_format=self.numerics.memory_format)
        self.averaged = ingredients.averaging.attach(self.model)
        self.sharding = sharding_named(settings.sharding, self.device)
        self.start = decide(self._subject, settings, self.numerics, directory)  # by passes of the whole model
        self.numerics = self.start.numerics
        self.sharding.spread(self.model, self.averaged)
        self.optimizer = ingredients.optimizer.build(self.model)
        self.step = TrainingStep(
            self.model,
            self.loss,
            self.optimizer,
            numerics=self.numerics,
            batch_size=settings.images_per_step,
            accumulation=settings.accumulation,
            attack_batchnorm=settings.attack_batchnorm,
            clip_norm=settings.clip_norm,
            seed=seed,
            acceleration=self.start.acceleration,
            sharding=self.sharding,
        )
        self.start = confirmed(self.start, self._subject, settings, self.step.passes)
        self.position = Position()
        self._stop = StopRequest(self.device)

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
        if self.stored is not None:
            self.train_loader = self.stored.streamed(self._lessons(), self._stop)
        record_execution(self.directory, **self.start.facts, **self._circumstances())
        done = self._global_step()
        progress = TrainingProgress(self.settings.epochs, self.train_loader.steps_per_epoch, done)
        metrics = MetricsFile(self.directory / "metrics.jsonl", done) if distributed.is_main() else None
        if metrics is not None:
            self.parts.logger.start(self.directory, self._config)
        try:
            with self._stop.listening(), progress.shown(), self.numerics.products():
                while self.position.epoch < self.settings.epochs:
                    self._train_epoch(self.position.epoch + 1, progress, metrics)
                if self._stop.must_stop(self.position.step):  # it came after the last step: no evaluation then
                    raise Interrupted(self._stop.number)
        finally:
            if metrics is not None:
                self.parts.logger.finish()
        return self.position

    def _train_epoch(self, epoch: int, progress: TrainingProgress, metrics: MetricsFile | None) -> None:
        settings, position = self.settings, self.position
        attack, perturbation = self.attack_of(epoch), self.parts.weight_perturbation.for_epoch(epoch)
        meter = Meter(settings.images_per_step)
        self.model.train()
        self.loss.train()
        self.loss.start_epoch(epoch)
        started = time.perf_counter()

        for batch in self.train_loader.epoch(epoch, start_step=position.step):
            self._set_learning_rate()
            parts = self.step(batch, attack, perturbation, epoch, position.step)
            position.step += 1
            done = self._global_step()
            self.parts.averaging.after_step(done)
            meter.add(parts)
            progress.step(done)
            ends = position.step == self.train_loader.steps_per_epoch
            if position.step % settings.log_every == 0 or ends:
                meter.request(done)
            self._report(meter.readings(wait=ends), epoch, progress, metrics)
            if self._stop.must_stop(position.step):
                self._report(meter.readings(wait=True), epoch, progress, metrics)
                position.seconds += time.perf_counter() - started
                self._save(self.last_path)
                raise Interrupted(self._stop.number)

        self.loss.end_epoch()
        self.parts.averaging.after_epoch(epoch)
        position.epoch, position.step = epoch, 0
        is_best = self._validate(progress, metrics) if self._due(settings.validation.every) else False
        position.seconds += time.perf_counter() - started
        if is_best:
            self._save(self.best_path)
        if self._due(settings.save_every):
            self._save(self.last_path)

    def _report(
        self,
        readings: Iterable[tuple[int, dict[str, float]]],
        epoch: int,
        progress: TrainingProgress,
        metrics: MetricsFile | None,
    ) -> None:
        """Shows and logs the means that have come."""
        for step, means in readings:
            progress.numbers(means)
            self._log(metrics, step, {"epoch": epoch, "lr": self._learning_rate(step - 1), **means})
            check_finite(means["loss"], epoch, step - (epoch - 1) * self.train_loader.steps_per_epoch)

    def attack_of(self, epoch: int) -> Attack | None:
        """The attack of that epoch's steps; None where the loss trains on natural images."""
        if self.parts.attack is None or not self.loss.needs_attack:
            return None
        attack = self.parts.attack.for_epoch(epoch, self.settings.epochs)
        return attack if self.warm_start is None else self.warm_start.carrying(attack)

    def _validate(self, progress: TrainingProgress, metrics: MetricsFile | None) -> bool:
        """Validates the averaged model; returns whether it is the best so far."""
        self._prepare_average()
        position = self.position
        with self.sharding.gathered(self.averaged):
            accuracy = validate(
                self.averaged,
                self.held_out,
                self.selection,
                self.settings.validation,
                seed=self.seed,
                device=self.device,
                dtype=self.numerics.dtype,
                memory_format=self.numerics.memory_format,
            )
        # Ties go to the better clean accuracy, then to the later epoch.
        is_best = accuracy.rank >= (position.best_robust, position.best_clean)
        if is_best:
            position.best_epoch = position.epoch
            position.best_robust, position.best_clean = accuracy.rank
        progress.validation(position.epoch, accuracy.clean, accuracy.robust, is_best)
        record = accuracy.record() | {"epoch": position.epoch, "validation_examples": accuracy.n_examples}
        self._log(metrics, self._global_step(), record)
        if metrics is not None:
            found = collapse.findings(metrics.records(), self.parts.attack, self.parts.threat, self.settings.epochs)
            if found.collapse.epoch == position.epoch:  # not those before: they were told of then
                console.print(f"warning   {found.collapse}; best.pt is that of epoch {position.best_epoch}")
        return is_best

    def _subject(self) -> Subject:
        """A step of this run, on its first batch."""
        parts, epochs = self.parts, self.settings.epochs
        attack = parts.attack if parts.loss.needs_attack and self.warm_start is None else None
        return Subject(
            self.model,
            self.loss,
            attack and attack.for_epoch(epochs, epochs),
            parts.weight_perturbation.for_epoch(epochs),
            parts.optimizer,
            self._first_batch(),
            self.settings,
        )

    def _first_batch(self) -> Batch:
        """With the teacher's logits where the steps of this run will find them in a file."""
        batch = next(iter(self.train_loader.epoch(1)))
        return batch if self.stored is None else replace(batch, taught=self._lessons().answers(batch.x))

    def _lessons(self) -> Lessons:
        assert isinstance(self.loss, Distillation), "check_stored_logits asks for a loss that holds a teacher"
        data = self.parts.data
        return Lessons(self.train_loader, data, self.loss, self.numerics, self.settings, self.seed)

    def _circumstances(self) -> dict[str, Any]:
        """What else the record of the execution says."""
        settings, attack = self.settings, self.parts.attack if self.loss.needs_attack else None
        found_batch = (self._config.get("trainer") or {}).get("batch_size") == "auto"
        return {
            "batch_size": settings.images_per_step,
            "accumulation": settings.accumulation,
            "processes": distributed.world_size(),
            "deterministic": settings.deterministic,
            "teacher_logits": None if self.stored is None else str(self.stored.path),
            "changes_mathematics": changes_of_mathematics(settings, attack, found_batch=found_batch),
        }

    def _due(self, every: int) -> bool:
        return self.position.epoch % every == 0 or self.position.epoch == self.settings.epochs

    def _global_step(self) -> int:
        return self.position.epoch * self.train_loader.steps_per_epoch + self.position.step

    def _learning_rate(self, step: int) -> float:
        """Of the step that is taken after `step` others."""
        progress = step / self.train_loader.steps_per_epoch
        return self.parts.optimizer.lr * self.parts.schedule.factor(progress, self.settings.epochs)

    def _set_learning_rate(self) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = self._learning_rate(self._global_step())

    def _log(self, metrics: MetricsFile | None, step: int, record: dict[str, float]) -> None:
        if metrics is not None:
            metrics.log(step, record)
            self.parts.logger.log(step, record)

    def _prepare_average(self) -> None:
        """Whoever uses the averaged model, on whichever process, meets the same statistics of BatchNorm."""
        split = self.parts.data.split("train")
        with self.sharding.gathered(self.averaged):
            self.parts.averaging.before_use(partial(natural_images, split, seed=self.seed, numerics=self.numerics))
        distributed.share_buffers(self.averaged)

    def _save(self, path: Path) -> None:
        self._prepare_average()
        self.loss.synchronise()
        state = {
            "model": self.sharding.whole(self.model.state_dict()),
            "averaged": self.sharding.whole(self.averaged.state_dict()),
            "optimizer": self.sharding.whole(self.optimizer.state_dict()),
            "loss": self.loss.state_dict(),
            "position": asdict(self.position),
        }
        if self.warm_start is not None:
            self.warm_start.synchronise()
            state["attack"] = self.warm_start.state_dict()
        if distributed.is_main():
            checkpoints.save(path, state)
        distributed.barrier()

    def _restore(self, state: dict[str, Any]) -> None:
        self.sharding.load_model(self.model, state["model"])
        self.sharding.load_model(self.averaged, state["averaged"])
        self.sharding.load_optimizer(self.optimizer, state["optimizer"])
        self.loss.load_state_dict(state["loss"])
        if self.warm_start is not None:
            self.warm_start.load_state_dict(state["attack"])
        self.position = Position(**state["position"])
        if not distributed.is_main():  # what was gathered in mid-epoch by all processes is the main one's now
            self.loss.forget_gathered()
        where = f"epoch {self.position.epoch}, step {self.position.step}"
        console.print(f"resuming {self.directory} after {where}")
