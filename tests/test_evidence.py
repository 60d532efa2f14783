"""The evidence block: what it must say, and what is refused."""

from typing import Any

import pytest

from advtrain.config import typed
from advtrain.evidence import Evidence, HyperParameters
from advtrain.types import SettingError

COMPLETE: dict[str, Any] = {
    "method": "TRADES",
    "source": "ICML 2019, table 5",
    "reference": "arXiv:1901.08573",
    "code": "https://github.com/yaodongyu/TRADES",
    "expected": {"clean": 84.92, "pgd": 56.61, "autoattack": 53.08, "tolerance": 1},
    "hyper_parameters": {"paper": ["loss"], "code": ["optimizer", "loss.beta"], "ours": ["trainer"]},
    "images_per_epoch": 50000,
    "cost_pflop": 12.5,
}


def block(**changes: Any) -> dict[str, Any]:
    return {name: value for name, value in (COMPLETE | changes).items() if value is not ...}


def test_a_complete_block_is_read() -> None:
    evidence = typed(Evidence, COMPLETE, "evidence")
    assert evidence.expected.accuracies() == {"clean": 84.92, "pgd": 56.61, "autoattack": 53.08}
    assert evidence.differs == [] and evidence.unknown is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"source": ...}, r"evidence\.source: expected a value, got none"),
        ({"method": " "}, r"evidence\.method: expected words"),
        ({"sources": "x"}, r"did you mean evidence\.source\?"),
        ({"reference": "1901.08573"}, r"evidence\.reference: expected the form arXiv:2305\.13948"),
        ({"code": "github.com/x"}, r"evidence\.code: expected an address"),
        ({"measured": "results/x.json"}, r"evidence\.measured: expected a page in docs/"),
        ({"cost_pflop": 0}, r"evidence\.cost_pflop: expected a number above 0"),
        ({"images_per_epoch": 0.5}, r"evidence\.images_per_epoch: expected a"),
        ({"expected": {"clean": 849.2, "tolerance": 1}, "unknown": "-"}, r"expected\.clean: .* from 0 to 100"),
        ({"expected": {"clean": 84.92}, "unknown": "not reported"}, r"expected\.tolerance: expected a number of"),
        ({"expected": {"tolerance": 1}, "unknown": "not reported"}, r"expected\.tolerance: expected a number of"),
        ({"expected": {"clean": 84.92, "tolerance": 1}}, r"evidence\.unknown: .* pgd, autoattack null"),
        ({"unknown": "although nothing is null"}, r"evidence\.unknown: .* none null"),
        ({"hyper_parameters": {}}, r"each setting once, got none"),
        ({"hyper_parameters": {"paper": ["loss"], "ours": ["loss"]}}, r"got 'loss' twice"),
        ({"hyper_parameters": {"guess": ["loss"]}}, r"expected one of code, ours, paper, got 'guess'"),
    ],
)
def test_what_is_missing_or_malformed_is_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingError, match=message):
        typed(Evidence, block(**changes), "evidence")


def test_the_longest_name_that_fits_says_where_a_setting_comes_from() -> None:
    sources = HyperParameters(paper=["optimizer"], code=["optimizer.lr"], ours=["loss"])
    assert sources.origin("optimizer.momentum") == "paper" and sources.origin("optimizer.lr") == "code"
    assert sources.origin("loss_weight") is None and sources.origin("loss.beta") == "ours"
