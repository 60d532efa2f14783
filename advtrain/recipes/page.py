"""docs/methods.md: the methods there are, the recipes that use them, what is expected of each and what came out.

Everything on the page is read from configs/, from docstrings and from results/, so a missing receipt shows.
"""

import inspect
import re
from collections.abc import Iterable, Mapping, Sequence
from importlib import import_module
from pathlib import Path

from advtrain.composition import choices, own_settings, recipe
from advtrain.config import config_dir
from advtrain.evidence import ORIGINS, Evidence
from advtrain.recipes.evidence import evidence_of
from advtrain.recipes.receipts import Receipt, receipts_in

METHOD_GROUPS = {
    "loss": "Losses",
    "attack": "Attacks",
    "weight_perturbation": "Weight perturbations",
    "averaging": "Weight averages",
}
MEASURES = ("clean", "pgd", "autoattack")

INTRODUCTION = """\
# Methods and recipes

Written by `python scripts/methods_page.py` from `configs/`, the docstrings and `results/`; a test fails when it is out
of date. A recipe is run with `advtrain experiment=NAME data.root=/datasets`; any part of it can be replaced on the same
line (`loss=trades`, `attack=ikl_always_5`). Its record, when it has one, was written by `scripts/record.py`.
"""

RECIPES = """\
## Recipes

Accuracies in percent: clean / PGD / AutoAttack. Expected are those of the source, on the whole test set, with the
tolerance within which a run counts as having reached them; a dash is a number that the source does not give (the reason
is in the recipe). Cost is what training takes in PFLOP (10¹⁵ floating-point operations), predicted; `advtrain.recipes`
says how. All recipes of papers hold 1,000 training images out to choose the checkpoint, which the papers do not.
"""

DISTILLATION = """\
## Recipes of distillation

As above, with the teacher before the arrow: its own training, where a recipe of the same table has it, is not part of
the student's cost, its forward passes are. A student's recipe names the two commands, and finds the run of the first.
Of ImageNet 10,000 images are held out; of ImageNet-LT none, it has validation images of its own.
"""

SETTINGS = """\
## Where the settings come from

A name stands for all settings below it that no other name in the row fits better. What no list of a row names is a
default that does not touch training. "Ours" means that neither the paper nor its code says it.
"""


def page(results: Path) -> str:
    """The text of docs/methods.md.

    Args:
        results: folder of the records.

    Raises:
        SettingError: a recipe's evidence is missing or malformed.
    """
    names = choices("experiment")
    evidence = {name: evidence_of(name) for name in names}
    receipts, others = receipts_in(results, names)
    chosen = {name: recipe(name, [config_dir()])[0] for name in names}
    parts = [INTRODUCTION]
    for group, title in METHOD_GROUPS.items():
        parts.append(f"## {title}\n\n" + _methods(group, chosen))
    taught = {name for name in names if evidence[name].teacher or chosen[name].get("loss") == "standard"}
    for heading, members in ((RECIPES, set(names) - taught), (DISTILLATION, taught)):
        rows = {name: block for name, block in evidence.items() if name in members}
        parts.append(heading + "\n" + _recipes(rows, chosen, receipts))
    parts.append(SETTINGS + "\n" + _settings(evidence))
    if others:
        parts.append("## Other records\n\n" + _others(others))
    return "\n".join(parts)


def _methods(group: str, chosen: Mapping[str, Mapping[str, str]]) -> str:
    rows = []
    for choice in choices(group):
        if choice == "none":
            continue
        target = own_settings(group, choice, [config_dir()])["_target_"]
        yaml = config_dir() / group / f"{choice}.yaml"
        users = [name for name, words in chosen.items() if words.get(group) == choice]
        files = f"[{choice}.yaml](../configs/{group}/{choice}.yaml), {_source(target)}"
        rows.append((f"`{group}={choice}`", _comment(yaml), _reference(yaml, target), files, ", ".join(users) or "–"))
    return _table(("choice", "what it is", "reference", "files", "recipes"), rows)


