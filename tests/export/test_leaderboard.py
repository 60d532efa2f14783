"""What the leaderboard refuses is refused by name, or kept as an archive that claims nothing."""

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from advtrain.export import ExportMetadata
from advtrain.types import SettingError

Evaluated = Callable[..., Any]
STATEMENT = "Square wins by chance on the two images that it alone breaks, see appendix B."


def doubtful(run: Any) -> None:
    run.record["masking"]["verdict"] = "doubtful"
    run.record["masking"]["checks"].append({"name": "black_box", "passed": False, "value": 0.2, "reason": "too good"})


def other_radius(run: Any) -> None:
    run.eps_text, run.record["threat"]["eps"] = "0.5", 0.5


def other_norm(run: Any) -> None:
    run.record["threat"]["norm"] = "l1"


def other_dataset(run: Any) -> None:
    run.dataset = "digits"


def without_autoattack(run: Any) -> None:
    del run.record["autoattack"]


def custom(run: Any) -> None:
    run.record["autoattack"]["settings"]["version"] = "custom"


def fast(run: Any) -> None:
    run.record["autoattack"]["settings"]["engine"] = "fast"


def five_images(run: Any) -> None:
    run.arrays = {name: value if name == "batch_size" else value[:5] for name, value in run.arrays.items()}
    run.record["autoattack"] |= {"n_examples": 5, "correct": 4}


def unmasked(run: Any) -> None:
    del run.record["masking"]


REFUSALS = {
    other_dataset: "digits is not a dataset of the RobustBench leaderboard (cifar10, cifar100, imagenet are).",
    other_norm: "The leaderboard has no L1 ranking of cifar10 (only Linf 8/255, L2 0.5).",
    other_radius: "The leaderboard does not rank cifar10 at Linf ε = 0.5 (only Linf 8/255, L2 0.5).",
    without_autoattack: "AutoAttack did not run; the robust accuracy given is that of PGD-20.",
    custom: "AutoAttack ran as version=custom, not as standard.",
    fast: "AutoAttack ran with engine=fast, whose verdicts equal upstream's only statistically.",
    five_images: "Evaluated on a subset: 5 of the leaderboard's 6 test images.",
    unmasked: "The masking checks did not run: evaluate with eval.masking.enabled=true.",
    doubtful: "The masking checks find the evaluation doubtful (black_box); export.masking_statement=… answers them.",
}


@pytest.mark.parametrize("spoil", REFUSALS, ids=lambda spoil: spoil.__name__)
def test_refused_with_the_reason_or_kept_as_an_archive(board: Any, spoil: Callable[[Any], None]) -> None:
    spoil(board)
    board.metadata = ExportMetadata(target="leaderboard")
    with pytest.raises(SettingError) as caught:
        board.export()
    assert REFUSALS[spoil] in str(caught.value) and "export.target=archive" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert {path.name for path in board.folder.iterdir()} == {"adversarial.npz"}
    board.metadata = ExportMetadata()
    bundle = board.export()
    assert (bundle.target, bundle.obstacles) == ("archive", (REFUSALS[spoil],))
    files = {path.name for path in bundle.directory.iterdir()}
    assert "NOT_A_SUBMISSION.md" in files and not files & {"submission.md", "zoo_entry.py"}
    for name in ("NOT_A_SUBMISSION.md", "README.md"):
        assert REFUSALS[spoil] in (bundle.directory / name).read_text()
    info = json.loads(bundle.model_info.read_text())
    for field in ("autoattack_acc", "reported"):
        assert info[field].startswith("to be filled by the author: not a leaderboard evaluation")
        assert REFUSALS[spoil] in info[field]


def test_all_reasons_are_given_at_once(board: Any) -> None:
    custom(board)
    doubtful(board)
    other_radius(board)
    board.metadata = ExportMetadata(target="leaderboard")
    with pytest.raises(SettingError) as caught:
        board.export()
    assert all(REFUSALS[spoil] in str(caught.value) for spoil in (custom, doubtful, other_radius))


@pytest.mark.parametrize("target", ["auto", "leaderboard"])
def test_what_nothing_stands_in_the_way_of_is_a_submission(board: Any, target: str) -> None:
    board.metadata = ExportMetadata(target=target)
    bundle = board.export()
    assert (bundle.target, bundle.obstacles) == ("leaderboard", ())
    notes, issue = (bundle.directory / "submission.md").read_text().split("\n---\n")
    assert "Nothing stands in the way" in notes and "Title: [New Model]" in issue


def test_an_archive_can_be_asked_for(board: Any) -> None:
    board.metadata = ExportMetadata(target="archive")
    bundle = board.export()
    assert (bundle.target, bundle.obstacles) == ("archive", ())
    assert not (bundle.directory / "submission.md").exists()
    assert "export.target=archive asked" in (bundle.directory / "NOT_A_SUBMISSION.md").read_text()
    assert json.loads(bundle.model_info.read_text())["autoattack_acc"] == "83.33"  # a number of the leaderboard's kind


def test_the_author_answers_for_failed_masking_checks_in_public(board: Any) -> None:
    doubtful(board)
    board.metadata = ExportMetadata(target="leaderboard", masking_statement=STATEMENT, footnote="Small model.")
    bundle = board.export()
    assert (bundle.target, bundle.obstacles) == ("leaderboard", ())
    notes, issue = (bundle.directory / "submission.md").read_text().split("\n---\n")
    card = (bundle.directory / "README.md").read_text()
    assert STATEMENT in notes and "black_box" in notes and "Nothing stands" not in notes
    assert STATEMENT in issue
    assert STATEMENT in card and "Verdict: doubtful" in card and "| black_box | FAILED |" in card
    footnote = json.loads(bundle.model_info.read_text())["footnote"]
    assert footnote == f"Small model. Masking checks failed (black_box); the authors state: {STATEMENT}"


def test_a_statement_answers_nothing_else(board: Any) -> None:
    board.metadata = ExportMetadata(masking_statement=STATEMENT)
    assert "state" not in (json.loads(board.export().model_info.read_text())["footnote"] or "")
    unmasked(board)
    assert board.export().obstacles == (REFUSALS[unmasked],)
    with pytest.raises(SettingError, match=r"export\.masking_statement: expected 8 words or more, got 'Trust me\.'"):
        replace(board.metadata, masking_statement="Trust me.")


def test_the_radius_is_written_as_the_leaderboard_does(board: Any) -> None:
    board.eps_text = str(8 / 255)
    bundle = board.export()
    assert bundle.obstacles == ()
    assert json.loads(bundle.model_info.read_text())["eps"] == "8/255"


def test_records_of_older_evaluations_name_no_engine(board: Any) -> None:
    del board.record["autoattack"]["settings"]["engine"]
    assert board.export().obstacles == ()


def test_the_leaderboards_test_sets() -> None:
    """RobustBench, github.com/RobustBench/robustbench: 10,000 CIFAR images, a list of 5,000 of ImageNet."""
    from advtrain.export.leaderboard import BOARDS, leaderboard_eps

    assert {name: total for name, (total, _) in BOARDS.items()} == {
        "cifar10": 10000,
        "cifar100": 10000,
        "imagenet": 5000,
    }
    assert leaderboard_eps("imagenet", "Linf", str(np.float64(4 / 255))) == "4/255"
    assert leaderboard_eps("cifar10", "L2", "128/255") == "128/255"  # not 0.5
    assert leaderboard_eps("cifar10", "L1", "12") == "12"
