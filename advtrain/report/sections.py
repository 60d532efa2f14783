"""The parts of the page, from the parts of a record: plain data that the template lays out and escapes.

Every function takes what is there and returns None (or nothing) where its part of the record is missing.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from advtrain.report import plots
from advtrain.report.board import THREATS, Snapshot
from advtrain.report.layout import Headline, Number, Picture, Section, Table
from advtrain.report.leaderboard import Position
from advtrain.report.reading import MEASURED, eps_of, interval_of, label_of, percent, percent_range, radius_text

Record = Mapping[str, Any]


def threat_text(record: Record) -> str:
    """The threat model: Linf, ε = 8/255; nothing where no number of the record is about it."""
    if not any(name in record for name in (*MEASURED[1:], "masking", "curve", "threats")):
        return ""
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
    if robust is not None or "masking" in record:
        numbers.append(_verdict(record))
    return Headline(numbers, position.text, position.source if position.total else "")


def results(record: Record) -> Section:
    """What was measured, with the settings that decide the numbers."""
    named = [(name, record[name]) for name in MEASURED if name in record]
    near = (record.get("autoattack") or {}).get("near_boundary")
    notes = [f"{near} of the attacked images lie within a hair of the decision boundary."] if near is not None else []
    threat = threat_text(record)
    lead = [f"Threat model {threat}; pixels in [0, 1]."] if threat else ["No attack was run."]
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
    second, lead = record.get("second"), _course(record.get("collapse") or {})
    tables: list[Table] = []
    if not second and not lead:
        return None
    if second:
        source = record.get("source")
        first = str(source.get("checkpoint", "first")) if isinstance(source, Mapping) else "first"
        columns = [name for name in MEASURED if name in record or name in second]
        headings = ("checkpoint", "epoch", *({"pgd": "PGD", "autoattack": "AutoAttack"}.get(c, c) for c in columns))
        rows = [_checkpoint_row(first, record, columns), _checkpoint_row(second["checkpoint"], second, columns)]
        if second.get("same_weights"):
            lead.append(f"The {second['checkpoint']} checkpoint holds the same weights.")
        else:
            tables = [Table(headings, rows, range(1, len(headings)))]
    return Section("Best and last checkpoint", lead, tables=tables)


def training(metrics: Sequence[Record], record: Record) -> Section | None:
    """Curves of the training."""
    if not any({"validation_clean", "robust_accuracy"} & line.keys() for line in metrics):
        return None
    collapse = record.get("collapse")
    picture = Picture(lambda theme: plots.training_plot(metrics, collapse, theme), "Accuracies over the epochs")
    attacked = any("validation_robust" in line for line in metrics)
    lead = f"Held-out images are those that training never saw{', under an attack of their own' if attacked else ''}."
    return Section("Training", [lead], [picture])


def threats(record: Record) -> Section | None:
    """Several threat models on the same images, and what holds against all of them."""
    found = record.get("threats") or {}
    words = {"autoattack": "AutoAttack", "screen": "APGD-CE + APGD-T", "pgd": "PGD"}
    rows = []
    for part in found.get("each") or []:
        norm = str(part.get("norm", ""))
        attack = str(part.get("attack", ""))
        eps = radius_text(eps_of(part["eps"]), norm) if "eps" in part else ""
        rows.append((THREATS.get(norm, norm), eps, words.get(attack, attack), *_accuracy_cells(part)))
    if not rows:
        return None
    if found.get("union"):
        rows.append(("all of them", "", "", *_accuracy_cells(found["union"])))
    headings = ("norm", "ε", "attack", "accuracy", "95 % interval", "images")
    lead = "On the same images; an image counts against all of them when it is robust against each."
    return Section("Several threat models", [lead], tables=[Table(headings, rows, (3, 4, 5))])


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
    lead = [str(found[key]) for key in ("label", "source") if found.get(key)][:1]
    if found.get("n_examples"):
        lead.append(f"{found['n_examples']:,} images of each corruption and severity.")
    absent = [f"Not run: {name}, {reason}" for name, reason in (found.get("not_run") or {}).items()]
    return Section("Common corruptions", [" · ".join(lead)] if lead else [], [picture], notes=absent)


def classes(record: Record) -> Section | None:
    """Accuracy by class under the strongest attack, or without one."""
    name = next((name for name in reversed(MEASURED) if (record.get(name) or {}).get("per_class")), None)
    if name is None:
        return None
    found, kind = record[name]["per_class"], "clean" if name == "clean" else "robust"
    picture = Picture(
        lambda theme: plots.classes_plot(found, theme, kind=kind), f"The {kind} accuracy of each class, worst first"
    )
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


def _course(collapse: Record) -> list[str]:
    """How training went, a sentence for each way in which it can go wrong."""
    lines = []
    for name, found in (("Collapse", collapse), ("Robust overfitting", collapse.get("robust_overfitting") or {})):
        if "detected" not in found:
            continue
        at = f" at epoch {found['epoch']}" if found["detected"] and found.get("epoch") is not None else ""
        answer = "yes" if found["detected"] else "none"
        reason = str(found.get("reason") or "").removeprefix("none: ")
        if reason.startswith("not assessed"):  # a run without attacks, or validated without one
            continue
        lines.append(f"{name}{at}: {answer}{'; ' if reason else ''}{reason}.")
    return lines


def _counted(result: Record) -> str:
    return f"{result['correct']:,} of {result['n_examples']:,} images"


def _number(value: Any) -> str:
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: ""}[value]
    return f"{value:.4g}" if isinstance(value, int | float) else str(value)
