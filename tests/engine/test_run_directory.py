"""Run directories: names without time stamps, one configuration each."""

from pathlib import Path

import pytest
import yaml

from advtrain.engine import run_directory
from advtrain.engine.loggers import MetricsFile
from advtrain.engine.run_directory import claim, git_commit, provenance, run_name
from advtrain.types import SettingError

CHOICES = {"experiment": "quickstart", "data": "digits", "model": "small_cnn", "attack": "pgd", "loss": "ikl"}


def test_names_say_the_choices_and_the_seed() -> None:
    assert run_name(["experiment=quickstart"], CHOICES, 0) == "quickstart-seed0"
    named = run_name(["experiment=quickstart", "loss=trades", "attack.steps=7", "seed=3"], CHOICES, 3)
    assert named == "quickstart-attack.steps-7-trades-seed3"
    plain = {**CHOICES, "experiment": "null", "loss": "trades"}
    assert run_name(["loss=trades", "data=digits"], plain, 1) == "digits-small_cnn-pgd-trades-seed1"


def test_where_things_are_is_not_part_of_the_name() -> None:
    words = [
        "data.root=/a/b",
        "data.download=false",
        "trainer.device=cpu",
        "logger=wandb",
        "run_root=x",
        "trainer.threads=2",
    ]
    assert run_name(words, CHOICES, 0) == "quickstart-seed0"


def test_names_are_safe_for_file_systems() -> None:
    name = run_name(["attack.eps=8/255", "model.mean=[0.1, 0.2]"], CHOICES, 0)
    assert not set("/ [],=") & set(name)


def test_different_settings_have_different_names() -> None:
    words = ("attack.steps=7", "trainer.validation.steps=7", "attack.eps=4/255", "optimizer.lr=0.1", "optimizer=adamw")
    assert len({run_name([word], CHOICES, 0) for word in words}) == len(words)


def test_a_directory_belongs_to_one_configuration(tmp_path: Path) -> None:
    config = {"seed": 0, "loss": {"beta": 6.0}, "data": {"root": "a"}}
    claim(tmp_path, config)
    stored = yaml.safe_load((tmp_path / "config.yaml").read_text())
    assert stored.pop("provenance")["versions"]["torch"] and stored == config
    claim(tmp_path, {**config, "data": {"root": "b"}})  # where the data are does not matter
    with pytest.raises(SettingError, match=r"loss.beta \(there 6.0, now 5.0\)"):
        claim(tmp_path, {**config, "loss": {"beta": 5.0}})
    with pytest.raises(SettingError, match=r"loss.gamma \(there None, now 1\)"):
        claim(tmp_path, {**config, "loss": {"beta": 6.0, "gamma": 1}})
    assert yaml.safe_load((tmp_path / "config.yaml").read_text())["loss"] == {"beta": 6.0}


def test_a_run_from_before_there_were_teachers_goes_on(tmp_path: Path) -> None:
    config = {"seed": 0, "trainer": {"epochs": 3}}
    claim(tmp_path, config)
    none = {"source": None, "checkpoint": "best", "weights": None}
    claim(tmp_path, {**config, "teacher": none, "trainer": {"epochs": 3, "validation": {"select": None}}})
    with pytest.raises(SettingError, match=r"teacher.checkpoint \(there None, now 'best'\)"):
        claim(tmp_path, {**config, "teacher": {**none, "source": "runs/other"}})


def test_metrics_of_steps_that_are_taken_again_are_dropped(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"step": 2}\n{"step": 3}\n{"step": 4, "lo')  # a kill cut the last line
    file = MetricsFile(path, resume_step=2)
    file.log(3, {"loss": 1.5})
    assert path.read_text() == '{"step": 1}\n{"step": 2}\n{"step": 3, "loss": 1.5}\n'


def test_the_commit_of_a_copy_without_git_is_what_the_environment_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_directory, "__file__", str(tmp_path / "advtrain" / "engine" / "run_directory.py"))
    monkeypatch.delenv("ADVTRAIN_COMMIT", raising=False)
    assert git_commit() is None
    monkeypatch.setenv("ADVTRAIN_COMMIT", " c0ffee\n")
    assert git_commit() == "c0ffee" and provenance()["git_commit"] == "c0ffee"
    monkeypatch.setenv("ADVTRAIN_COMMIT", "")
    assert git_commit() is None


def test_a_checkout_knows_its_commit_better_than_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Unless git cannot tell: here the folder is no repository."""

    class Described:
        stdout = "0123abc-dirty\n"

    monkeypatch.setattr(run_directory, "__file__", str(tmp_path / "advtrain" / "engine" / "run_directory.py"))
    monkeypatch.setenv("ADVTRAIN_COMMIT", "c0ffee")
    (tmp_path / ".git").mkdir()
    assert git_commit() == "c0ffee"
    monkeypatch.setattr(run_directory.subprocess, "run", lambda *_, **__: Described())
    assert git_commit() == "0123abc-dirty"
