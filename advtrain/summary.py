"""What a person sees at the end: the numbers, whether they can be believed, where the model would stand, the files."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rich.table import Table

from advtrain import second
from advtrain.engine.progress import console
from advtrain.evaluation import title
from advtrain.evaluation.evaluate import ATTACKS
from advtrain.evaluation.per_class import class_lines
from advtrain.evaluation.records import EVIDENCE, RECORD
from advtrain.evaluation.statistics import wilson_interval
from advtrain.export import Bundle, Verification

HEADINGS = ("accuracy", "95 % interval", "correct", "seconds")
WIDTH = 20  # of the words in front of a line


def show(record: dict[str, Any], directory: Path, finished: tuple[Bundle, Verification | None] | None) -> None:
    """Prints it all."""
    console.print()
    console.print(_table(record, directory.name))
    for line in (*second.remarks(record), *_judgements(record)):
        console.print(line)
    for label, path in _places(directory, finished):
        console.print(f"{label:{WIDTH}}{path}")


def labels(record: dict[str, Any]) -> dict[str, str]:
    """What was measured, as people call it; a subset is called one."""
    named = {"clean": "clean"}
    if "pgd" in record:
        settings = record["pgd"]["settings"]
        named["pgd"] = f"PGD-{settings['steps']}, {settings['restarts']} restarts"
    named |= {name: title(record[name]["settings"]) for name in ("screen", "autoattack") if name in record}
    largest = max(record[name]["n_examples"] for name in named)
    return {
        name: label if record[name]["n_examples"] == largest else f"{label}, subset of {record[name]['n_examples']}"
        for name, label in named.items()
    }


def _table(record: dict[str, Any], name: str) -> Table:
    threat, attacked = record["threat"], any(attack in record for attack in ATTACKS)
    under = f": {threat['norm']}, ε = {threat['eps']:.5g}" if attacked else ""
    table = Table(title=f"{name}{under}", title_justify="left")
    table.add_column("")
    for heading in HEADINGS:
        table.add_column(heading, justify="right", no_wrap=True)
    for checkpoint, part in second.parts(record):
        if checkpoint is not None:
            table.add_row(f"[bold]{checkpoint}")
        for key, label in labels(part).items():
            result = part[key]
            correct = f"{result['correct']} / {result['n_examples']}"
            low, high = result.get("interval") or wilson_interval(result["correct"], result["n_examples"])
            interval, seconds = f"{100 * low:.2f} to {high:.2%}", f"{result['seconds']:.1f}"
            table.add_row(label, f"{result['accuracy']:.2%}", interval, correct, seconds)
        table.add_section()
    return table


def _judgements(record: dict[str, Any]) -> Iterator[str]:
    """Whether the numbers can be believed, and where the model would stand."""
    for name, label in labels(record).items():
        near = record[name].get("near_boundary")
        if near is not None:
            yield f"{'boundary':{WIDTH}}{label}: {near} image{'s' * (near != 1)} within a hair of it"
    strongest = next(name for name in ("autoattack", "screen", "pgd", "clean") if name in record)
    for line in class_lines(record[strongest].get("per_class") or {}):
        yield f"{'classes':{WIDTH}}{line}"
    for name in ("screen", "autoattack"):
        for flag in record.get(name, {}).get("flags") or []:
            yield f"AutoAttack warns: {flag['message']}"
    if masking := record.get("masking"):
        failed = [check for check in masking["checks"] if check["passed"] is False]
        passed = sum(check["passed"] is True for check in masking["checks"])
        yield f"{'masking':{WIDTH}}{masking['verdict']}: {passed} checks passed, {len(failed)} failed"
        for check in failed:
            yield f"{'':{WIDTH}}{check['name']}: {check['reason']}"
    if board := record.get("leaderboard"):
        yield f"{'leaderboard':{WIDTH}}{board['text']}"


def _places(directory: Path, finished: tuple[Bundle, Verification | None] | None) -> list[tuple[str, object]]:
    places: list[tuple[str, object]] = [
        ("configuration", directory / "config.yaml"),
        ("metrics", directory / "metrics.jsonl"),
        ("best, last", directory / "checkpoints"),
        ("evaluation", directory / RECORD),
        ("adversarial images", directory / EVIDENCE),
        ("report", directory / "report.html"),
    ]
    if finished is not None:
        bundle, verification = finished
        places.append(("submission" if bundle.target == "leaderboard" else "archive", bundle.directory))
        if verification is not None:
            places.append(("", f"verified: {verification}"))
    return [(label, path) for label, path in places if not isinstance(path, Path) or path.exists()]
