"""Reads the evidence of an experiment from its YAML, and lists the settings that it has to account for."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from advtrain.composition import EVIDENCE, own_settings, recipe
from advtrain.config import config_dir, typed
from advtrain.evidence import Evidence
from advtrain.types import SettingError

# What decides how a model is trained; the choices of the other groups (evaluation, logging) do not.
GROUPS = ("data", "model", "attack", "loss", "optimizer", "schedule", "weight_perturbation", "averaging")
BUDGET = ("trainer.epochs", "trainer.batch_size", "trainer.precision")


def evidence_of(experiment: str, folder: Path | None = None) -> Evidence:
    """The evidence of an experiment, as its own YAML states it; that of a recipe it builds on is not inherited.

    Args:
        experiment: its name.
        folder: of the configs; the package's own by default.

    Raises:
        SettingError: the block is missing or malformed.
    """
    content = own_settings("experiment", experiment, [folder or config_dir()])
    block = content.get(EVIDENCE)
    if not isinstance(block, Mapping):
        raise SettingError(f"experiment {experiment}: expected a block evidence:, got {block!r}; see advtrain.evidence")
    try:
        return typed(Evidence, block, EVIDENCE)
    except SettingError as error:
        raise SettingError(f"experiment {experiment}: {error}") from error


def settings_of(experiment: str, folder: Path | None = None) -> list[str]:
    """The dotted names that the evidence of an experiment has to account for.

    The choice in each group that decides how a model is trained, the budget, and whatever the experiment sets.
    """
    settings = recipe(experiment, [folder or config_dir()])[1]
    return sorted({*GROUPS, *BUDGET, *_leaves({key: settings[key] for key in settings if key != "eval"})})


def _leaves(values: Mapping[str, Any], prefix: str = "") -> list[str]:
    names = []
    for key, value in values.items():
        names += _leaves(value, f"{prefix}{key}.") if isinstance(value, Mapping) else [f"{prefix}{key}"]
    return names
