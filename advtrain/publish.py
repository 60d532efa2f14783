"""The bundle of an evaluated model, written and verified: the end of a run, and `advtrain-export`."""

import json
import re
from dataclasses import asdict, fields
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml

from advtrain import checks
from advtrain.config import ThreatSettings, architecture_of, build, typed
from advtrain.engine import checkpoints
from advtrain.engine import run_directory as directories
from advtrain.engine.acceleration import Acceleration
from advtrain.engine.execution import recorded_execution, recorded_teacher
from advtrain.engine.progress import console
from advtrain.evaluation import EvaluationSettings
from advtrain.evaluation.records import EVIDENCE, RECORD
from advtrain.export import (
    Bundle,
    CannotVerify,
    Evaluated,
    ExportMetadata,
    Trained,
    Verification,
    export_bundle,
    leaderboard,
    portable_command,
    read_recipe,
    verify_bundle,
)
from advtrain.sources import BUNDLE_FILE, ZOO_PREFIX, averaged_model, bundle_weights
from advtrain.types import SettingError

OF_ONE_EXPORT = ("target", "masking_statement")  # what an earlier export says nothing about


def export_and_verify(
    config: dict[str, Any],
    metadata: ExportMetadata,
    record: dict[str, Any],
    directory: Path,
    out: Path | None = None,
    *,
    trusted: bool = True,
) -> tuple[Bundle, Verification | None] | None:
    """Writes the bundle of an evaluated run and verifies it in a fresh process; None where there is nothing to prove.

    Raises:
        SettingError: it has to be a submission, and the leaderboard would refuse it.
        VerificationError: the bundle does not hold what it says.
    """
    if not (directory / EVIDENCE).is_file():
        console.print("no bundle: the evaluation ran no attack, so there is nothing to verify it by")
        return None
    trained = trained_run(config, directory, record["source"]["checkpoint"], trusted=trusted)
    return _write(trained, str(config["threat"]["eps"]), record, directory, metadata, out)


def check_target(metadata: ExportMetadata, dataset: str, threat: ThreatSettings, settings: EvaluationSettings) -> None:
    """Confirms before the training that a run which has to end as a submission can.

    Raises:
        SettingError: the leaderboard would refuse what is planned.
    """
    if metadata.target != "leaderboard":
        return
    name = leaderboard.THREATS[threat.norm]
    attack, total = settings.autoattack, leaderboard.BOARDS.get(dataset, (0, {}))[0]
    smallest = min(n for n in (settings.n_examples, attack.n_examples, total) if n is not None)
    reasons = leaderboard.off_the_board(dataset, name, leaderboard.leaderboard_eps(dataset, name, threat.eps))
    planned = {
        "eval.autoattack.enabled=true": settings.enabled and attack.enabled,
        "eval.autoattack.version=standard": attack.version == "standard",
        "eval.autoattack.engine=exact": attack.engine != "fast",
        f"all {total:,} test images (eval.n_examples=null eval.autoattack.n_examples=null)": smallest == total,
        "eval.masking.enabled=true": settings.masking.enabled,
    }
    reasons += [f"It wants {word}." for word, holds in planned.items() if not holds]
    if reasons:
        raise SettingError(
            f"export.target=leaderboard: expected a run that the RobustBench leaderboard takes, got one it refuses: "
            f"{' '.join(reasons)} Change that, or choose export.target=auto"
        )


