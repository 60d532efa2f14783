"""Robust distillation in training: how often the teacher is asked, and that training leaves no trace in it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from advtrain.engine import AWP, NoPerturbation
from advtrain.losses import ARD, IAD, RSLAD, AdaAD, Loss, RobustDistillation
from tests.engine.toy import network, trainer, weights_of, with_teacher

STEPS = 2  # of the attack

# How often the teacher sees each image in a step: x, x' in each step of the attack, x' for the loss.
ASKED: dict[str, tuple[Callable[[], Loss], int]] = {
    "ard": (lambda: ARD(), 1),
    "rslad": (lambda: RSLAD(), 1),
    "rslad_ikl": (lambda: RSLAD(divergence="ikl", num_classes=4, inner="teacher_ikl"), 1),
    "rslad_adaptive": (lambda: RSLAD(inner="adaptive_kl"), 1 + STEPS),
    "adaad": (lambda: AdaAD(), 1 + STEPS + 1),
    "adaad_ikl": (lambda: AdaAD(divergence="ikl", num_classes=4, inner="adaptive_ikl"), 1 + STEPS + 1),
    "iad": (lambda: IAD(warmup_epochs=0), 1 + 1),
    "iad_warming_up": (lambda: IAD(warmup_epochs=1), 1),
}


class Counting(nn.Module):
    """Counts the images that `model` sees."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model, self.images = model, 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        assert not self.model.training
        self.images += len(x)
        return self.model(x)


def counted(loss: Loss) -> tuple[RobustDistillation, Counting]:
    loss = with_teacher(loss)
    assert isinstance(loss, RobustDistillation) and loss.teacher is not None
    loss.teacher.model = counting = Counting(loss.teacher.model)
    return loss, counting


@pytest.mark.parametrize("name", ASKED)
@pytest.mark.parametrize("how", ({}, {"weight_perturbation": AWP}, {"accumulation": 3}), ids=("plain", "awp", "pieces"))
def test_how_often_the_teacher_is_asked(name: str, how: dict[str, Any], tmp_path: Path) -> None:
    make, times = ASKED[name]
    loss, counting = counted(make())
    made = {key: value() if callable(value) else value for key, value in how.items()}
    run = trainer(tmp_path, network(norm=True), loss=loss, **made)
    counting.images = 0
    perturbation = run.parts.weight_perturbation if made.get("weight_perturbation") else NoPerturbation()
    loss.start_epoch(1)
    run.step(next(iter(run.train_loader.epoch(1))), run.parts.attack, perturbation, 1, 0)
    assert counting.images == times * run.settings.images_per_step


@pytest.mark.parametrize("name", ("rslad_ikl", "adaad", "adaad_ikl", "iad"))
def test_training_leaves_no_trace_in_the_teacher(name: str, tmp_path: Path) -> None:
    loss = with_teacher(ASKED[name][0]())
    assert loss.teacher is not None
    teacher = loss.teacher.model
    before = [value.double() for value in weights_of(teacher)]
    run = trainer(tmp_path, network(norm=True), loss=loss, weight_perturbation=AWP(), attack_batchnorm="train")
    start = weights_of(run.model)
    run.fit()
    assert not all(torch.equal(a, b) for a, b in zip(start, weights_of(run.model), strict=True))
    assert all(torch.equal(a.double(), b) for a, b in zip(weights_of(teacher), before, strict=True))
    assert all(p.grad is None and not p.requires_grad for p in teacher.parameters()) and not teacher.training
    assert not any("teacher" in key for key in (*loss.state_dict(), *run.model.state_dict()))


@pytest.mark.parametrize("alpha", (1.0, 0.5))
def test_a_natural_pass_without_a_gradient_still_moves_the_statistics(alpha: float, tmp_path: Path) -> None:
    run = trainer(tmp_path, network(norm=True), loss=with_teacher(ARD(alpha=alpha)))
    run.step(next(iter(run.train_loader.epoch(1))), run.parts.attack, NoPerturbation(), 1, 0)
    assert run.model[1].num_batches_tracked == 2
