"""The pages of comparisons show what their records say, for every method and every seed."""

import json
import re
from pathlib import Path
from statistics import fmean, stdev

import pytest

ROOT = Path(__file__).resolve().parents[1]
ALL = ("clean", "pgd", "autoattack")


@pytest.mark.parametrize(
    ("name", "page", "metrics", "attacked", "rows"),
    [
        ("cifar10", "comparison.md", ALL, 300, 10),
        ("cifar100_distillation", "distillation.md", ("clean",), 0, 6),
        ("cifar10_robust_distillation", "distillation.md", ALL, 500, 3),
    ],
)
def test_the_table_is_that_of_the_record(
    name: str, page: str, metrics: tuple[str, ...], attacked: int, rows: int
) -> None:
    runs = json.loads((ROOT / "results" / "comparisons" / f"{name}.json").read_text())["runs"]
    text = (ROOT / "docs" / page).read_text()
    table = text.split(f"<!-- table of {name}: begin -->")[1].split(f"<!-- table of {name}: end -->")[0]
    shown = re.findall(r"^\| `([^`]+)` \| (\d) \| (.*) \|$", table, re.MULTILINE)
    assert {run["method"] for run in runs} == {method for method, _, _ in shown} and len(shown) == rows
    for method, seeds, cells in shown:
        own = [run for run in runs if run["method"] == method]
        n = 1 if method == "teacher" else 3
        assert {run["seed"] for run in own} == set(range(n)) and int(seeds) == len(own) == n
        for cell, metric in zip(cells.split(" | "), metrics, strict=True):
            percent = [100 * run[metric]["correct"] / run[metric]["n_examples"] for run in own]
            error = f" ± {stdev(percent) / n**0.5:.1f}" if n > 1 else ""
            assert cell == f"{fmean(percent):.1f}{error}", (method, metric)
            assert {run[metric]["n_examples"] for run in own} <= {10_000, attacked}
        assert all(re.fullmatch("[0-9a-f]{40}", run["git_commit"]) for run in own)
