"""What a step of a run is made of: enough to take one somewhere else, or to look at its passes."""

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from advtrain.config import TrainerSettings
from advtrain.data.base import Batch
from advtrain.engine.acceleration.passes import Acceleration
from advtrain.engine.acceleration.scene import Scene
from advtrain.engine.numerics import Numerics
from advtrain.engine.optimizers import SGD, AdamW
from advtrain.engine.step import TrainingStep
from advtrain.engine.weight_perturbations import WeightPerturbation
from advtrain.losses import Loss
from advtrain.types import Attack


@dataclass(frozen=True)
class Subject:
    """The parts of a run's steps.

    Attributes:
        model: the bare model, on its device.
        loss: on the same device.
        attack: of the last epoch, when schedules have reached their whole radius; None where none makes passes.
        perturbation: of the last epoch.
        optimizer: its settings.
        batch: this process's rows of a real training batch.
        settings: of the trainer.
    """

    model: nn.Module
    loss: Loss
    attack: Attack | None
    perturbation: WeightPerturbation
    optimizer: SGD | AdamW
    batch: Batch
    settings: TrainerSettings

    def scene(self, numerics: Numerics, rows: int | None = None) -> Scene:
        """The first of the passes that a process splits its rows into, or the first `rows` of them."""
        n = len(self.batch.y) // self.settings.accumulation
        n = n if rows is None else min(n, rows)
        x = [numerics.images(view[:n]) for view in self.batch.views]
        scene = Scene.of(self.model, self.loss, self.attack, self.batch, x, self.settings.images_per_step)
        return replace(scene, x=numerics.images(scene.x), attack_batchnorm=self.settings.attack_batchnorm)

    def step(self, optimizer: torch.optim.Optimizer, numerics: Numerics, acceleration: Acceleration) -> TrainingStep:
        settings = self.settings
        return TrainingStep(
            self.model,
            self.loss,
            optimizer,
            numerics=numerics,
            batch_size=settings.images_per_step,
            accumulation=settings.accumulation,
            attack_batchnorm=settings.attack_batchnorm,
            clip_norm=settings.clip_norm,
            seed=0,
            acceleration=acceleration,
        )

    def facts(self, numerics: Numerics) -> dict[str, Any]:
        """All that the speed of a step depends on, but for the machine."""
        settings, attack, teacher = self.settings, self.attack, self.loss.teacher
        return {
            **_network(self.model),
            "images": [list(view.shape) for view in self.batch.views],
            "taught": self.batch.taught is not None,
            "loss": [_class(self.loss), self.loss.formula(), self.loss.inner_objective],
            "teacher": teacher and _network(teacher.model),
            "attack": None if attack is None else [_class(attack), attack.describe()],
            "perturbation": _class(self.perturbation),
            "optimizer": _class(self.optimizer),
            "numerics": [numerics.word, str(numerics.memory_format)],
            "batch_size": settings.images_per_step,
            "accumulation": settings.accumulation,
            "attack_batchnorm": settings.attack_batchnorm,
            "sync_batchnorm": settings.sync_batchnorm,
            "activation_checkpointing": settings.activation_checkpointing,
            "deterministic": settings.deterministic,
            "cuda_graph": settings.cuda_graph,
        }


def _network(model: nn.Module) -> dict[str, Any]:
    parameters = [[name, list(p.shape), p.requires_grad] for name, p in model.named_parameters()]
    return {"model": str(model), "parameters": parameters}


def _class(part: object) -> str:
    return f"{type(part).__module__}.{type(part).__qualname__}"
