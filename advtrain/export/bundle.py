"""Writes the bundle: weights, texts and proof, in one folder that appears complete or not at all."""

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from advtrain import checks
from advtrain.export import documents, verify_script
from advtrain.export.architecture import describe
from advtrain.export.contents import (
    Contents,
    Evaluated,
    Trained,
    check_consistent,
    read_arrays,
    read_scores,
    strongest,
)
from advtrain.export.leaderboard import THREATS, leaderboard_dataset, leaderboard_eps
from advtrain.export.licence import licence
from advtrain.export.metadata import ExportMetadata, model_id
from advtrain.export.model_card import model_card
from advtrain.export.recipe import recipe_file
from advtrain.export.submission import not_a_submission, submission
from advtrain.export.weights import export_state_dict, save_weights
from advtrain.types import SettingError

SUMS = "SHA256SUMS"


@dataclass(frozen=True)
class Bundle:
    """A written bundle.

    Attributes:
        directory: the folder.
        model_id: key of the zoo entry and stem of the weights.
        target: leaderboard, or archive for one without the papers of a submission.
        weights, model_info: files in it.
        to_fill: what the author has to add, a line each.
        obstacles: why the leaderboard would not take it as it is, a sentence each.
    """

    directory: Path
    model_id: str
    target: str
    weights: Path
    model_info: Path
    to_fill: tuple[str, ...]
    obstacles: tuple[str, ...]


def export_bundle(trained: Trained, evaluated: Evaluated, metadata: ExportMetadata, directory: Path) -> Bundle:
    """Writes `directory` from an evaluated model; an earlier bundle there is replaced.

    Args:
        trained: the model, and how others build and train it.
        evaluated: the record of its evaluation, and the adversarial images behind it.
        metadata: what the author knows, and whether the bundle has to be a submission.
        directory: the bundle's folder.

    Raises:
        SettingError: the parts do not belong together, the model cannot be exported, or it has to be a submission and
            the leaderboard would refuse it; nothing is written.
    """
    contents = describe_contents(trained, evaluated, metadata)
    arrays = read_arrays(evaluated.arrays)
    check_consistent(arrays, contents.robust, evaluated.record, evaluated.eps)
    if metadata.target == "leaderboard" and contents.obstacles:
        raise SettingError(
            "export.target=leaderboard: expected an evaluation that the RobustBench leaderboard takes, got one that it "
            f"refuses: {' '.join(contents.obstacles)} Change that, or choose export.target=archive"
        )
    board = leaderboard_dataset(contents.dataset, contents.norm)
    state = export_state_dict(trained.model, board if contents.architecture.loads_in_robustbench else None)
    spec = _specification(contents, trained)
    _write_atomically(directory, lambda folder: _write(folder, contents, state, arrays, spec))
    return Bundle(
        directory,
        contents.model_id,
        spec["target"],
        directory / contents.weights_path,
        directory / contents.model_info_path,
        tuple(documents.to_fill(contents)),
        tuple(contents.obstacles),
    )


def describe_contents(trained: Trained, evaluated: Evaluated, metadata: ExportMetadata) -> Contents:
    """Everything that the bundle's texts speak about.

    Raises:
        SettingError: the record has no attack, or nobody else could build the model.
    """
    record = evaluated.record
    norm = checks.choice("threat.norm", record["threat"]["norm"], tuple(THREATS))
    board = leaderboard_dataset(trained.dataset, norm)
    architecture = describe(trained.target, trained.arguments, trained.model, board)
    scores = read_scores(record)
    # What a later export of the same bundle needs to know; the statement is about this evaluation alone.
    stored = asdict(replace(metadata, target="auto", masking_statement=None))
    return Contents(
        model_id=model_id(metadata, architecture.name),
        dataset=trained.dataset,
        eps=leaderboard_eps(trained.dataset, THREATS[norm], evaluated.eps),
        norm=norm,
        architecture=architecture,
        metadata=metadata,
        clean=scores["clean"],
        robust=strongest(scores),
        scores=scores,
        record=record,
        recipe={**trained.recipe, "export": stored} if trained.recipe else {},
        training=trained.training,
    )


