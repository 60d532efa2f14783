"""Best and last of a run: both are measured, each under its own name, once."""

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from advtrain import finish, second
from advtrain.composition import compose
from advtrain.engine import checkpoints
from advtrain.evaluation import EvaluationSettings
from advtrain.evaluation.settings import AutoAttackSettings, ScreenSettings
from advtrain.runs import check_training, make_trainer
from advtrain.types import SettingError

WORDS = ["experiment=quickstart", "eval=clean_pgd", "eval.pgd.steps=2", "eval.pgd.restarts=1", "eval.pgd.n_examples=20"]
WORDS += ["trainer.epochs=2", "trainer.batch_size=256", "trainer.validation.steps=1", "trainer.validation.every=1"]
WORDS += ["attack.steps=1"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], Path]:
    """A run of two epochs whose best.pt is that of the first: its classes are turned around, so that it differs."""
    config = compose("train", WORDS)
    directory = tmp_path_factory.mktemp("trained") / "run"
    finish.directories.claim(directory, config)
    make_trainer(config, check_training(config), directory).fit()
    state = checkpoints.load(directory / "checkpoints" / "last.pt")
    state["position"] |= {"epoch": 1, "best_epoch": 1}
    (head,) = [key for key, value in state["averaged"].items() if value.shape == (10,)]
    state["averaged"][head] += torch.arange(10.0)
    checkpoints.save(directory / "checkpoints" / "best.pt", state)
    return config, directory


@pytest.fixture
def run(trained: tuple[dict[str, Any], Path], tmp_path: Path) -> tuple[dict[str, Any], Path]:
    config, directory = trained
    return config, Path(shutil.copytree(directory, tmp_path / "run"))


def evaluated(config: dict[str, Any], directory: Path, **settings: Any) -> dict[str, Any]:
    parts = check_training(config)
    parts["eval"] = dataclasses.replace(parts["eval"], **settings)
    record = finish.evaluate_run(config, parts, directory)
    assert record == json.loads((directory / "evaluation.json").read_text())
    assert record is not None
    return record


def correct(config: dict[str, Any], directory: Path, checkpoint: str) -> int:
    """Of the test images, in one pass."""
    path = directory / "checkpoints" / f"{checkpoint}.pt"
    model = finish.averaged_model(config, path, torch.device("cpu"), trusted=True)
    split = check_training(config)["data"].split("test")
    with torch.no_grad():
        return int((model(split.fetch(torch.arange(len(split)), "cpu")).argmax(1) == split.labels).sum())


@pytest.mark.parametrize(("first", "other"), (("best", "last"), ("last", "best")))
def test_both_are_measured_each_under_its_own_name(run: Any, first: str, other: str) -> None:
    record = evaluated(*run, checkpoint=first, second_checkpoint="full")
    epochs = {"best": 1, "last": 2}
    assert (record["source"]["checkpoint"], record["source"]["epoch"]) == (first, epochs[first])
    assert "APGD on the margin" in record["source"]["selected_by"]
    found = record["second"]
    assert (found["checkpoint"], found["epoch"], found["same_weights"]) == (other, epochs[other], False)
    assert record["clean"]["correct"] == correct(*run, first)
    assert found["clean"]["correct"] == correct(*run, other) != record["clean"]["correct"]
    assert found["pgd"]["settings"] == record["pgd"]["settings"] and "hardware" not in found
    assert record["collapse"]["detected"] is False