def _recipes(
    evidence: Mapping[str, Evidence],
    chosen: Mapping[str, Mapping[str, str]],
    receipts: Mapping[str, Sequence[Receipt]],
) -> str:
    rows = []
    for name, block in evidence.items():
        words = chosen[name]
        what = f"{words.get('data', '')}, {f'{block.teacher} → ' if block.teacher else ''}{words.get('model', '')}"
        source = f"{_arxiv(block.reference)}; {block.source}" if block.reference else block.source
        source += f" ([code]({block.code}))" if block.code else ""
        elsewhere = f"[{block.measured}]({block.measured})" if block.measured else "**not run**"
        ours = "<br>".join(_measured(receipt, block) for receipt in receipts[name]) or elsewhere
        link = f"[{name}](../configs/experiment/{name}.yaml)"
        rows.append((link, block.method, what, source, _expected(block), ours, f"{block.cost_pflop:g}"))
    return _table(("recipe", "method", "data, model", "source", "expected", "ours", "PFLOP"), rows)


def _settings(evidence: Mapping[str, Evidence]) -> str:
    rows = []
    for name, block in evidence.items():
        lists = (getattr(block.hyper_parameters, origin) for origin in ORIGINS)
        named = (", ".join(f"`{setting}`" for setting in settings) or "–" for settings in lists)
        rows.append((name, *named, "; ".join(block.differs) or "–"))
    return _table(("recipe", *ORIGINS, "known to differ"), rows)


def _others(records: Iterable[Receipt]) -> str:
    rows = [(f"`{record.command}`", _measured(record), str(record.seed)) for record in records]
    return _table(("command", "clean / PGD / AutoAttack", "seed"), rows)


def _expected(block: Evidence) -> str:
    values = block.expected.accuracies()
    if block.expected.tolerance is None:
        return "–"
    shown = " / ".join("–" if values[measure] is None else f"{values[measure]:.2f}" for measure in MEASURES)
    return f"{shown} ± {block.expected.tolerance:g}"


def _measured(receipt: Receipt, block: Evidence | None = None) -> str:
    """The accuracies of a record; how far one is off where it is expected and not within the tolerance."""
    shown = []
    for measure in MEASURES:
        percent, n_examples = receipt.measured.get(measure, (None, 0))
        if percent is None:
            shown.append("–")
            continue
        text = f"{percent:.2f}"
        if n_examples != receipt.largest:
            text += f" ({n_examples} images)"
        wanted = block.expected.accuracies()[measure] if block else None
        if wanted is not None and block and abs(percent - wanted) > (block.expected.tolerance or 0):
            text += f" (**off by {percent - wanted:+.2f}**)"
        shown.append(text)
    return f"{' / '.join(shown)}, [{receipt.path.stem}](../results/{receipt.path.name})"


def _comment(yaml: Path) -> str:
    """The first sentence of a YAML's opening comment, references linked."""
    lines = []
    for line in yaml.read_text().splitlines():
        if not line.startswith("#"):
            break
        lines.append(line.removeprefix("#").strip())
    sentence = re.split(r"(?<=[a-z0-9)])[.:] (?=[A-Z])", " ".join(lines))[0]
    return sentence.rstrip(".").replace("|", "\\|") or "–"


def _reference(yaml: Path, target: str) -> str:
    """Links to the arXiv numbers in a YAML's comment or, failing that, in the docstring of its class."""
    text = yaml.read_text() + (inspect.getdoc(_object(target)) or "")
    found = list(dict.fromkeys(re.findall(r"arXiv:\d{4}\.\d{4,5}", text)))
    if found:
        return ", ".join(map(_arxiv, found))
    title = re.search(r'"([^"]+)"', inspect.getdoc(_object(target)) or "")
    return title.group(1) if title else "–"


def _arxiv(reference: str) -> str:
    return f"[{reference}](https://arxiv.org/abs/{reference.removeprefix('arXiv:')})"


def _source(target: str) -> str:
    path = _object(target).__module__.replace(".", "/")
    return f"[{target.rpartition('.')[2]}](../{path}.py)"


def _object(target: str) -> type:
    module, _, name = target.rpartition(".")
    return getattr(import_module(module), name)


def _table(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [headings, ["---"] * len(headings), *rows]
    return "".join(f"| {' | '.join(row)} |\n" for row in lines)
