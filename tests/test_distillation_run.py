"""Distillation on the command line: teacher and student as two runs, and what the second one costs, says and leaves."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from advtrain import cli
from advtrain.data import Digits
from advtrain.engine import Trainer, checkpoints
from tests.engine.test_distillation import Counts

SMALL = ["experiment=quickstart", "trainer.threads=1", "trainer.batch_size=128", "trainer.validation.every=1"]
STEPS = 10  # of 128 of the 1,337 training images


@pytest.fixture
def command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Runs a command in this process, in a folder of its own, and gives what it printed."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "160")

    def run(name: str, *words: str) -> str:
        monkeypatch.setattr(sys, "argv", ["advtrain", *words])
        with pytest.raises(SystemExit) as ended:
            getattr(cli, name)()
        said = capsys.readouterr()
        assert ended.value.code == 0, said.err
        return said.out

    return run


def test_a_clean_student_from_teacher_to_report(
    command: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command("train", *SMALL, "loss=standard", "attack=none", "eval=none", "name=teacher", "trainer.epochs=2")
    teacher, student = tmp_path / "runs" / "teacher", tmp_path / "runs" / "student"

    trained: list[Counts] = []
    taken: list[tuple[int, ...]] = []
    fit = Trainer.fit

    def counted(run: Trainer) -> Any:
        counts, take = Counts(run), run.step
        trained.append(counts)

        def step(*arguments: Any) -> Any:
            before = counts.found
            parts = take(*arguments)
            taken.append(tuple(now - then for now, then in zip(counts.found, before, strict=True)))
            return parts

        run.step = step  # pyright: ignore[reportAttributeAccessIssue]
        return fit(run)

    monkeypatch.setattr(Trainer, "fit", counted)
    words = ["loss=kd", "attack=none", f"teacher.source={teacher}", "eval=clean", "name=student", "trainer.epochs=2"]
    said = command("train", *SMALL, *words)

    # One forward and one backward pass of the student in each step, and one of the teacher; none beside the steps but
    # for validation: one pass of 100 images after each epoch.
    (counts,) = trained
    assert taken == [(1, 1, 1)] * 2 * STEPS
    assert counts.found == (2 * STEPS + 2, 2 * STEPS, 2 * STEPS)

    assert "select    best.pt by clean accuracy on 100 held-out images\n" in said
    assert "best held-out clean accuracy" in said and "robust" not in said.partition("compile ")[2]
    assert len([line for line in said.splitlines() if line.startswith("no bundle: ")]) == 1
    assert not (student / "export").exists() and (student / "report.html").is_file()
    metrics = [json.loads(line) for line in (student / "metrics.jsonl").read_text().splitlines()]
    assert sum("validation_clean" in record for record in metrics) == 2
    assert not any("robust" in key for record in metrics for key in record)
    assert {"loss", "ce", "kd", "clean_accuracy", "teacher_accuracy"} <= metrics[0].keys()

    record = json.loads((student / "evaluation.json").read_text())
    assert not {"pgd", "screen", "autoattack", "masking"} & record.keys()
    assert record["clean"]["n_examples"] == record["n_examples"] == 360 and len(record["clean"]["interval"]) == 2
    assert record["clean"]["correct"] == correct(student, "best")
    assert record["source"]["selected_by"] == "clean accuracy"
    if not record["second"]["same_weights"]:
        assert record["second"]["clean"]["correct"] == correct(student, "last")

    said = command("evaluate", str(student), "eval=clean", "out=again", "threads=1")
    again = json.loads((tmp_path / "again" / "evaluation.json").read_text())
    assert {**again["clean"], "seconds": 0} == {**record["clean"], "seconds": 0}
    assert "clean" in said and f"{record['clean']['correct']} / 360" in said and "ε" not in said


def correct(run: Path, checkpoint: str) -> int:
    """Of the test images, by a network built here and not by the evaluation."""
    from advtrain.models import SmallCNN

    model = SmallCNN(num_classes=10, in_channels=1, image_size=8)
    model.load_state_dict(checkpoints.load(run / "checkpoints" / f"{checkpoint}.pt")["averaged"])
    split = Digits().split("test")
    with torch.no_grad():
        return int((model.eval()(split.fetch(torch.arange(len(split)), "cpu")).argmax(1) == split.labels).sum())