def export_run(config: dict[str, Any]) -> None:
    """`advtrain-export`: writes the bundle of an evaluation and verifies it, or verifies a bundle.

    Raises:
        SettingError: something cannot be used, or the leaderboard would refuse what has to be a submission.
        VerificationError: the bundle does not hold what it says.
    """
    if (config["run"] is None) == (config["verify"] is None):
        raise SettingError("expected run=FOLDER or verify=BUNDLE, got neither or both; give one of them")
    if config["verify"] is not None:
        console.print(f"verified: {verify_bundle(Path(config['verify']))}")
        return
    directory = Path(config["run"]).expanduser()
    record = _record(directory)
    if not (directory / EVIDENCE).is_file():
        raise SettingError(
            f"run: expected a folder with {EVIDENCE}, got {directory} without; evaluate with an attack enabled"
        )
    trained, eps = origin(directory, record, trusted=config["trust"])
    metadata = _remembered(typed(ExportMetadata, config["export"], "export"), trained.recipe.get("export") or {})
    out = None if config["out"] is None else Path(config["out"])
    bundle, verification = _write(trained, eps, record, directory, metadata, out)
    console.print(f"bundle    {bundle.directory} ({bundle.target})")
    if verification is not None:
        console.print(f"verified  {verification}")
    for line in bundle.to_fill:
        console.print(f"note      {line}")


def origin(directory: Path, record: dict[str, Any], *, trusted: bool) -> tuple[Trained, str]:
    """The model that an evaluation is about, and its radius as the field writes it.

    Args:
        directory: a run, or a folder that advtrain-eval wrote.
        record: its evaluation.json, whose `source` names run, checkpoint or bundle.
        trusted: whether classes from outside advtrain may be built.

    Raises:
        SettingError: the source is gone, or is not ours to export.
    """
    source = record.get("source") or {}
    word, checkpoint = str(source.get("model", directory)), str(source.get("checkpoint", "best"))
    if word.startswith(ZOO_PREFIX):
        raise SettingError(f"run: expected an evaluation of your own model, got {word}; it is on the leaderboard")
    nearby = directory / str(source.get("model_from_here", "nowhere"))  # both may have moved together
    path = nearby if nearby.exists() else Path(word).expanduser()
    path = directory if (directory / "config.yaml").is_file() else path
    if path.is_file() and (path.parent.parent / "config.yaml").is_file():
        path, checkpoint = path.parent.parent, path.stem
    if (path / "config.yaml").is_file():
        config = directories.load_config(path)
        trained, known = trained_run(config, path, checkpoint, trusted=trusted), str(config["threat"]["eps"])
    elif (path / BUNDLE_FILE).is_file():
        trained = trained_bundle(path, trusted=trusted)
        known = str(json.loads((path / BUNDLE_FILE).read_text())["eps"])
    else:
        raise SettingError(
            f"run: expected the model that {directory / RECORD} is about, got nothing at {word!r} (from "
            f"{Path.cwd()}); start the command where advtrain-eval was started, or put it back"
        )
    return trained, radius_text(float(record["threat"]["eps"]), known)


def trained_run(config: dict[str, Any], directory: Path, checkpoint: str, *, trusted: bool) -> Trained:
    """The averaged model of a run's checkpoint, on the CPU, with the run's recipe and what training took."""
    path = directory / "checkpoints" / f"{checkpoint}.pt"
    model = averaged_model(config, path, torch.device("cpu"), trusted=trusted)
    arguments = {key: value for key, value in architecture_of(config["model"]).items() if key != "_target_"}
    training = _training(directory, checkpoint)
    return Trained(model, config["model"]["_target_"], arguments, data_name(config), recipe=config, training=training)


def trained_bundle(path: Path, *, trusted: bool) -> Trained:
    """The model of an exported bundle, with the recipe that it carries.

    Raises:
        SettingError: its class is not one of ours, and not trusted.
    """
    stored = json.loads((path / BUNDLE_FILE).read_text())
    model = build(stored["trained_as"], trusted=trusted)
    model.load_state_dict(bundle_weights(path, stored))
    arguments = {key: value for key, value in stored["trained_as"].items() if key != "_target_"}
    recipe, training = bundle_recipe(path)
    # The name it was published under stays, unless the author gives another.
    recipe = recipe and {**recipe, "export": {**(recipe.get("export") or {}), "model_id": stored["model_id"]}}
    target = stored["trained_as"]["_target_"]
    return Trained(model.float().eval(), target, arguments, stored["dataset"], recipe=recipe, training=training)


