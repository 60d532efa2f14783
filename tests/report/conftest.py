"""Records: as old ones were, and with everything that one can have."""

import json
from pathlib import Path
from typing import Any

import pytest

RESULTS = Path(__file__).resolve().parents[2] / "results"
ATTACK = "<script>alert('&')</script>"  # what must never reach a reader as HTML
CLASSES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
EPS = [2 / 255, 4 / 255, 8 / 255, 16 / 255]


@pytest.fixture
def old() -> dict[str, Any]:
    """A record of this repository, from before there were checks, curves and intervals."""
    return json.loads((Path(__file__).with_name("old_record.json")).read_text())


@pytest.fixture
def minimal() -> dict[str, Any]:
    """Clean accuracy and nothing else."""
    return {
        "threat": {"norm": "linf", "eps": 8 / 255},
        "clean": {"accuracy": 0.5, "correct": 5, "n_examples": 10},
    }


@pytest.fixture
def full(old: dict[str, Any]) -> dict[str, Any]:
    """Every part, with a text in each place that tries to be HTML."""
    attacked = old["autoattack"] | {
        "interval": [0.28, 0.36],
        "near_boundary": 3,
        "per_class": {name: [10 + i, 50] for i, name in enumerate(CLASSES)},
        "flags": [{"message": f"flag {ATTACK}"}],
    }
    attacked["settings"] = attacked["settings"] | {"engine": "exact"}
    checks = [
        {"name": f"gap {ATTACK}", "passed": True, "value": 0.01, "threshold": 0.05, "reason": "", "source": "S1"},
        {"name": "square", "passed": False, "value": 0.2, "threshold": 0.02, "reason": ATTACK, "source": ATTACK},
        {"name": "transfer", "passed": None, "value": None, "threshold": None, "reason": "none", "source": "S2"},
    ]
    other = {"attack": "autoattack", "accuracy": 0.41, "correct": 205, "n_examples": 500}
    return old | {
        "dataset": "cifar10",
        "source": {"run": f"run {ATTACK}", "checkpoint": "best", "epoch": 15},
        "autoattack": attacked,
        "masking": {"verdict": "doubtful", "checks": checks, "n_examples": 128, "seconds": 1.0},
        "second": {"checkpoint": "last", "epoch": 16, "same_weights": False, "clean": old["clean"], "pgd": old["pgd"]},
        "collapse": {
            "detected": True,
            "epoch": 12,
            "reason": f"fell {ATTACK}",
            "robust_overfitting": {"detected": False, "reason": "none: 32 % at its best"},
        },
        "curve": {"norm": "linf", "eps": EPS, "accuracy": [0.6, 0.5, 0.3, 0.1], "interval": [[0.05, 0.65]] * 4},
        "corruptions": {
            "source": f"on the fly {ATTACK}",
            "accuracy": 0.5,
            "n_examples": 100,
            "families": {"fog": {"accuracy": 0.55, "severities": {"1": {"accuracy": 0.6}, "2": {"accuracy": 0.5}}}},
            "not_run": {"frost": "no pictures of frost"},
        },
        "threats": {
            "each": [other | {"norm": "l2", "eps": 0.5}, other | {"norm": "l1", "eps": 12.0, "attack": "pgd"}],
            "union": {"accuracy": 0.09, "correct": 45, "n_examples": 500},
        },
    }


@pytest.fixture
def metrics() -> list[dict[str, Any]]:
    """Lines of metrics.jsonl for four epochs, of two logged steps each and a validation."""
    lines: list[dict[str, Any]] = []
    for epoch in range(1, 5):
        lines += [{"epoch": epoch, "step": 2 * epoch + i, "robust_accuracy": 0.1 * epoch + 0.02 * i} for i in (0, 1)]
        lines.append({"epoch": epoch, "validation_clean": 0.2 * epoch, "validation_robust": 0.1 * epoch})
    return lines
