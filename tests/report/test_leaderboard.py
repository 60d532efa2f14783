"""The position against a recomputation from the file, row by row, with nothing but csv and decimal."""

import csv
from decimal import Decimal
from itertools import pairwise
from pathlib import Path

import pytest

import advtrain.report
from advtrain.report import Measured, Snapshot, load, position
from advtrain.report.board import same_radius

NORMS = {"Linf": "linf", "L2": "l2"}
EPS = {
    ("cifar10", "Linf"): 8 / 255,
    ("cifar10", "L2"): 0.5,
    ("cifar100", "Linf"): 8 / 255,
    ("imagenet", "Linf"): 4 / 255,
}


def rows() -> list[dict[str, str]]:
    path = Path(advtrain.report.__file__).parent / "leaderboard.csv"
    with path.open(encoding="utf-8") as file:
        return list(csv.DictReader(line for line in file if not line.startswith("#")))


def accuracy(row: dict[str, str]) -> Decimal:
    """RobustBench's leaderboard/template.py: the first of external and autoattack_acc that is there."""
    return Decimal(row["external"] or row["autoattack_acc"])


def measured(dataset: str, threat: str, percent: object, **other: object) -> Measured:
    return Measured(dataset, NORMS[threat], EPS[dataset, threat], 0.8, float(str(percent)) / 100, **other)  # type: ignore[arg-type]


@pytest.mark.parametrize("board", EPS)
def test_every_entry_comes_back_to_its_own_place(board: tuple[str, str]) -> None:
    dataset, threat = board
    on_board = [row for row in rows() if (row["dataset"], row["threat_model"]) == board]
    places = sorted((accuracy(row) for row in on_board), reverse=True)
    snapshot = load()
    for row in on_board:
        others = tuple(
            e for e in snapshot.entries if (e.dataset, e.threat, e.model_id) != (dataset, threat, row["model_id"])
        )
        assert len(others) == len(snapshot.entries) - 1
        found = position(measured(dataset, threat, accuracy(row)), Snapshot(others, "all but one"))
        assert found.rank == places.index(accuracy(row)) + 1
        assert found.total == len(on_board)
        assert len(found.level) == places.count(accuracy(row)) - 1
        # and the board's own row is left out when the model names itself
        assert position(measured(dataset, threat, accuracy(row), model_id=row["model_id"])).rank == found.rank


@pytest.mark.parametrize("board", EPS)
def test_a_new_number_between_two_entries(board: tuple[str, str]) -> None:
    """Every gap of the board wide enough for a number in hundredths."""
    dataset, threat = board
    on_board = sorted(
        ((accuracy(r), r["model_id"]) for r in rows() if (r["dataset"], r["threat_model"]) == board), reverse=True
    )
    gaps = 0
    for (higher, _), (lower, _) in pairwise(on_board):
        if higher - lower < Decimal("0.02"):
            continue
        gaps += 1
        found = position(measured(dataset, threat, lower + Decimal("0.01")))
        assert found.rank == sum(value > lower for value, _ in on_board) + 1
        assert found.total == len(on_board) + 1
        assert found.above is not None and found.below is not None
        assert (found.above.robust, found.below.robust) == (float(higher), float(lower))
    assert gaps > 10


def test_counts_and_radii_of_the_boards() -> None:
    snapshot = load()
    counts = {board: len(snapshot.board(board[0], NORMS[board[1]])) for board in EPS}
    assert counts == {
        ("cifar10", "Linf"): 99,
        ("cifar10", "L2"): 21,
        ("cifar100", "Linf"): 38,
        ("imagenet", "Linf"): 30,
    }
    assert len(snapshot.entries) == 188
    for (dataset, threat), eps in EPS.items():
        assert same_radius(eps, snapshot.eps(dataset, NORMS[threat]) or "")
    assert "March 2025" in snapshot.source


def test_the_external_number_counts() -> None:
    """MeanSparse: 75.28 % under AutoAttack, 73.10 % under an adaptive attack; its base model has 73.71 %."""
    found = position(measured("cifar10", "Linf", "73.50"))
    assert found.rank == 2
    assert found.text == (
        "would be rank 2 of 100 on CIFAR-10 Linf; between Bartoldson2024Adversarial_WRN-94-16 (73.71 %) and "
        "Amini2024MeanSparse_S-WRN-94-16 (73.10 %)"
    )