def test_the_same_weights_are_measured_once(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    config, directory = run
    shutil.copy(directory / "checkpoints" / "last.pt", directory / "checkpoints" / "best.pt")
    (directory / "checkpoints" / "best.pt.sha256").unlink()
    record = evaluated(config, directory, second_checkpoint="screen")
    assert record["second"] == {"checkpoint": "last", "epoch": 2, "same_weights": True}
    (line,) = [line for line in second.remarks(record) if line.startswith("measured")]
    assert line.endswith("best.pt (epoch 2); last.pt holds the same weights")


def test_one_buffer_makes_weights_different(run: Any) -> None:
    config, directory = run
    state = checkpoints.load(directory / "checkpoints" / "last.pt")
    key = next(iter(state["averaged"]))
    state["averaged"][key].view(-1)[0] += 1
    checkpoints.save(directory / "checkpoints" / "best.pt", state)
    assert evaluated(config, directory, second_checkpoint="full")["second"]["same_weights"] is False


def test_none_and_a_missing_checkpoint_leave_it_out(run: Any) -> None:
    config, directory = run
    record = evaluated(config, directory)  # eval=clean_pgd asks for none
    assert "second" not in record and second.parts(record) == [(None, record)]
    assert "measured            best.pt (epoch 1)" in second.remarks(record)
    (directory / "checkpoints" / "last.pt").unlink()
    assert "second" not in evaluated(config, directory, second_checkpoint="full")


def test_what_is_done_is_not_done_again(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stopped in the second checkpoint, a run goes on with that one; finished, it measures nothing."""
    asked: list[str] = []
    evaluate = finish.evaluate

    def counting(*arguments: Any, settings: EvaluationSettings, **others: Any) -> Any:
        asked.append(settings.checkpoint)
        if len(asked) == 2:
            raise KeyboardInterrupt
        return evaluate(*arguments, settings=settings, **others)

    monkeypatch.setattr(finish, "evaluate", counting)
    with pytest.raises(KeyboardInterrupt):
        evaluated(*run, second_checkpoint="full")
    first = json.loads((run[1] / "evaluation.json").read_text())
    assert "second" not in first and first["collapse"]["detected"] is False
    record = evaluated(*run, second_checkpoint="full")
    assert asked == ["best", "last", "last"]
    assert {key: value for key, value in record.items() if key != "second"} == first
    assert evaluated(*run, second_checkpoint="full") == record and len(asked) == 3


def test_a_screen_is_what_second_place_gets() -> None:
    settings = EvaluationSettings(autoattack=AutoAttackSettings(n_examples=500))
    found = second.second_settings(settings)
    assert (found.checkpoint, found.second_checkpoint, found.pgd) == ("last", "none", settings.pgd)
    assert found.screen == ScreenSettings(enabled=True, n_examples=500)  # no more images than AutoAttack has
    off = (found.autoattack, found.masking, found.curve, found.corruptions)
    assert not any(part.enabled for part in off)
    few = dataclasses.replace(settings, screen=ScreenSettings(n_examples=30))
    assert second.second_settings(few).screen.n_examples == 30
    full = second.second_settings(dataclasses.replace(settings, checkpoint="last", second_checkpoint="full"))
    assert full == dataclasses.replace(settings, checkpoint="best", second_checkpoint="none")


def test_the_table_keeps_the_checkpoints_apart(run: Any, capsys: pytest.CaptureFixture[str]) -> None:
    record = evaluated(*run, second_checkpoint="full")
    capsys.readouterr()
    finish.show(record, run[1], None)
    lines = capsys.readouterr().out.splitlines()
    places = [next(i for i, line in enumerate(lines) if f"{name}.pt (epoch" in line) for name in ("best", "last")]
    best, last = lines[places[0] : places[1]], lines[places[1] :]
    assert any("clean" in line and f"{record['clean']['correct']} / 360" in line for line in best)
    assert any("clean" in line and f"{record['second']['clean']['correct']} / 360" in line for line in last)
    assert any(line.startswith("collapse            none: ") for line in lines)


def test_a_collapse_is_told_at_the_end() -> None:
    found = {"detected": True, "epoch": 7, "training_robust": 0.9, "reason": "held-out robust accuracy fell"}
    record = {"source": {}, "collapse": found | {"robust_overfitting": {"detected": True, "reason": "so too"}}}
    assert second.remarks(record) == ["collapse            seen after epoch 7: held-out robust accuracy fell"]
    record["collapse"] |= {"detected": False, "reason": "none: fine"}
    assert second.remarks(record) == ["collapse            none: fine", "robust overfitting  so too"]
    record["collapse"]["training_robust"] = None  # standard training
    assert second.remarks(record) == []


def test_advtrain_eval_measures_both_of_a_run_and_one_of_a_file(run: Any, tmp_path: Path) -> None:
    config, directory = run
    words = ["eval=clean_pgd", "eval.second_checkpoint=full", "eval.pgd.steps=1", "eval.pgd.restarts=1"]
    words += ["eval.pgd.n_examples=10", f"out={tmp_path}/out"]
    for source, both in ((directory, True), (directory / "checkpoints" / "last.pt", False)):
        finish.evaluation_run(compose("eval", [f"source={source}", *words]))
        record = json.loads((tmp_path / "out" / "evaluation.json").read_text())
        assert ("second" in record) == ("collapse" in record) == both
        assert record["source"].get("epoch") == (1 if both else None)
    assert record["clean"]["correct"] == correct(config, directory, "last")


def test_a_wrong_word_names_the_right_ones() -> None:
    with pytest.raises(SettingError, match=r"eval.second_checkpoint: expected one of none, screen, full, got 'both'"):
        check_training(compose("train", [*WORDS, "eval.second_checkpoint=both"]))
