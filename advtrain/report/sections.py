"""The parts of the page, from the parts of a record: plain data that the template lays out and escapes.

Every function takes what is there and returns None (or nothing) where its part of the record is missing.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from advtrain.report import plots
from advtrain.report.board import THREATS, Snapshot
from advtrain.report.layout import Headline, Number, Picture, Section, Table
from advtrain.report.leaderboard import Position
from advtrain.report.reading import MEASURED, interval_of, label_of, percent, percent_range, radius_text

Record = Mapping[str, Any]


def threat_text(record: Record) -> str:
    """The threat model: Linf, ε = 8/255."""
    norm, eps = record["threat"]["norm"], float(record["threat"]["eps"])
    return f"{THREATS.get(norm, norm)}, ε = {radius_text(eps, norm)}"


def headline(record: Record, position: Position) -> Headline:
    """Clean accuracy, the strongest attack's with its interval, whether it can be believed, and the position."""
    robust = next((name for name in ("autoattack", "screen", "pgd") if name in record), None)
    numbers = [Number("Clean accuracy", percent(record["clean"]["accuracy"]), _counted(record["clean"]))]
    if robust is not None:
        result = record[robust]
        note = f"{_counted(result)}, 95 % interval {percent_range(interval_of(result))}"
        numbers.append(Number(label_of(robust, result), percent(result["accuracy"]), note))
    numbers.append(_verdict(record))
    return Headline(numbers, position.text, position.source if position.total else "")


def results(record: Record) -> Section:
    """What was measured, with the settings that decide the numbers."""
    named = [(name, record[name]) for name in MEASURED if name in record]
    near = (record.get("autoattack") or {}).get("near_boundary")
    notes = [f"{near} of the attacked images lie within a hair of the decision boundary."] if near is not None else []
    lead = [f"Threat model {threat_text(record)}; pixels in [0, 1]."]
    if len({result["n_examples"] for _, result in named}) > 1:
        lead.append("Not all numbers are over the same images: compare them only where the counts agree.")
    return Section("Results", lead, tables=[_results_table(named)], notes=notes)


def stages(record: Record) -> Section | None:
    """AutoAttack's stages (or the screen's) and what it warns of."""
    name = next((name for name in ("autoattack", "screen") if (record.get(name) or {}).get("after")), None)
    if name is None:
        return None
    result = record[name]
    rows, before = [], None
    for row in result["after"]:
        lost = "" if before is None else str(before - row["correct"])
        seconds = f"{row['seconds']:.1f}" if "seconds" in row else ""
        rows.append((row["attack"], f"{row['correct']:,}", percent(row["accuracy"]), lost, seconds))
        before = row["correct"]
    flags = [
        f"Warning: {flag.get('message', flag) if isinstance(flag, Mapping) else flag}"
        for flag in result.get("flags") or []
    ]
    table = Table(("after", "robust images", "accuracy", "broken here", "seconds"), rows, (1, 2, 3, 4))
    picture = Picture(lambda theme: plots.descent_plot(result, theme, name), "Accuracy left after each attack, as bars")
    return Section(
        f"{label_of(name, result)}, stage by stage", pictures=[picture], tables=[table],
        notes=flags or ["No warning: the model answered as a deterministic network with gradients does."],
    )  # fmt: skip


def masking(record: Record) -> Section | None:
    """The checks of whether the number can be believed."""
    found = record.get("masking")
    if not found:
        return None
    kinds = {True: ("passed", "good"), False: ("failed", "bad"), None: ("not run", "open")}
    checks = found.get("checks") or []
    rows = [
        (
            str(check.get("name", "")),
            kinds[check.get("passed")][0],
            _number(check.get("value")),
            _number(check.get("threshold")),
            str(check.get("reason") or ""),
            str(check.get("source") or ""),
        )
        for check in checks
    ]
    marks = [kinds[check.get("passed")][1] for check in checks]
    lead = [f"Verdict: {found.get('verdict', 'none')}."]
    if found.get("n_examples"):
        lead.append(f"The checks used {found['n_examples']:,} images.")
    table = Table(("check", "result", "value", "threshold", "what it means", "source"), rows, (2, 3), marks)
    return Section("Can the number be believed?", [" ".join(lead)], tables=[table])


def board(record: Record, position: Position, snapshot: Snapshot, name: str) -> Section | None:
    """The picture of the board, where there is one."""
    if not position.total or position.rank is None:
        return None
    picture = Picture(
        lambda theme: plots.board_plot(position, snapshot, name=name, theme=theme),
        f"Clean against robust accuracy of the {position.board} board, this model marked",
    )
    lead = f"Ranked by the external evaluation where there is one, else by AutoAttack; snapshot {position.source}."
    return Section(f"Position on the {position.board} board", [lead], [picture])


def checkpoints(record: Record) -> Section | None:
    """Best and last side by side, and whether training collapsed."""
    second, collapse = record.get("second"), record.get("collapse")
    if not second and not collapse:
        return None
    lead, tables = [], []
    if collapse:
        happened = f"Training collapsed at epoch {collapse.get('epoch')}" if collapse.get("detected") else "No collapse"
        reason = collapse.get("reason")
        lead.append(f"{happened}: {reason}" if reason else f"{happened}.")
    if second:
        source = record.get("source")
        first = str(source.get("checkpoint", "first")) if isinstance(source, Mapping) else "first"
        columns = [name for name in MEASURED if name in record or name in second]
        headings = ("checkpoint", "epoch", *({"pgd": "PGD", "autoattack": "AutoAttack"}.get(c, c) for c in columns))
        rows = [_checkpoint_row(first, record, columns), _checkpoint_row(second["checkpoint"], second, columns)]
        tables = [Table(headings, rows, range(1, len(headings)))]
        if second.get("same_weights"):
            lead.append("Both checkpoints hold the same weights.")
    return Section("Best and last checkpoint", lead, tables=tables)


