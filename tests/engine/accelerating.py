"""Runs with and without acceleration, to be compared."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from advtrain.engine import Trainer
from advtrain.engine.acceleration import Acceleration
from advtrain.engine.step import TrainingStep
from tests.engine.toy import trainer

MODEL, STEP = Acceleration("model"), Acceleration("step")
EPS = {"linf": 0.05, "l2": 0.5, "l1": 2.0}


def chosen(cases: Iterable[tuple[str, Any]], quick: set[tuple[str, Any]]) -> list[Any]:
    """All `cases`; those that are not `quick` run with -m slow only."""
    return [pytest.param(*case, marks=() if case in quick else pytest.mark.slow) for case in cases]


def accelerated(run: Trainer, acceleration: Acceleration) -> Trainer:
    """`run` with its passes run as `acceleration` says."""
    run.step = TrainingStep(
        run.model,
        run.loss,
        run.optimizer,
        numerics=run.numerics,
        batch_size=run.settings.images_per_step,
        accumulation=run.settings.accumulation,
        attack_batchnorm=run.settings.attack_batchnorm,
        clip_norm=run.settings.clip_norm,
        seed=run.seed,
        acceleration=acceleration,
    )
    return run


def trained(directory: Path, acceleration: Acceleration, **changes: Any) -> tuple[list[float], list[Tensor]]:
    """The loss of each step, and the model and its average after the last."""
    run = accelerated(trainer(directory, **changes), acceleration)
    run.fit()
    records = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    state = [*run.model.state_dict().values(), *run.averaged.state_dict().values()]
    return [record["loss"] for record in records if "loss" in record], state


def assert_same_training(tmp_path: Path, make: Any, accelerations: tuple[Acceleration, ...] = (MODEL, STEP)) -> None:
    """Trains what `make` gives for `trainer` without and with acceleration."""
    curve, state = trained(tmp_path / "off", Acceleration(), **make())
    assert len(set(curve)) == len(curve) > 3
    for acceleration in accelerations:
        other_curve, other_state = trained(tmp_path / str(acceleration), acceleration, **make())
        assert other_curve == pytest.approx(curve, rel=1e-10)
        for a, b in zip(other_state, state, strict=True):
            assert a.dtype == b.dtype
            torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-10)
