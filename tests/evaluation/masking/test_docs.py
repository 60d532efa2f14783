"""docs/masking.md says what the code does."""

import re
from pathlib import Path

import pytest

from advtrain.evaluation import MaskingSettings
from advtrain.evaluation.masking import blackbox, gradients, iterative, masking_report, precision, radius
from advtrain.evaluation.masking.statistics import allowed
from advtrain.evaluation.masking.whitebox import RESTART_STEPS, STEPS
from tests.evaluation.conftest import linear_problem

PAGE = (Path(__file__).parents[3] / "docs" / "masking.md").read_text()
ROWS = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in PAGE.splitlines() if line.startswith("| `")]


@pytest.fixture(scope="module")
def report():
    problem = linear_problem(5)
    return masking_report(
        problem.model,
        problem.split.images,
        problem.split.labels,
        norm="linf",
        eps=problem.eps,
        settings=MaskingSettings(n_examples=10),
        surrogate=problem.model,
    )


def test_every_check_has_a_row(report):
    names = [row[0].strip("`") for row in ROWS if len(row) == 5]
    assert sorted(names) == sorted(check.name for check in report.checks)


def test_sources_are_those_of_the_checks(report):
    """Every paper of the table is named by the check; Tramèr et al. is of the text."""
    by_name = {row[0].strip("`"): row for row in ROWS if len(row) == 5}
    for check in report.checks:
        papers = set(re.findall(r"\[(\d{4}\.\d{5})\]", by_name[check.name][3]))
        assert papers == set(re.findall(r"arXiv:(\d{4}\.\d{5})", check.source)), check.name


def test_numbers():
    passes = {row[0].strip("`"): row[2] for row in ROWS if len(row) == 5}
    shares = {
        "pgd_gap": iterative.GAP,
        "logit_scale": iterative.GAP,
        "random_starts": iterative.STARTS,
        "larger_eps": radius.LEFT,
        "black_box": blackbox.ALONE,
        "transfer": blackbox.ALONE,
        "precision": precision.CHANGED,
    }
    assert {name: passes[name] for name in shares} == {
        name: f"{rate:.0%}".replace("%", " %") for name, rate in shares.items()
    }
    assert (passes["single_step"], iterative.SINGLE_STEP) == ("a third", 1 / 3)
    assert passes["zero_gradients"] == "2 % of the images; half of the pixels"
    assert (gradients.IMAGES, gradients.PIXELS) == (0.02, 0.5)
    assert f"({', '.join(map(str, STEPS))})" in PAGE and f"PGD-{RESTART_STEPS}" in PAGE
    assert f"({blackbox.QUERIES} queries" in PAGE and f"APGD-{blackbox.TRANSFER_STEPS} " in PAGE
    assert f"PGD-{radius.ROUNDS * radius.STEPS} " in PAGE


@pytest.mark.parametrize(("word", "rate"), [("2 %", 0.02), ("10 %", 0.1), ("a third", 1 / 3)])
def test_thresholds(word, rate):
    row = " | ".join(f"{allowed(n, rate) / n:.1%}".replace("%", " %") for n in (64, 128, 1000))
    assert f"| {word} | {row} |" in PAGE
