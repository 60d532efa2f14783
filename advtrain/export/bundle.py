"""Writes the bundle: weights, texts and proof, in one folder that appears complete or not at all."""

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from advtrain import checks
from advtrain.export import documents, verify_script
from advtrain.export.architecture import describe
from advtrain.export.contents import (
    THREATS,
    Contents,
    check_consistent,
    leaderboard_dataset,
    read_arrays,
    read_scores,
)
from advtrain.export.metadata import ExportMetadata, model_id
from advtrain.export.model_card import model_card
from advtrain.export.submission import submission
from advtrain.export.weights import export_state_dict
from advtrain.types import SettingError

SUMS = "SHA256SUMS"


@dataclass(frozen=True)
class Bundle:
    """A written bundle.

    Attributes:
        directory: the folder.
        model_id: key of the zoo entry and stem of the weights.
        weights, model_info: files in it.
        to_fill: what the author has to add, a line each.
        obstacles: why the leaderboard would not take it as it is, a sentence each.
    """

    directory: Path
    model_id: str
    weights: Path
    model_info: Path
    to_fill: tuple[str, ...]
    obstacles: tuple[str, ...]


def export_bundle(
    model: nn.Module,
    *,
    model_target: str,
    model_arguments: Mapping[str, Any],
    dataset: str,
    eps_text: str,
    norm: str,
    record: Mapping[str, Any],
    arrays_path: Path,
    metadata: ExportMetadata,
    directory: Path,
    recipe: Mapping[str, Any] | None = None,
) -> Bundle:
    """Writes `directory` from an evaluated model; an earlier bundle there is replaced.

    Args:
        model: what was evaluated, bare or wrapped in DistributedDataParallel or torch.compile.
        model_target: dotted path of its class, e.g. advtrain.models.WideResNet.
        model_arguments: keyword arguments of that.
        dataset: cifar10, cifar100, imagenet, or another name, which is then not on the leaderboard.
        eps_text: the radius as the field writes it, e.g. "8/255".
        norm: linf, l2 or l1.
        record: the content of evaluation.json.
        arrays_path: adversarial.npz of the same evaluation.
        metadata: what the author knows.
        directory: the bundle's folder.
        recipe: how the model was trained, for the model card.

    Raises:
        SettingError: the parts do not belong together, or the model cannot be exported; nothing is written.
    """
    checks.choice("norm", norm, tuple(THREATS))
    board = leaderboard_dataset(dataset, norm)
    architecture = describe(model_target, model_arguments, model, board)
    state = export_state_dict(model, board if architecture.loads_in_robustbench else None)
    scores, arrays = read_scores(record), read_arrays(arrays_path)
    robust = scores["autoattack"] if "autoattack" in scores else scores["pgd"]
    check_consistent(arrays, robust, record, eps_text)
    contents = Contents(
        model_id=model_id(metadata, architecture.name),
        dataset=dataset,
        threat=THREATS[norm],
        eps=eps_text,
        norm=norm,
        architecture=architecture,
        metadata=metadata,
        clean=scores["clean"],
        robust=robust,
        scores=scores,
        record=record,
        recipe=recipe or {},
    )
    trained_as = {"_target_": model_target, **model_arguments}
    spec = _specification(contents, model, trained_as)
    _write_atomically(directory, lambda folder: _write(folder, contents, state, arrays, spec))
    return Bundle(
        directory,
        contents.model_id,
        directory / contents.weights_path,
        directory / contents.model_info_path,
        tuple(documents.to_fill(contents)),
        tuple(contents.obstacles),
    )


def _specification(contents: Contents, model: nn.Module, trained_as: Mapping[str, Any]) -> dict[str, Any]:
    """What verify.py needs to know beside the files."""
    architecture, record = contents.architecture, contents.record
    hardware = record["hardware"]
    return {
        "format": verify_script.FORMAT,
        "model_id": contents.model_id,
        "dataset": contents.dataset,
        "threat": contents.threat,
        "norm": contents.norm,
        "eps": contents.eps,
        "weights": contents.weights_path,
        "model_info": contents.model_info_path,
        "build": architecture.build,
        "arguments": dict(architecture.arguments),
        "loads_in_robustbench": architecture.loads_in_robustbench,
        "trained_as": dict(trained_as),
        "clean": {"correct": contents.clean.correct, "n_examples": contents.clean.n_examples},
        "robust": {
            "attack": contents.robust.attack,
            "correct": contents.robust.correct,
            "n_examples": contents.robust.n_examples,
        },
        "threads": hardware.get("threads") or torch.get_num_threads(),
        "channels_last": _is_channels_last(model),
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
    torch.save({"state_dict": dict(state)}, weights)
    np.savez_compressed(folder / "verification.npz", **arrays)
    texts = {
        info: _json(documents.model_info(contents)),
        folder / "verification.json": _json(spec),
        folder / "architecture.py": contents.architecture.source,
        folder / "zoo_entry.py": documents.zoo_entry(contents),
        folder / "submission.md": submission(contents),
        folder / "README.md": model_card(contents),
        folder / "verify.py": Path(verify_script.__file__).read_text(encoding="utf-8"),
    }
    for path, text in texts.items():
        path.write_text(text, encoding="utf-8")
    write_sums(folder)


def write_sums(folder: Path) -> None:
    """SHA256SUMS of all files in `folder`, as `sha256sum -c` reads it."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != SUMS)
    lines = [
        f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.relative_to(folder).as_posix()}" for path in files
    ]
    (folder / SUMS).write_text("\n".join(lines) + "\n", encoding="utf-8")


def _write_atomically(directory: Path, write: Any) -> None:
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
