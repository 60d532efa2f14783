"""model_info, the zoo entry, and the sentences that submission and model card share."""

from collections.abc import Iterable, Mapping
from typing import Any

from advtrain.export import leaderboard
from advtrain.export.contents import Contents
from advtrain.export.leaderboard import BOARDS, Score
from advtrain.export.metadata import TO_FILL

PAPER = {"link": "link", "name": "paper_title", "authors": "authors", "venue": "venue"}


def model_info(contents: Contents) -> dict[str, Any]:
    """Every field of RobustBench's model_info, accuracies as percentages with two decimals; what is missing says so.

    `external` is not among them: only somebody else's stronger evaluation adds it.
    """
    metadata, robust = contents.metadata, contents.robust.percent
    info = {
        "link": metadata.link,
        "name": metadata.paper_title,
        "authors": metadata.authors,
        "additional_data": metadata.additional_data,
        "number_forward_passes": metadata.number_forward_passes,
        "dataset": contents.dataset,
        "venue": metadata.venue,
        "architecture": contents.architecture.name,
        "eps": contents.eps,
        "clean_acc": contents.clean.percent,
        "reported": robust,
        "autoattack_acc": robust,
        "unreliable": False,
        "footnote": footnote(contents),
    }
    return info | {field: f"{TO_FILL}: {reason}" for field, reason in missing_fields(contents).items()}


def missing_fields(contents: Contents) -> dict[str, str]:
    """Why a field of model_info is left to the author, by its name."""
    metadata, reasons = contents.metadata, {}
    for field, key in PAPER.items():
        if getattr(metadata, key) is None:
            reasons[field] = f"no run knows the paper; set export.{key}"
    total = BOARDS.get(contents.dataset, (0, {}))[0]
    if contents.clean.n_examples < total:
        measured = f"{contents.clean.n_examples:,} of the leaderboard's {total:,} test images"
        reasons["clean_acc"] = f"{contents.clean.percent} % was measured on {measured}"
    if contents.obstacles:
        measured = f"{contents.robust.label}, {contents.robust.percent} % of {contents.robust.n_examples:,} images"
        number = f"not a leaderboard evaluation ({measured}): {' '.join(contents.obstacles)}"
        reasons |= {"reported": number, "autoattack_acc": number}
    return reasons


def to_fill(contents: Contents) -> list[str]:
    """What the author has to write, with the reason."""
    metadata = contents.metadata
    fields: dict[str, list[str]] = {}
    for field, reason in missing_fields(contents).items():
        fields.setdefault(reason, []).append(f"`{field}`")
    items = [f"{', '.join(names)}: {reason}" for reason, names in fields.items()]
    if metadata.model_id is None and None in (metadata.paper_title, metadata.authors, metadata.venue):
        items.insert(0, "ModelID: made of the paper; set export.model_id, or paper_title, authors and venue")
    if contents.submits:
        items += [
            "`gdrive_id` in zoo_entry.py, and the address of checkpoint and code: where you upload the weights",
            "the tick-boxes of the issue: they are promises that only you can make",
        ]
    return items


def footnote(contents: Contents) -> str | None:
    """The author's sentence, and the statement that stands against failed masking checks."""
    metadata, sentences = contents.metadata, []
    if metadata.footnote:
        sentences.append(metadata.footnote)
    if leaderboard.overridden(contents.record, metadata.masking_statement):
        failed = ", ".join(leaderboard.failed_checks(contents.record)) or "none"
        sentences.append(f"Masking checks failed ({failed}); the authors state: {metadata.masking_statement}")
    return " ".join(sentences) or None


