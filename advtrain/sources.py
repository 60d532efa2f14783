"""Finds the model that a word of the command line means, with the data and the threat model that belong to it."""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from advtrain.composition import choices, own_settings
from advtrain.config import architecture_of, build, config_dir
from advtrain.engine import checkpoints
from advtrain.engine import run_directory as directories
from advtrain.report import load
from advtrain.types import SettingError

ZOO_PREFIX = "robustbench:"
BUNDLE_FILE = "verification.json"
_ZOO_KEYS = ("dataset", "norm", "model_dir")  # what finds a model of the zoo, besides its name


@dataclass(frozen=True)
class Source:
    """A trained model and what it was made for.

    Attributes:
        name: for the results' folder.
        model: float32, eval mode.
        data: config of the dataset.
        norm, eps: threat model, eps as written.
    """

    name: str
    model: nn.Module
    data: dict[str, Any]
    norm: str
    eps: str


def find(config: dict[str, Any], device: torch.device) -> Source:
    """The source that `config["source"]` names.

    Args:
        config: of advtrain-eval.
        device: where the model goes.

    Raises:
        SettingError: the word names nothing that can be evaluated.
    """
    if config["source"] is None:
        raise SettingError(
            "model: expected a run directory, a checkpoint, a bundle or robustbench:<name>, got none; add model=…"
        )
    word = str(config["source"])
    if word.startswith(ZOO_PREFIX):
        return _zoo(word.removeprefix(ZOO_PREFIX), config, device)
    if (run := run_and_checkpoint(word, config["eval"]["checkpoint"])) is not None:
        return _run(*run, config, device)
    path = Path(word).expanduser()
    if (path / BUNDLE_FILE).is_file():
        return _bundle(path, config, device)
    raise SettingError(
        "model: expected a run directory, a checkpoint in one, an exported bundle or "
        f"{ZOO_PREFIX}<name>, got {word!r}; check the path"
    )


def run_and_checkpoint(word: str, checkpoint: str) -> tuple[Path, Path] | None:
    """The run directory and the checkpoint file that a path means; None where it is neither of the two.

    Args:
        word: the path.
        checkpoint: of a run directory: best or last. The file need not be there.
    """
    path = Path(word).expanduser()
    if (path / "config.yaml").is_file():
        return path, path / "checkpoints" / f"{checkpoint}.pt"
    if path.is_file() and (path.parent.parent / "config.yaml").is_file():
        return path.parent.parent, path
    return None


def described(config: dict[str, Any], directory: Path) -> dict[str, Any]:
    """The `source` of an evaluation.json in `directory`: enough for `find_again` to find the model.

    Args:
        config: of advtrain-eval.
        directory: where the record goes. The way from there to the model is kept besides the word that was given, so
            that both can move together.
    """
    word = str(config["source"])
    source = {"model": word, "checkpoint": config["eval"]["checkpoint"]}
    if word.startswith(ZOO_PREFIX):
        return source | {name: config[name] for name in _ZOO_KEYS}
    return source | {"model_from_here": Path(os.path.relpath(word, directory)).as_posix()}


def find_again(record: Mapping[str, Any], folder: Path, config: dict[str, Any], device: torch.device) -> Source:
    """The model that an evaluation was of.

    Args:
        record: its evaluation.json.
        folder: where that lies.
        config: of advtrain-eval; its `source`, where given, is taken instead.
        device: where the model goes.

    Raises:
        SettingError: the model is not there any more.
    """
    stored = record.get("source") or {}
    checkpoint = stored.get("checkpoint", config["eval"]["checkpoint"])
    config = {**config, "eval": {**config["eval"], "checkpoint": checkpoint}}
    if config["source"] is not None:
        return find(config, device)
    if "model" not in stored:  # the record lies in its own run
        return find({**config, "source": str(folder)}, device)
    if stored["model"].startswith(ZOO_PREFIX):
        return find({**config, "source": stored["model"]} | {k: stored[k] for k in _ZOO_KEYS if k in stored}, device)
    nearby = folder / stored.get("model_from_here", "nowhere")
    return find({**config, "source": str(nearby) if nearby.exists() else stored["model"]}, device)


def averaged_model(config: dict[str, Any], path: Path, device: torch.device, *, trusted: bool) -> nn.Module:
    """The averaged model of a checkpoint, in float32 and eval mode."""
    state = checkpoints.load(path, device)
    model = build(architecture_of(config["model"]), trusted=trusted).to(device)
    model.load_state_dict(state["averaged"])
    return model.float().eval()


def _run(directory: Path, checkpoint: Path, config: dict[str, Any], device: torch.device) -> Source:
    stored = directories.load_config(directory)
    model = averaged_model(stored, checkpoint, device, trusted=config["trust"])
    name = f"{directory.name}-{checkpoint.stem}"
    return Source(name, model, stored["data"], stored["threat"]["norm"], str(stored["threat"]["eps"]))


def _bundle(path: Path, config: dict[str, Any], device: torch.device) -> Source:
    stored = json.loads((path / BUNDLE_FILE).read_text())
    model = bundle_model(path, device, trusted=config["trust"])
    return Source(stored["model_id"], model, _data(stored["dataset"]), stored["norm"], stored["eps"])


def bundle_model(path: Path, device: torch.device, *, trusted: bool) -> nn.Module:
    """The model of an exported bundle, in float32 and eval mode."""
    stored = json.loads((path / BUNDLE_FILE).read_text())
    model = build(stored["trained_as"], trusted=trusted).to(device)
    model.load_state_dict(bundle_weights(path, stored, device))
    return model.float().eval()


def bundle_weights(path: Path, stored: Mapping[str, Any], device: torch.device | str = "cpu") -> dict[str, Any]:
    """The state dict of a bundle.

    Args:
        path: of the bundle.
        stored: its verification.json.
        device: where the tensors go.

    Raises:
        SettingError: this copy of the bundle comes without its weights.
    """
    file = bundle_weights_file(path, stored)
    return torch.load(file, map_location=device, weights_only=True)["state_dict"]


def bundle_weights_file(path: Path, stored: Mapping[str, Any]) -> Path:
    """The file of those weights; arguments and errors as for `bundle_weights`."""
    file = path / stored["weights"]
    if not file.is_file():
        raise SettingError(
            f"model: expected the weights {file}, got a bundle that comes without; put the file whose SHA-256 is in "
            "SHA256SUMS in its place, or train such a model anew as README.md says"
        )
    return file


def _zoo(name: str, config: dict[str, Any], device: torch.device) -> Source:
    from advtrain.evaluation.robustbench import load_zoo_model, zoo_norm

    dataset = config["dataset"]
    board = zoo_norm(name, dataset=dataset, norm=config["norm"])
    data, norm = _data(dataset), config["norm"] or board
    eps = config["eps"] or load(config["leaderboard"]).eps(dataset, norm)
    if eps is None:
        raise SettingError(
            f"eps: expected a radius, since RobustBench has no {dataset} board for norm={norm}, got none; add eps=…"
        )
    model = load_zoo_model(
        name, dataset=dataset, threat_norm=board, model_dir=config["model_dir"], download=config["download"]
    )
    return Source(name, model.to(device).float().eval(), data, norm, str(eps))


def _data(name: str) -> dict[str, Any]:
    """The dataset's own YAML, by its name."""
    if name not in choices("data"):
        valid = ", ".join(choices("data"))
        raise SettingError(f"dataset: expected one of {valid}, got {name!r}; evaluate the run directory instead")
    return own_settings("data", name, [config_dir()])
