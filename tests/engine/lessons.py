"""A toy teacher and runs that distil from it, with and without a file of its logits."""

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from advtrain.config import ValidationSettings
from advtrain.engine import Trainer
from advtrain.engine.stored_logits import StoredLogits
from advtrain.losses import IKLKD, KD, Distillation, Teacher
from tests.engine.toy import trainer, weights_of

LOSSES = {
    "kd": lambda: KD(),
    "ikl_kd": lambda: IKLKD(num_classes=4, warmup_epochs=3),  # keeps a class prior of what the teacher says
}


class Counted(Teacher):
    """A teacher that notes how many images it is asked about each time."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model, name="toy")
        self.asked: list[int] = []

    def __call__(self, x: Tensor) -> Tensor:
        self.asked.append(len(x))
        return super().__call__(x)


def teacher(seed: int = 11) -> Counted:
    """With BatchNorm, whose statistics are not those of a new network."""
    torch.manual_seed(seed)
    norm = nn.BatchNorm2d(8)
    torch.nn.init.uniform_(norm.running_mean)
    return Counted(nn.Sequential(nn.Conv2d(3, 8, 3), norm, nn.ReLU(), nn.Flatten(), nn.Linear(8 * 4 * 4, 4)))


def lesson(
    directory: Path,
    file: Path | None = None,
    *,
    loss: Distillation | None = None,
    of: Teacher | None = None,
    data_settings: dict[str, Any] | None = None,
    **changes: Any,
) -> Trainer:
    """A run of six epochs over a cycle of two; `file` holds the teacher's logits."""
    loss = (KD() if loss is None else loss).hold(teacher() if of is None else of)
    settings: dict[str, Any] = {"epochs": 6, "replay_epochs": 2, "attack": None, "save_every": 6}
    settings["validation"] = ValidationSettings(every=6, steps=1, restarts=1, batch_size=8)
    run = trainer(directory, loss=loss, **{**settings, **changes})
    run.stored = None if file is None else StoredLogits(file, data_settings or {})
    return run


def log(directory: Path) -> list[dict[str, float]]:
    """What a run logged, without its speed."""
    records = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in record.items() if k not in ("images_per_second", "time")} for record in records]


def equal(one: Trainer, other: Trainer) -> bool:
    """Whether weights, the loss's state and the log are the same bit for bit."""
    tensors = [(*weights_of(run.model), *weights_of(run.loss)) for run in (one, other)]
    return log(one.directory) == log(other.directory) and all(map(torch.equal, *tensors))