def training(metrics: Sequence[Record], record: Record) -> Section | None:
    """Curves of the training."""
    if not any("validation_robust" in line or "robust_accuracy" in line for line in metrics):
        return None
    collapse = record.get("collapse")
    picture = Picture(lambda theme: plots.training_plot(metrics, collapse, theme), "Accuracies over the epochs")
    lead = "The held-out accuracies are of images that training never saw, under an attack of their own."
    return Section("Training", [lead], [picture])


def threats(record: Record) -> Section | None:
    """Other threat models than the main one."""
    found = record.get("threats")
    if not found:
        return None
    named = found.items() if isinstance(found, Mapping) else [(str(part.get("norm", "")), part) for part in found]
    rows = []
    for key, part in named:
        if not isinstance(part, Mapping):
            continue
        norm, eps = _threat_of(str(key), part)
        measured = [(name, part[name]) for name in MEASURED if name in part] or [("robust", part)]
        for name, result in measured:
            if "accuracy" in result:
                rows.append((THREATS.get(norm, norm), eps, label_of(name, result), *_accuracy_cells(result)))
    if not rows:
        return None
    return Section("Other threat models", tables=[
        Table(("norm", "ε", "attack", "accuracy", "95 % interval", "images"), rows, (3, 4, 5)),
    ])  # fmt: skip


def curve(record: Record) -> Section | None:
    """Robust accuracy over the radius."""
    found = record.get("curve")
    if not found or not found.get("eps"):
        return None
    norm = str(found.get("norm", record["threat"]["norm"]))
    main = float(record["threat"]["eps"]) if norm == record["threat"]["norm"] else None
    picture = Picture(lambda theme: plots.curve_plot(found, main, theme), "Robust accuracy over the radius")
    images = f" of {found['n_examples']:,} images" if found.get("n_examples") else ""
    lead = f"One warm-started pass{images}: an upper bound at each radius, not AutoAttack."
    return Section("Over the radius", [lead], [picture])


def corruptions(record: Record) -> Section | None:
    """Common corruptions."""
    found = record.get("corruptions")
    if not found or not found.get("families"):
        return None
    picture = Picture(lambda theme: plots.corruptions_plot(found, theme), "Accuracy under each corruption")
    return Section("Common corruptions", [str(found["label"])] if found.get("label") else [], [picture])


def classes(record: Record) -> Section | None:
    """Robust accuracy by class."""
    name = next((name for name in ("autoattack", "screen", "pgd") if (record.get(name) or {}).get("per_class")), None)
    if name is None:
        return None
    found = record[name]["per_class"]
    picture = Picture(lambda theme: plots.classes_plot(found, theme), "Robust accuracy of each class, worst first")
    return Section("By class", [f"{label_of(name, record[name])}, the worst class first."], [picture])


def _verdict(record: Record) -> Number:
    found = record.get("masking") or {}
    verdict = str(found.get("verdict") or "not checked")
    checks = found.get("checks") or []
    failed = [str(check.get("name")) for check in checks if check.get("passed") is False]
    passed = sum(check.get("passed") is True for check in checks)
    note = f"failed: {', '.join(failed)}" if failed else f"{passed} of {len(checks)} checks passed" if checks else ""
    mark = {"believable": "good", "doubtful": "bad"}.get(verdict, "open")
    return Number("Can it be believed?", verdict, note, mark)


def _results_table(named: Sequence[tuple[str, Record]]) -> Table:
    rows = []
    for name, result in named:
        settings = result.get("settings") or {}
        engine = settings.get("engine") or settings.get("implementation") or ""
        size, seed = settings.get("batch_size", ""), settings.get("seed", "")
        cells = (*_accuracy_cells(result), str(engine), str(seed), str(size), f"{result.get('seconds', 0):,.1f}")
        rows.append((label_of(name, result), *cells))
    headings = ("attack", "accuracy", "95 % interval", "images", "engine", "seed", "batch", "seconds")
    return Table(headings, rows, (1, 2, 3, 5, 6, 7))


def _accuracy_cells(result: Record) -> tuple[str, str, str]:
    counted = "correct" in result and "n_examples" in result
    known = counted or result.get("interval")
    return (
        percent(result["accuracy"]),
        percent_range(interval_of(result)) if known else "",
        f"{result['n_examples']:,}" if "n_examples" in result else "",
    )


def _checkpoint_row(name: str, part: Record, columns: Sequence[str]) -> tuple[str, ...]:
    places = (part, part.get("source"), part.get("checkpoint"))
    epochs = [place["epoch"] for place in places if isinstance(place, Mapping) and place.get("epoch") is not None]
    cells = (percent(part[column]["accuracy"]) if column in part else "" for column in columns)
    return (str(name), str(epochs[0]) if epochs else "", *cells)


def _threat_of(key: str, part: Record) -> tuple[str, str]:
    stated = part.get("threat") if isinstance(part.get("threat"), Mapping) else part
    norm = str((stated or {}).get("norm", key))
    eps = (stated or {}).get("eps", "")
    return norm, radius_text(float(eps), norm) if isinstance(eps, int | float) else str(eps)


def _counted(result: Record) -> str:
    return f"{result['correct']:,} of {result['n_examples']:,} images"


def _number(value: Any) -> str:
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: ""}[value]
    return f"{value:.4g}" if isinstance(value, int | float) else str(value)
