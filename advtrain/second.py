"""The other of a run's two checkpoints, and what the run's metrics say: what an evaluation adds about the run."""

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from advtrain import distributed
from advtrain.config import ThreatSettings, build, typed
from advtrain.engine import checkpoints, collapse
from advtrain.engine import run_directory as directories
from advtrain.engine.loggers import read_metrics
from advtrain.engine.progress import console
from advtrain.evaluation import EvaluationSettings
from advtrain.evaluation.records import UNFINISHED, Evaluation, write_record
from advtrain.sources import averaged_model
from advtrain.types import SettingError

OTHER = {"best": "last", "last": "best"}
# Entries of a record that are about the whole evaluation, not about one checkpoint.
SHARED = ("threat", "n_examples", "seeds", "hardware", "versions")

# A model and settings → what is measured of it: `evaluate` bound to images, threat model and device.
Measure = Callable[..., Evaluation]


@dataclass(frozen=True)
class Run:
    """A trained run as it is evaluated.

    Attributes:
        directory: of the run.
        config: its stored configuration.
        trusted: whether classes from outside advtrain may be built.
        device: where models go.
    """

    directory: Path
    config: dict[str, Any]
    trusted: bool
    device: torch.device

    def path(self, checkpoint: str) -> Path:
        """Of "best" or "last"."""
        return self.directory / "checkpoints" / f"{checkpoint}.pt"

    def facts(self, checkpoint: str) -> dict[str, Any]:
        """Which checkpoint it is: its name and the completed epochs when it was saved."""
        return {"checkpoint": checkpoint, "epoch": checkpoints.load(self.path(checkpoint))["position"]["epoch"]}


def run_named(word: str, *, trusted: bool, device: torch.device) -> Run | None:
    """The run whose directory `word` is; None for a single checkpoint, a bundle or a model of the zoo."""
    directory = Path(word).expanduser()
    if not (directory / "config.yaml").is_file():
        return None
    return Run(directory, directories.load_config(directory), trusted, device)


def complete(record_path: Path, run: Run, settings: EvaluationSettings, measure: Measure) -> dict[str, Any]:
    """Adds "collapse" and "second" to a written record where they are missing, and returns the whole.

    Each is written as soon as it is known, so what stops in between goes on from there. All processes of a group call
    it and share the work; the main one writes.
    """
    record = distributed.on_main(lambda: json.loads(record_path.read_text()))
    if "collapse" not in record:
        record["collapse"] = distributed.on_main(lambda: collapse_of(run))
        _write(record, record_path)
    other = run.path(OTHER[settings.checkpoint])
    if "second" not in record and settings.second_checkpoint != "none" and distributed.on_main(other.exists):
        record["second"] = _second(run, settings, measure)
        _write(record, record_path)
    return record


def _write(record: Mapping[str, Any], path: Path) -> None:
    """On the main process; what was kept for a resume is over with it."""
    if distributed.is_main():
        write_record(record, path)
        shutil.rmtree(path.with_name(UNFINISHED), ignore_errors=True)


def second_settings(settings: EvaluationSettings) -> EvaluationSettings:
    """What is measured of the other checkpoint. The screen takes as many images as AutoAttack of the first one."""
    checkpoint = OTHER[settings.checkpoint]
    if settings.second_checkpoint == "full":
        return replace(settings, checkpoint=checkpoint, second_checkpoint="none")
    n_examples = settings.screen.n_examples
    if n_examples is None and settings.autoattack.enabled:
        n_examples = settings.autoattack.n_examples
    return replace(
        settings,
        checkpoint=checkpoint,
        second_checkpoint="none",
        screen=replace(settings.screen, enabled=True, n_examples=n_examples),
        autoattack=replace(settings.autoattack, enabled=False),
        masking=replace(settings.masking, enabled=False),
        curve=replace(settings.curve, enabled=False),
        corruptions=replace(settings.corruptions, enabled=False),
    )


def collapse_of(run: Run) -> dict[str, Any]:
    """The entry "collapse" of a run's record, from its metrics.jsonl."""
    config = run.config
    try:
        attack = build(config["attack"], trusted=run.trusted) if config["attack"]["_target_"] is not None else None
    except SettingError:
        attack = None  # of a class that is not trusted: only the radius of training stays unknown
    threat = typed(ThreatSettings, config["threat"], "threat")
    records = read_metrics(run.directory / "metrics.jsonl")
    return collapse.findings(records, attack, threat, config["trainer"]["epochs"]).record()


def parts(record: dict[str, Any]) -> list[tuple[str | None, dict[str, Any]]]:
    """The checkpoints of a record, each by its title and its own results; the title is None where there is only one."""
    second = record.get("second", {"same_weights": True})
    if second["same_weights"]:
        return [(None, record)]
    return [(_title(record["source"]), record), (_title(second), second)]


def remarks(record: Mapping[str, Any]) -> list[str]:
    """What to say below the table about the two checkpoints and the course of training."""
    lines = []
    source, second = record.get("source", {}), record.get("second")
    if "epoch" in source and second is None:
        lines.append(f"measured            {_title(source)}")
    elif second is not None and second["same_weights"]:
        lines.append(f"measured            {_title(source)}; {second['checkpoint']}.pt holds the same weights")
    found = record.get("collapse")
    if found is not None and found["training_robust"] is not None:
        where = f"seen after epoch {found['epoch']}: " if found["detected"] else ""
        lines.append(f"collapse            {where}{found['reason']}")
        if not found["detected"] and found["robust_overfitting"]["detected"]:
            lines.append(f"robust overfitting  {found['robust_overfitting']['reason']}")
    return lines


def _second(run: Run, settings: EvaluationSettings, measure: Measure) -> dict[str, Any]:
    name = OTHER[settings.checkpoint]
    facts = run.facts(name) | {"same_weights": _same_weights(run)}
    if facts["same_weights"]:
        return facts
    console.print(f"now {_title(facts)}, the other checkpoint (eval.second_checkpoint={settings.second_checkpoint})")
    model = averaged_model(run.config, run.path(name), run.device, trusted=run.trusted)
    measured = measure(model, settings=second_settings(settings)).record()
    return facts | {key: value for key, value in measured.items() if key not in SHARED}


def _same_weights(run: Run) -> bool:
    """Whether best and last hold the same averaged model, buffers included."""
    best, last = (checkpoints.load(run.path(name))["averaged"] for name in OTHER)
    return best.keys() == last.keys() and all(torch.equal(best[key], last[key]) for key in best)


def _title(facts: Mapping[str, Any]) -> str:
    epoch = f" (epoch {facts['epoch']})" if "epoch" in facts else ""
    return f"{facts['checkpoint']}.pt{epoch}"