def test_equal_accuracies_share_a_rank() -> None:
    found = position(measured("cifar10", "Linf", "57.14"))
    strictly_above = sum(
        accuracy(row) > Decimal("57.14")
        for row in rows()
        if (row["dataset"], row["threat_model"]) == ("cifar10", "Linf")
    )
    assert found.rank == strictly_above + 1
    assert "level with Gowal2020Uncovering_70_16 and Sehwag2020Hydra (57.14 %), between " in found.text


def test_text_at_the_ends() -> None:
    top = position(measured("cifar10", "Linf", "90")).text
    assert top == "would be rank 1 of 100 on CIFAR-10 Linf; above Bartoldson2024Adversarial_WRN-94-16 (73.71 %)"
    bottom = position(measured("cifar100", "Linf", "1")).text
    assert bottom == "would be rank 39 of 39 on CIFAR-100 Linf; below Rice2020Overfitting (18.95 %)"


def test_an_empty_board_leaves_nothing_to_compare_with() -> None:
    one = Snapshot(load().board("cifar10", "l2")[:1], "one")
    listed = one.entries[0].model_id
    found = position(measured("cifar10", "L2", "80", model_id=listed), one)
    assert (found.rank, found.total) == (1, 1)
    assert found.text == f"would be rank 1 of 1 on CIFAR-10 L2; RobustBench lists it with {one.entries[0].robust:.2f} %"


def test_a_subset_spans_ranks() -> None:
    interval = (0.538, 0.6)
    found = position(measured("cifar10", "Linf", "56.94", n_examples=1000, interval=interval))
    board = [accuracy(row) for row in rows() if (row["dataset"], row["threat_model"]) == ("cifar10", "Linf")]
    first, last = (sum(value > Decimal(bound) for value in board) + 1 for bound in ("60", "53.8"))
    assert found.span == (first, last) and first < last
    assert f"a subset of 1,000 images; the interval 53.8–60.0 % spans ranks {first} to {last}" in found.text
    whole = position(measured("cifar10", "Linf", "56.94", n_examples=10_000, interval=interval))
    assert whole.span is None and "subset" not in whole.text


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"eps": 16 / 255}, "evaluated at ε = 16/255, where the CIFAR-10 Linf board has ε = 8/255"),
        ({"eps": 0.031}, "evaluated at ε = 0.031, where the CIFAR-10 Linf board has ε = 8/255"),
        ({"norm": "l1"}, "RobustBench has no board for CIFAR-10 L1"),
        ({"dataset": "digits"}, "RobustBench has no board for digits Linf"),
        ({"dataset": None}, "the record does not say which dataset was evaluated"),
        ({"robust": None}, "no AutoAttack ran"),
    ],
)
def test_not_comparable(changes: dict[str, object], reason: str) -> None:
    arguments = {"dataset": "cifar10", "norm": "linf", "eps": 8 / 255, "clean": 0.9, "robust": 0.5} | changes
    found = position(Measured(**arguments))  # type: ignore[arg-type]
    assert found.rank is None and found.text == f"not comparable: {reason}"
    assert found.record()["rank"] is None and found.record()["reason"] == reason


def test_caveats_of_a_record(full: dict) -> None:
    full["autoattack"]["settings"] |= {"engine": "fast", "version": "custom", "attacks": ["apgd-ce"]}
    text = position(full).text
    assert text.startswith("would be at best rank 93 of 100 on CIFAR-10 Linf; between ")
    assert "only apgd-ce ran: the standard AutoAttack may find less" in text
    assert "by the fast engine, which is not AutoAttack by name" in text
    assert text.endswith("the masking checks doubt the number")


def test_a_clean_record_has_no_caveats(old: dict) -> None:
    found = position(Measured.from_record(old, "cifar10"))
    assert found.measured.caveats == ()
    assert found.record() | {"rank": 93, "total": 100, "caveats": [], "reason": None} == found.record()


def test_a_zoo_model_is_ranked_without_its_own_row(full: dict) -> None:
    full["source"] = {"model": "robustbench:Wang2023Better_WRN-28-10", "dataset": "cifar10"}
    found = position(full)
    assert found.total == 99
    assert "RobustBench lists it with 67.31 %" in found.text
