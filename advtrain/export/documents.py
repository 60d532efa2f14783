"""model_info, the zoo entry, and the sentences that submission and model card share."""

from collections.abc import Iterable, Mapping
from typing import Any

from advtrain.export.contents import BOARDS, Contents, Score
from advtrain.export.metadata import TO_FILL


def model_info(contents: Contents) -> dict[str, Any]:
    """Every field of RobustBench's model_info, accuracies as percentages with two decimals.

    `external` is not among them: only somebody else's stronger evaluation adds it.
    """
    metadata = contents.metadata
    robust = contents.robust.percent if contents.robust.attack == "autoattack" else TO_FILL
    return {
        "link": metadata.link or TO_FILL,
        "name": metadata.paper_title or TO_FILL,
        "authors": metadata.authors or TO_FILL,
        "additional_data": metadata.additional_data,
        "number_forward_passes": metadata.number_forward_passes,
        "dataset": contents.dataset,
        "venue": metadata.venue or TO_FILL,
        "architecture": contents.architecture.name,
        "eps": contents.eps,
        "clean_acc": contents.clean.percent,
        "reported": robust,
        "autoattack_acc": robust,
        "unreliable": False,
        "footnote": metadata.footnote,
    }


def to_fill(contents: Contents) -> list[str]:
    """What the author has to write, with where or why."""
    metadata = contents.metadata
    asked = {"paper title": "paper_title", "paper URL": "link", "authors": "authors", "venue": "venue"}
    items = [f"{name}: set `export.{key}`" for name, key in asked.items() if getattr(metadata, key) is None]
    if metadata.model_id is None and None in (metadata.paper_title, metadata.authors, metadata.venue):
        items.insert(0, "ModelID: set `export.model_id`, or all of paper title, authors and venue, which make it")
    if contents.robust.attack != "autoattack":
        items.append("autoattack_acc and reported: AutoAttack did not run")
    return [*items, "address of checkpoint and code, and `gdrive_id`: where you upload the weights", "the tick-boxes"]


def zoo_entry(contents: Contents) -> str:
    """A Python file with the entry for RobustBench's table of models; verify.py loads the weights through it."""
    architecture = contents.architecture
    entry = [
        f'    "{contents.model_id}": {{',
        f'        "model": lambda: {architecture.zoo_call},',
        f'        "gdrive_id": "{TO_FILL}",',
    ]
    if contents.dataset == "imagenet":
        entry.append('        "preprocessing": "Res256Crop224",')
    where = f'"""Entry for robustbench/model_zoo/{contents.dataset}.py, {contents.threat}."""'
    if contents.dataset not in BOARDS:
        where = f'"""An entry in the form of RobustBench\'s zoo, which has no {contents.dataset}."""'
    return "\n".join([where, "", architecture.zoo_import, "", "ENTRIES = {", *entry, "    },", "}", ""])


def method(score: Score) -> str:
    """How the robust accuracy was measured, in a phrase."""
    settings = score.settings
    if score.attack != "autoattack":
        return f"PGD, {settings.get('steps', '?')} steps"
    details = [settings.get("implementation"), settings.get("fallback")]
    words = [f"AutoAttack, version {settings.get('version', 'standard')}", f"seed {settings.get('seed', '?')}"]
    return ", ".join(words + [detail for detail in details if detail])


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
    return notes


def bullets(items: Iterable[str]) -> str:
    """A Markdown list."""
    return "\n".join(f"- {item}" for item in items)
