"""report.html: one evaluated run on one page that needs nothing else: no network, no script, light and dark."""

import base64
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from advtrain.report import sections
from advtrain.report.board import Snapshot, in_words, load
from advtrain.report.layout import Picture, Section, Table
from advtrain.report.leaderboard import Measured, position
from advtrain.report.reading import dataset_of, read_config, read_metrics, read_record
from advtrain.report.style import DARK, LIGHT, png

RECORD = "evaluation.json"
PAGE = "report.html"


def write_report(folder: Path, *, snapshot: Snapshot | None = None, title: str | None = None) -> Path:
    """Writes report.html into an evaluated folder and returns its path.

    Reads evaluation.json and, where they are there, config.yaml and metrics.jsonl. Parts that a record lacks, as older
    ones do, are left out.

    Args:
        folder: of a run or of an evaluation.
        snapshot: of RobustBench's boards; the packaged one when None.
        title: of the page; the folder's name when None.

    Raises:
        FileError: there is no evaluation.json, or it is none.
    """
    record = read_record(folder / RECORD)
    page = render(
        record,
        config=read_config(folder / "config.yaml"),
        metrics=read_metrics(folder / "metrics.jsonl"),
        title=title or folder.resolve().name,
        snapshot=snapshot,
        checkable=(folder / "adversarial.npz").is_file(),
    )
    path = folder / PAGE
    path.write_text(page, encoding="utf-8")
    return path


def render(
    record: Mapping[str, Any],
    *,
    title: str,
    config: Mapping[str, Any] | None = None,
    metrics: Sequence[Mapping[str, Any]] = (),
    snapshot: Snapshot | None = None,
    checkable: bool = False,
) -> str:
    """The page as text.

    Args:
        record: content of evaluation.json.
        title: of the page.
        config: content of config.yaml.
        metrics: lines of metrics.jsonl.
        snapshot: of RobustBench's boards; the packaged one when None.
        checkable: whether the adversarial images lie beside the page.
    """
    from jinja2 import Environment, PackageLoader, StrictUndefined

    snapshot, config = snapshot or load(), config or {}
    dataset = dataset_of(record, config)
    place = position(Measured.from_record(record, dataset), snapshot)
    parts = [
        sections.results(record),
        sections.masking(record),
        sections.stages(record),
        sections.board(record, place, snapshot, title),
        sections.threats(record),
        sections.curve(record),
        sections.corruptions(record),
        sections.classes(record),
        sections.checkpoints(record),
        sections.training(metrics, record),
        _verify(checkable),
        _provenance(record, config),
    ]
    environment = Environment(
        loader=PackageLoader("advtrain.report", "."), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True,
    )  # fmt: skip
    return environment.get_template("page.html.j2").render(
        title=title,
        subtitle=" · ".join(part for part in (in_words(dataset or ""), sections.threat_text(record)) if part),
        headline=sections.headline(record, place),
        sections=[part for part in parts if part is not None],
        data_uri=_data_uri,
        config=_without_provenance(config),
        light=LIGHT,
        dark=DARK,
    )


def _data_uri(picture: Picture, dark: bool) -> str:
    return "data:image/png;base64," + base64.b64encode(png(picture.draw(DARK if dark else LIGHT))).decode("ascii")


def _verify(checkable: bool) -> Section:
    if not checkable:
        return Section(
            "Check it yourself", ["The adversarial images are not in this folder, so nothing can be re-checked here."]
        )
    lead = [
        "adversarial.npz holds the image behind every verdict. This command re-checks, from those images alone, that "
        "each lies within ε of the original and that the model answers as claimed. Type it in the folder of this page.",
    ]
    return Section("Check it yourself", lead, code="advtrain-eval verify=.")


def _provenance(record: Mapping[str, Any], config: Mapping[str, Any]) -> Section:
    made = config.get("provenance") or {}
    source = record.get("source") or {}
    commits = record.get("git_commit") or source.get("git_commit")
    hardware = {name: value for name, value in (record.get("hardware") or {}).items() if value is not None}
    rows = [
        ("command", record.get("command") or made.get("command")),
        ("model", _portable(source.get("model") or source.get("run"))),
        ("checkpoint", source.get("checkpoint")),
        (
            "teacher",
            _listed({name: _portable(value) for name, value in (source.get("teacher") or {}).items() if value}),
        ),
        ("code of the training", made.get("git_commit") or _of(commits, "training")),
        ("code of the evaluation", _of(commits, "evaluation") or (commits if isinstance(commits, str) else None)),
        ("seed of the training", record.get("seed", config.get("seed", source.get("seed")))),
        ("seeds of the evaluation", _listed(record.get("seeds") or {})),
        ("hardware", _listed(hardware)),
        ("versions", _listed(record.get("versions") or {})),
    ]
    table = Table(("", ""), [(name, str(value)) for name, value in rows if value not in (None, "")])
    return Section("Provenance", tables=[table])


def _of(value: Any, key: str) -> Any:
    return value.get(key) if isinstance(value, Mapping) else None


def _listed(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in values.items())


def _without_provenance(config: Mapping[str, Any]) -> str:
    kept = {name: _portable(value) for name, value in config.items() if name != "provenance"}
    return yaml.safe_dump(kept, sort_keys=False, allow_unicode=True) if kept else ""


def _portable(setting: Any) -> Any:
    """The same setting without the folders of one machine: of an absolute path, its last part."""
    if isinstance(setting, Mapping):
        return {name: _portable(value) for name, value in setting.items()}
    if isinstance(setting, list | tuple):
        return [_portable(value) for value in setting]
    return Path(setting).name if isinstance(setting, str) and Path(setting).is_absolute() else setting
