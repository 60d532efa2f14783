"""A newer model_info folder in place of the snapshot, and what is said of files that are no entries."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from advtrain.report import entries_from_model_info, load
from advtrain.report.board import same_radius
from advtrain.types import FileError

INFO: dict[str, Any] = {
    "name": "A paper", "additional_data": False, "dataset": "cifar10", "venue": "NeurIPS 2026",
    "architecture": "WideResNet-28-10", "eps": "8/255", "clean_acc": "93.00", "reported": "70.00",
    "autoattack_acc": "70.10", "unreliable": False, "footnote": "Synthetic images.",
}  # fmt: skip


def write(folder: Path, name: str, threat: str = "Linf", **changes: Any) -> Path:
    path = folder / "cifar10" / threat / f"{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({key: value for key, value in (INFO | changes).items() if value is not ...}))
    return path


def test_strings_and_numbers(tmp_path: Path) -> None:
    write(tmp_path, "Strings2026A")
    write(
        tmp_path,
        "Numbers2026B.v1",
        eps=8 / 255,
        clean_acc=92,
        autoattack_acc=71.5,
        external=69.9,
        additional_data="True",
    )
    write(tmp_path, "Other2026C", threat="L2", eps="0.5", external="")
    write(tmp_path, "Ignored2026D", threat="corruptions", autoattack_acc=...)
    snapshot = load(tmp_path)
    assert [(e.model_id, e.robust, e.eps) for e in snapshot.board("cifar10", "linf")] == [
        ("Strings2026A", 70.1, "8/255"),
        ("Numbers2026B.v1", 69.9, "8/255"),
    ]
    assert [e.additional_data for e in snapshot.board("cifar10", "linf")] == [False, True]
    assert [(e.model_id, e.external) for e in snapshot.board("cifar10", "l2")] == [("Other2026C", None)]
    assert tmp_path.name in snapshot.source


def test_the_checkout_that_holds_the_folder_will_do(tmp_path: Path) -> None:
    write(tmp_path / "model_info", "One2026")
    assert [entry.model_id for entry in entries_from_model_info(tmp_path)] == ["One2026"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"autoattack_acc": "n/a"}, "autoattack_acc: expected a percentage from 0 to 100, got 'n/a'"),
        ({"autoattack_acc": 171}, "autoattack_acc: expected a percentage from 0 to 100, got 171"),
        ({"clean_acc": ...}, "clean_acc: expected a percentage from 0 to 100, got None"),
        ({"external": [1]}, r"external: expected a percentage from 0 to 100, got \[1\]"),
        ({"eps": "eight"}, "eps: expected a radius such as 8/255, got 'eight'"),
        ({"eps": 8}, "eps: expected a radius such as 8/255, got 8"),
    ],
)
def test_a_malformed_entry_is_named(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    path = write(tmp_path, "Broken2026", **changes)
    with pytest.raises(FileError, match=f"^{re.escape(str(path))}: {message}; correct the file$"):
        load(tmp_path)


@pytest.mark.parametrize(("content", "message"), [("{", "expected JSON"), ("[1]", "expected an object")])
def test_no_entry_at_all(tmp_path: Path, content: str, message: str) -> None:
    path = write(tmp_path, "Broken2026")
    path.write_text(content)
    with pytest.raises(FileError, match=f"{re.escape(str(path))}: {message}") as caught:
        load(tmp_path)
    assert "\n" not in str(caught.value)


def test_a_folder_without_entries(tmp_path: Path) -> None:
    with pytest.raises(FileError, match="leaderboard: expected RobustBench's folder model_info") as caught:
        load(tmp_path)
    assert str(tmp_path) in str(caught.value)


def test_radii() -> None:
    assert same_radius(8 / 255, "8/255") and same_radius(0.5, "0.5")
    assert not same_radius(0.031, "8/255")