def zoo_entry(contents: Contents) -> str:
    """A Python file with the entry for RobustBench's table of models; verify.py loads the weights through it."""
    architecture = contents.architecture
    entry = [
        f'    "{contents.model_id}": {{',
        f'        "model": lambda: {architecture.zoo_call},',
        f'        "gdrive_id": "{TO_FILL}",  # of the place where you upload the weights',
    ]
    if contents.dataset == "imagenet":
        entry.append('        "preprocessing": "Res256Crop224",')
    where = f'"""Entry for robustbench/model_zoo/{contents.dataset}.py, {contents.threat}."""'
    return "\n".join([where, "", architecture.zoo_import, "", "ENTRIES = {", *entry, "    },", "}", ""])


def build_file(contents: Contents) -> str:
    """A Python file that builds the network with RobustBench's class, for a bundle that is no submission."""
    architecture = contents.architecture
    where = '"""Builds the network with RobustBench\'s class: pip install robustbench \'setuptools<82\'."""'
    lines = [where, "", architecture.zoo_import, "", "", "def build():", f"    return {architecture.zoo_call}", ""]
    return "\n".join(lines)


def method(contents: Contents) -> str:
    """How the robust accuracy was measured, in a phrase."""
    score, version = contents.robust, (contents.record.get("versions") or {}).get("pyautoattack")
    settings = score.settings
    if score.attack == "screen":
        return f"screen: APGD-CE and APGD-T alone, seed {settings.get('seed', '?')}, which is not AutoAttack"
    if score.attack != "autoattack":
        return f"PGD, {settings.get('steps', '?')} steps"
    package = f"pyautoattack {version}" if version else "pyautoattack"
    engines = {
        "exact": f"engine exact (same verdicts as upstream {package})",
        "upstream": f"engine upstream ({package})",
        "fast": f"engine fast (sound, and equal to upstream {package} only statistically)",
    }
    engine = engines.get(settings.get("engine", ""), settings.get("implementation"))
    words = [f"AutoAttack, version {settings.get('version', 'standard')}", f"seed {settings.get('seed', '?')}"]
    return ", ".join([*words, *(detail for detail in (engine, settings.get("fallback")) if detail)])


def attack_log(contents: Contents) -> str:
    """Correct images after each attack, and what AutoAttack warned of; "none" where it did not run."""
    after = (contents.record.get("autoattack") or {}).get("after") or []
    if not after:
        return "none"
    stages = ", ".join(
        f"{'clean' if stage['attack'] == 'none' else stage['attack']} {stage['correct']}" for stage in after
    )
    n_examples = contents.scores["autoattack"].n_examples
    return f"correct of {n_examples:,} after {stages}; flags: {'; '.join(warnings(contents.record)) or 'none'}"


def warnings(record: Mapping[str, Any]) -> list[str]:
    """AutoAttack's own doubts about the evaluation, a line each."""
    flags = (record.get("autoattack") or {}).get("flags") or []
    return [" ".join(map(str, flag.values())) if isinstance(flag, Mapping) else str(flag) for flag in flags]


def loader_notes(contents: Contents) -> list[str]:
    """What somebody who loads the weights should know, a sentence each."""
    architecture, notes = contents.architecture, []
    if architecture.library in ("torchvision", "timm"):
        notes.append(f"The network is {architecture.library}'s; its version is part of the result.")
    elif architecture.library is None and contents.dataset in BOARDS:
        notes.append("RobustBench has no such class: architecture.py would have to be added to it.")
    if contents.dataset in BOARDS and not architecture.loads_in_robustbench:
        notes.append("RobustBench's loader changes the names of these weights; verify.py reads them with PyTorch.")
    if contents.dataset == "imagenet" and contents.submits:
        notes.append("The leaderboard's ImageNet images are a fixed list of 5,000: make sure that these are they.")
    return notes


def interval(score: Score) -> str:
    """Wilson's 95 % interval in percent, or nothing where the record has none."""
    return "" if score.interval is None else f"{100 * score.interval[0]:.2f} to {100 * score.interval[1]:.2f} %"


def bullets(items: Iterable[str]) -> str:
    """A Markdown list."""
    return "\n".join(f"- {item}" for item in items)
