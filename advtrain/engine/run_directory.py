"""The run directory: named by the choices, bound to one configuration, never overwritten by another."""

import os
import platform
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
import yaml

import advtrain
from advtrain import distributed
from advtrain.engine.checkpoints import write_text
from advtrain.types import SettingError

# Where things are and how they are shown: not part of what a run is, so neither its name nor a resume looks at them.
CIRCUMSTANCES = (
    "name",
    "run_root",
    "data.root",
    "data.download",
    "data.workers",
    "data.verify_manifest",
    "teacher.download",
    "teacher.model_dir",
    "teacher.trust",
    "teacher.n_examples",
    "teacher.logits",
    "logger",
    "trainer.device",
    "trainer.threads",
    "trainer.compile",
    "trainer.cuda_graph",
    "trainer.activation_checkpointing",
    "trainer.sharding",
    "trainer.log_every",
    "export",
)
# Files that are known by their content, the fingerprint in execution.json: in a run's name, but they may move.
KNOWN_BY_CONTENT = ("teacher.source", "teacher.weights")
FIRST_CHOICES = ("data", "model", "attack", "loss")


def run_name(overrides: Sequence[str], choices: Mapping[str, str], seed: int) -> str:
    """A name without a timestamp: the experiment or the first choices, what else was overridden, the seed.

    Args:
        overrides: of the command line, "key=value" each.
        choices: the config chosen in each group.
        seed: of the run.
    """
    experiment = choices.get("experiment")
    base = [experiment] if experiment and experiment != "null" else [choices[group] for group in FIRST_CHOICES]
    named = {"experiment", "seed"} if len(base) == 1 else {"experiment", "seed", *FIRST_CHOICES}
    extra = []
    for override in sorted(overrides):
        key, _, value = override.lstrip("+~").partition("=")
        if key not in named and not is_circumstance(key):
            extra.append(value if key in choices else _named(key, value))
    return "-".join(re.sub(r"[^\w.+-]+", "_", part) for part in [*base, *extra, f"seed{seed}"])


def _named(key: str, value: str) -> str:
    """An override in a run's name; of a teacher's path what tells teachers apart, not the folders of one machine."""
    path = Path(value.strip("'\""))
    if key == "teacher.source" and path.name:
        inside = path.parent.name == "checkpoints"
        return f"teacher-{path.parent.parent.name}-{path.stem}" if inside else f"teacher-{path.name}"
    if key == "teacher.weights" and path.name:
        return f"{key}-{'_'.join(path.parts[-2:])}"
    return f"{key}-{value}"


def is_circumstance(key: str) -> bool:
    return any(key == name or key.startswith(name + ".") for name in CIRCUMSTANCES)


def claim(directory: Path, config: dict[str, Any]) -> None:
    """Makes the directory this configuration's own, or confirms that it is.

    Writes config.yaml: the resolved configuration, and under `provenance` the command, versions and git commit.

    Raises:
        SettingError: the directory holds a run of another configuration.
    """
    path = directory / "config.yaml"
    if not path.exists():
        stored = {**config, "provenance": provenance()}
        write_text(path, yaml.safe_dump(stored, sort_keys=False, allow_unicode=True))
        return
    old, new = _compared(load_config(directory)), _compared(config)
    differing = [
        f"{key} (there {old.get(key)!r}, now {new.get(key)!r})"
        for key in sorted(old.keys() | new.keys())
        if old.get(key) != new.get(key) and not is_circumstance(key) and key not in KNOWN_BY_CONTENT
    ]
    if differing:
        raise SettingError(
            f"{directory}: expected the configuration of the run that is there, got other values of "
            f"{', '.join(differing)}; choose another name=… or remove that folder"
        )


def _compared(config: Mapping[str, Any]) -> dict[str, Any]:
    """Dotted keys, without a teacher's where there is none: runs from before there were teachers have no such keys."""
    values = flat(config)
    if values.get("teacher.source") is None:
        return {key: value for key, value in values.items() if not key.startswith("teacher.")}
    return values


def load_config(directory: Path) -> dict[str, Any]:
    """The stored configuration of a run, without its provenance.

    Raises:
        SettingError: there is none.
    """
    path = directory / "config.yaml"
    if not path.is_file():
        raise SettingError(f"expected a run directory with a config.yaml, got {directory}; give the path of a run")
    config = yaml.safe_load(path.read_text())
    config.pop("provenance", None)
    return config


def flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested keys as dotted ones."""
    result: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, Mapping):
            result |= flat(value, f"{prefix}{key}.")
        else:
            result[f"{prefix}{key}"] = value
    return result


def provenance() -> dict[str, Any]:
    """What else is needed to run it again: the command, the git commit and the versions."""
    return {
        "command": " ".join(["advtrain", *sys.argv[1:]]),
        "git_commit": git_commit(),
        "hardware": hardware(),
        "versions": {"python": platform.python_version(), "advtrain": advtrain.__version__}
        | {name: _version(name) for name in ("torch", "torchvision", "numpy", "hydra-core", "pyautoattack")},
    }


def hardware() -> dict[str, Any]:
    """What the training runs on."""
    return {
        "machine": platform.machine(),
        "cores": os.cpu_count(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "processes": distributed.launched_processes(),
    }


def git_commit() -> str | None:
    """The commit of the checkout that this package is in, marked when files differ from it.

    Where there is no git (a container with a copy of the files), what the environment variable ADVTRAIN_COMMIT says:
    whoever copied the files knows. None without either.
    """
    root = Path(__file__).resolve().parents[2]
    said = os.environ.get("ADVTRAIN_COMMIT", "").strip() or None
    if not (root / ".git").exists():
        return said
    try:
        described = subprocess.run(
            ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"],
            capture_output=True,
            text=True,
            timeout=20,
        )
    except (OSError, subprocess.TimeoutExpired):
        return said
    return described.stdout.strip() or said


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
