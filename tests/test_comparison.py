"""docs/comparison.md shows what the record of the comparison says, for every method and every seed."""

import json
import re
from pathlib import Path
from statistics import fmean

ROOT = Path(__file__).resolve().parents[1]


def test_the_table_is_that_of_the_record() -> None:
    runs = json.loads((ROOT / "results" / "comparisons" / "cifar10.json").read_text())["runs"]
    rows = re.findall(r"^\| `([^`]+)` \| (\d) \| (.*) \|$", (ROOT / "docs" / "comparison.md").read_text(), re.MULTILINE)
    methods = {run["method"] for run in runs}
    assert methods == {name for name, _, _ in rows} and len(rows) == len(methods) == 10
    for name, seeds, cells in rows:
        own = [run for run in runs if run["method"] == name]
        assert {run["seed"] for run in own} == {0, 1, 2} and int(seeds) == len(own) == 3
        for cell, metric in zip(cells.split(" | "), ("clean", "pgd", "autoattack"), strict=True):
            mean = fmean(100 * run[metric]["correct"] / run[metric]["n_examples"] for run in own)
            assert cell.split(" ± ")[0] == f"{mean:.1f}", (name, metric)
        assert all(run["autoattack"]["n_examples"] == 300 and len(run["git_commit"]) == 40 for run in own)