def _specification(contents: Contents, trained: Trained) -> dict[str, Any]:
    """What verify.py needs to know beside the files."""
    architecture, record = contents.architecture, contents.record
    hardware = record["hardware"]
    carried = architecture.carries_source
    return {
        "format": verify_script.FORMAT,
        "target": "leaderboard" if contents.submits else "archive",
        "model_id": contents.model_id,
        "dataset": contents.dataset,
        "threat": contents.threat,
        "norm": contents.norm,
        "eps": contents.eps,
        "weights": contents.weights_path,
        "safetensors": contents.safetensors_path,
        "model_info": contents.model_info_path,
        "network": contents.network_file,
        "build": architecture.build if carried else "build",
        "arguments": dict(architecture.arguments) if carried else {},
        "needs": architecture.needs,
        "loads_in_robustbench": architecture.loads_in_robustbench,
        "trained_as": {"_target_": trained.target, **trained.arguments},
        "clean": {"correct": contents.clean.correct, "n_examples": contents.clean.n_examples},
        "robust": {
            "attack": contents.robust.attack,
            "label": contents.robust.label,
            "correct": contents.robust.correct,
            "n_examples": contents.robust.n_examples,
        },
        "threads": hardware.get("threads") or torch.get_num_threads(),
        "channels_last": _is_channels_last(trained.model),
        "environment": {
            "torch": record["versions"]["torch"],
            "cpu": hardware.get("cpu"),
            "gpu": hardware.get("gpu"),
        },
    }


def _is_channels_last(model: nn.Module) -> bool:
    kernels = [p for p in model.parameters() if p.ndim == 4 and not p.is_contiguous()]
    return any(kernel.is_contiguous(memory_format=torch.channels_last) for kernel in kernels)


def _write(
    folder: Path,
    contents: Contents,
    state: Mapping[str, Tensor],
    arrays: Mapping[str, Any],
    spec: Mapping[str, Any],
) -> None:
    weights, info = folder / contents.weights_path, folder / contents.model_info_path
    weights.parent.mkdir(parents=True)
    info.parent.mkdir(parents=True)
    save_weights(state, weights, folder / contents.safetensors_path)
    np.savez_compressed(folder / "verification.npz", **arrays)
    texts = {
        contents.model_info_path: _json(documents.model_info(contents)),
        "verification.json": _json(spec),
        "README.md": model_card(contents),
        "LICENSE": licence(contents),
        "verify.py": Path(verify_script.__file__).read_text(encoding="utf-8"),
        **_papers(contents),
    }
    if contents.recipe:
        texts["recipe.yaml"] = recipe_file(contents.recipe, contents.training)
    for name, text in texts.items():
        (folder / name).write_text(text, encoding="utf-8")
    write_sums(folder)


def _papers(contents: Contents) -> dict[str, str]:
    """The files that make a submission, or say that it is none, and what builds the network."""
    files = {"architecture.py": contents.architecture.source} if contents.architecture.carries_source else {}
    if contents.submits:
        return files | {"submission.md": submission(contents), "zoo_entry.py": documents.zoo_entry(contents)}
    if not files:
        files["build.py"] = documents.build_file(contents)
    return files | {"NOT_A_SUBMISSION.md": not_a_submission(contents)}


def write_sums(folder: Path) -> None:
    """SHA256SUMS of all files in `folder`, as `sha256sum -c` reads it."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != SUMS)
    lines = [
        f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.relative_to(folder).as_posix()}" for path in files
    ]
    (folder / SUMS).write_text("\n".join(lines) + "\n", encoding="utf-8")


def _write_atomically(directory: Path, write: Callable[[Path], None]) -> None:
    """Fills a folder beside `directory` and puts it in its place."""
    if directory.exists() and any(directory.iterdir()) and not (directory / SUMS).is_file():
        raise SettingError(
            f"expected a new folder or an earlier bundle, got {directory} with other files; choose another"
        )
    directory.parent.mkdir(parents=True, exist_ok=True)
    partial, old = (directory.with_name(f".{directory.name}.{os.getpid()}.{word}") for word in ("partial", "old"))
    try:
        partial.mkdir()
        write(partial)
        if directory.exists():
            directory.rename(old)
        partial.rename(directory)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)


def _json(content: Mapping[str, Any]) -> str:
    return json.dumps(content, indent=2, ensure_ascii=False) + "\n"
