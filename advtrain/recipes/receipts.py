"""Finds among the records of results/ those that a recipe, as it stands, has produced."""

import json
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from advtrain.composition import overrides_of, with_default_experiment
from advtrain.engine.run_directory import is_circumstance


@dataclass(frozen=True)
class Receipt:
    """A record of a run.

    Attributes:
        path: of the record.
        command: that made the run.
        seed: of the run.
        measured: accuracy in percent and number of images, by "clean", "pgd", "autoattack".
    """

    path: Path
    command: str
    seed: int
    measured: dict[str, tuple[float, int]]

    @property
    def largest(self) -> int:
        """The most images that anything was measured on; other numbers are about a subset of them."""
        return max(n_examples for _, n_examples in self.measured.values())


def receipts_in(folder: Path, experiments: Sequence[str]) -> tuple[dict[str, list[Receipt]], list[Receipt]]:
    """The records by the recipe that they are receipts of, and the others.

    A record is the receipt of a recipe when its command runs that recipe and changes nothing but the seed, what does
    not matter for the result (see `run_directory.CIRCUMSTANCES`), and the evaluation, which a record states itself.

    Args:
        folder: holds the records, written by scripts/record.py; files of another form are passed over.
        experiments: names of the recipes.
    """
    receipts: dict[str, list[Receipt]] = {name: [] for name in experiments}
    others = []
    for path in sorted(folder.glob("*.json")):
        receipt = _receipt(path, json.loads(path.read_text()))
        if receipt is None:
            continue
        receipts.get(experiment_of(receipt.command) or "", others).append(receipt)
    return receipts, others


def experiment_of(command: str) -> str | None:
    """The recipe that a command line trains by as it stands; None when it changes the recipe, or runs none."""
    words = dict(
        word.lstrip("+~").split("=", 1) for word in overrides_of(with_default_experiment(shlex.split(command)))
    )
    name = words.pop("experiment", None)
    free = ("seed", "eval")
    changed = [key for key in words if key.partition(".")[0] not in free and not is_circumstance(key)]
    return None if changed else name


def _receipt(path: Path, record: Any) -> Receipt | None:
    if not isinstance(record, dict) or not isinstance(record.get("command"), str) or "clean" not in record:
        return None
    measured = {
        name: (100 * record[name]["accuracy"], record[name]["n_examples"])
        for name in ("clean", "pgd", "autoattack")
        if name in record
    }
    return Receipt(path, record["command"], record["seed"], measured)
