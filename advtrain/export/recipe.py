"""How the model was trained, in a form that means the same on another machine."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

GROUPS = ("data", "model", "attack", "loss", "optimizer", "schedule", "weight_perturbation", "averaging")


def portable(setting: Any) -> Any:
    """The same settings without the folders of one machine: of an absolute path, its last part."""
    if isinstance(setting, Mapping):
        return {name: portable(value) for name, value in setting.items()}
    if isinstance(setting, list | tuple):
        return [portable(value) for value in setting]
    return Path(setting).name if isinstance(setting, str) and Path(setting).is_absolute() else setting


def portable_command(command: str) -> str:
    """A command without the folders of one machine."""
    command = re.sub(
        r"(teacher\.(?:source|weights|model_dir)=)['\"]?/\S*?([^/\s'\"]+)/?['\"]?(?=\s|$)", r"\1\2", command
    )
    return re.sub(r"(data\.root|data_root|run_root)=\S+", r"\1=/datasets", command)


def recipe_file(recipe: Mapping[str, Any], training: Mapping[str, Any]) -> str:
    """recipe.yaml: the resolved configuration, and under `training` what it took."""
    return yaml.safe_dump(portable({**recipe, "training": dict(training)}), sort_keys=False, allow_unicode=True)


def read_recipe(text: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Configuration and training facts of a recipe.yaml."""
    recipe = yaml.safe_load(text)
    return recipe, recipe.pop("training", None) or {}


def recipe_lines(recipe: Mapping[str, Any]) -> list[str]:
    """The choices of a run with their numbers, a line for each group."""
    settings = portable(recipe)
    lines = [f"{group}: {_choice(settings[group])}" for group in GROUPS if settings.get(group)]
    trainer = settings.get("trainer") or {}
    words = [
        f"{name} {trainer[name]}" for name in ("epochs", "batch_size", "precision", "clip_norm") if trainer.get(name)
    ]
    words += [f"seed {settings['seed']}"] if "seed" in settings else []
    return [*lines, *([f"trainer: {', '.join(words)}"] if words else [])]


def training_lines(training: Mapping[str, Any]) -> list[str]:
    """What the training took, as far as it is known."""
    lines = []
    if training.get("seconds"):
        hours, minutes = divmod(round(training["seconds"] / 60), 60)
        time = f"{hours} h {minutes:02} min" if hours or minutes else f"{training['seconds']:.0f} s"
        epochs = f" for {training['epochs']} epochs" if training.get("epochs") else ""
        lines.append(f"training time: {time}{epochs} ({training['seconds']:,.0f} s)")
    if training.get("pflop"):
        lines.append(f"training cost: {training['pflop']:.3g} PFLOP")
    named = {
        "command": "training command",
        "hardware": "training hardware",
        "execution": "training ran with",
        "teacher": "learnt from the teacher",
        "git_commit": "training code at commit",
        "checkpoint": "checkpoint",
    }
    for key, label in named.items():
        if training.get(key):
            value = training[key]
            words = (
                ", ".join(f"{name} {part}" for name, part in value.items() if part)
                if isinstance(value, Mapping)
                else value
            )
            lines.append(f"{label}: {words}")
    return lines


def _choice(config: Mapping[str, Any]) -> str:
    name = str(config.get("_target_")).rpartition(".")[2]
    settings = [f"{key}={value}" for key, value in config.items() if key != "_target_" and value is not None]
    return f"{name}({', '.join(settings)})"
