"""runs/<name>/execution.json: how a run is executed, and why so."""

import json
from pathlib import Path
from typing import Any

from advtrain import distributed
from advtrain.config import TrainerSettings
from advtrain.engine.checkpoints import write_text
from advtrain.types import Attack

RECORD = "execution.json"


def record_execution(directory: Path, **facts: Any) -> None:
    """Adds `facts` to the record of a run directory, in place of older ones of the same names; on the main process."""
    if distributed.is_main():
        record = recorded_execution(directory) | facts
        write_text(directory / RECORD, json.dumps(record, indent=2, ensure_ascii=False) + "\n")


def recorded_execution(directory: Path) -> dict[str, Any]:
    """What is recorded so far; nothing where there is no record or it cannot be read."""
    try:
        record = json.loads((directory / RECORD).read_text())
    except (OSError, ValueError):
        return {}
    return record if isinstance(record, dict) else {}


def recorded_teacher(directory: Path) -> dict[str, Any]:
    """The entry "teacher" of a run that learns from one: its source, its fingerprint and what it knew; else nothing."""
    return {key: value for key, value in recorded_execution(directory).items() if key == "teacher"}


def changes_of_mathematics(
    settings: TrainerSettings, attack: Attack | None, *, found_batch: bool = False
) -> dict[str, Any]:
    """Which choices made for speed or memory change what is computed, and not only its rounding.

    Args:
        settings: of the trainer.
        attack: of the training; None where it runs none.
        found_batch: whether the batch is the largest that fits, and not the recipe's.
    """
    found: dict[str, Any] = {}
    if attack is not None and attack.single_step:
        found["attack"] = attack.describe()  # FGSM-RS, N-FGSM, free training: one gradient in place of several
    if attack is not None and settings.attack_batchnorm != "eval":
        found["trainer.attack_batchnorm"] = settings.attack_batchnorm
    if settings.replay_epochs is not None:
        found["trainer.replay_epochs"] = settings.replay_epochs
    if settings.sync_batchnorm:
        found["trainer.sync_batchnorm"] = True
    if found_batch:
        found["trainer.batch_size"] = settings.batch_size
    return found