def bundle_recipe(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Configuration and training facts of a bundle; of format 1, the JSON block of its README; else nothing."""
    if (path / "recipe.yaml").is_file():
        return read_recipe((path / "recipe.yaml").read_text())
    card = (path / "README.md").read_text() if (path / "README.md").is_file() else ""
    block = re.search(r"^## Recipe\n+```json\n(.*?)\n```", card, re.DOTALL | re.MULTILINE)
    return (json.loads(block.group(1)) if block else {}), {}


def data_name(config: dict[str, Any]) -> str:
    """The dataset's name as leaderboards write it: that of its class."""
    module, _, name = config["data"]["_target_"].rpartition(".")
    return getattr(import_module(module), name).name


def radius_text(eps: float, known: str) -> str:
    """A radius as the field writes it: as it was written before, in 255ths, or as a decimal number."""
    if np.isclose(eps, checks.number("eps", known), rtol=1e-6, atol=0):
        return known
    levels = round(eps * 255)
    return f"{levels}/255" if levels and np.isclose(eps, levels / 255, rtol=1e-6, atol=0) else f"{eps:.7g}"


def _write(
    trained: Trained, eps: str, record: dict[str, Any], directory: Path, metadata: ExportMetadata, out: Path | None
) -> tuple[Bundle, Verification | None]:
    evaluated = Evaluated(record, directory / EVIDENCE, eps)
    bundle = export_bundle(trained, evaluated, metadata, out or directory / "export")
    if bundle.obstacles:
        console.print("an archive and no submission, because the RobustBench leaderboard would refuse it:")
        for line in bundle.obstacles:
            console.print(f"  {line}")
    try:
        return bundle, verify_bundle(bundle.directory)
    except CannotVerify as error:
        console.print(f"not verified: {error}")
        return bundle, None


def _record(directory: Path) -> dict[str, Any]:
    path = directory / RECORD
    if path.is_file():
        return json.loads(path.read_text())
    remedy = "train it to the end"
    if (directory / BUNDLE_FILE).is_file():
        remedy = f"evaluate the bundle first (advtrain-eval {directory} out=FOLDER) and export that folder"
    raise SettingError(f"run: expected a folder with {RECORD}, got {directory} without; {remedy}")


def _remembered(metadata: ExportMetadata, stored: dict[str, Any]) -> ExportMetadata:
    """What the author says now, and what was said before where that is left open now."""
    given, defaults = asdict(metadata), asdict(ExportMetadata())
    names = [field.name for field in fields(ExportMetadata) if field.name not in OF_ONE_EXPORT]
    kept = {name: stored[name] for name in names if given[name] == defaults[name] and name in stored}
    return typed(ExportMetadata, given | kept, "export")


def _training(directory: Path, checkpoint: str) -> dict[str, Any]:
    """What a run's training took and ran on, as far as the run says it."""
    provenance = yaml.safe_load((directory / "config.yaml").read_text()).get("provenance") or {}
    facts = {name: provenance[name] for name in ("git_commit", "hardware", "versions") if provenance.get(name)}
    if provenance.get("command"):
        facts["command"] = portable_command(provenance["command"])
    execution = recorded_execution(directory)
    if "numerics" in execution and "acceleration" in execution:
        how = execution["acceleration"]
        facts["execution"] = {
            "precision": execution["numerics"]["precision"],
            "compile": str(Acceleration(how["compile"], how["cuda_graph"])),
        } | {name: execution[name] for name in ("batch_size",) if name in execution}
    facts |= recorded_teacher(directory)
    last = directory / "checkpoints" / "last.pt"
    if last.is_file():
        position = checkpoints.load(last)["position"]
        facts |= {"epochs": position["epoch"], "seconds": round(position["seconds"], 1)}
        epoch = position["best_epoch"] if checkpoint == "best" else position["epoch"]
        facts["checkpoint"] = f"{checkpoint} (epoch {epoch})" if checkpoint in ("best", "last") else checkpoint
    return facts
