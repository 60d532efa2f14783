"""What is published under checkpoints/ and results/ holds what it says."""

import json
from pathlib import Path

import pytest

from advtrain.export import CannotVerify, verify_bundle

ROOT = Path(__file__).resolve().parents[1]
BUNDLES = sorted(path.parent for path in (ROOT / "checkpoints").glob("*/SHA256SUMS"))
RECORDS = sorted((ROOT / "results").glob("*.json"))


@pytest.mark.slow
@pytest.mark.parametrize("bundle", BUNDLES, ids=lambda path: path.name)
def test_every_bundle_verifies(bundle: Path) -> None:
    record = json.loads((ROOT / "results" / f"{bundle.name}.json").read_text())
    claimed = json.loads((bundle / "verification.json").read_text())["robust"]
    assert claimed["correct"] == record["autoattack"]["correct"]
    try:
        found = verify_bundle(bundle)
    except CannotVerify as error:  # all but the large files was checked
        assert "this copy of the folder comes without" in str(error)
        pytest.skip(str(error))
    assert found.robust_correct == record["autoattack"]["correct"]
    assert found.n_examples == record["autoattack"]["n_examples"]
    assert found.attack == "autoattack"


@pytest.mark.parametrize("path", RECORDS, ids=lambda path: path.stem)
def test_every_record_says_where_its_numbers_come_from(path: Path) -> None:
    record = json.loads(path.read_text())
    assert record["command"].startswith("advtrain") and isinstance(record["seed"], int)
    assert all(len(commit) >= 40 and "dirty" not in commit for commit in record["git_commit"].values())
    assert record["hardware"]["cpu"] and record["versions"]["torch"]
    for name in ("clean", "pgd", "autoattack"):
        result = record[name]
        assert result["accuracy"] == pytest.approx(result["correct"] / result["n_examples"])
    assert record["autoattack"]["settings"]["version"] == "standard"


def test_the_readme_quotes_the_records() -> None:
    text = (ROOT / "README.md").read_text()
    for path in RECORDS:
        autoattack = json.loads(path.read_text())["autoattack"]
        assert f"({autoattack['correct']} of {autoattack['n_examples']})" in text, path.name
