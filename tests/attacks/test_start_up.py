"""Attacks through the command line's machinery: what is refused, what is announced, what a recipe leaves behind."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from advtrain import opening as openings
from advtrain.composition import choices, compose
from advtrain.config import build
from advtrain.losses import PGDAT
from advtrain.runs import check_training, make_trainer
from advtrain.types import Attack, SettingError
from tests.engine.toy import trainer

DIGITS = ["experiment=quickstart", "eval=none"]


def opening(directory: Path, *words: str) -> str:
    config = compose("train", [*DIGITS, *words])
    parts = check_training(config)
    return openings.opening(make_trainer(config, parts, directory), parts, directory)


@pytest.mark.parametrize(
    ("words", "where"),
    (
        (["attack=fgsm_rs"], "1 step of 0.25 from U(ball)"),
        (["attack=fgsm_rs_ramp"], "growing over 5 epochs"),
        (["attack=n_fgsm"], "unprojected: ‖x' - x‖_inf ≤ 0.6"),
        (["attack=free", "loss=pgd_at"], "replayed 8 times, so an epoch costs 8"),
        (["attack.steps=1"], "1 step of 0.05"),
    ),
)
def test_one_step_attacks_announce_what_watches_them(words: list[str], where: str, tmp_path: Path) -> None:
    text = opening(tmp_path, *words, "trainer.validation.steps=7", "trainer.validation.restarts=3")
    (line,) = [line for line in text.splitlines() if line.startswith("watch")]
    assert "overfit catastrophically; a warning names the epoch" in line and "3 starts of 7 steps" in text
    assert where in text


def test_a_one_step_validation_is_not_called_a_watch(tmp_path: Path) -> None:
    assert "trainer.validation.steps=10" in opening(tmp_path, "attack=n_fgsm", "trainer.validation.steps=1")


def test_clean_accuracy_is_said_to_watch_nothing(tmp_path: Path) -> None:
    text = opening(tmp_path, "attack=fgsm_rs", "trainer.validation.select=clean")
    lines = [line for line in text.splitlines() if line.startswith(("select", "watch", "          because"))]
    assert lines == [
        "select    best.pt by clean accuracy on 100 held-out images",
        "          because trainer.validation.select=clean",
        "watch     one-step attacks can overfit catastrophically; clean accuracy does not show it",
    ]


def test_several_steps_need_no_watch_and_objectives_are_shown(tmp_path: Path) -> None:
    text = opening(tmp_path, "attack=apgd", "loss=pgd_at", "loss.inner=dlr")
    assert "watch" not in text and "5 steps of APGD" in text
    assert "(max_j≠y f_j(x') - f_y(x')) / (f_1st(x') - f_3rd(x'))" in text and "BatchNorm in eval mode" in text


def test_free_says_that_batchnorm_trains(tmp_path: Path) -> None:
    text = opening(tmp_path, "attack=free", "loss=pgd_at")
    assert "BatchNorm in train mode" in text and "30 epochs of 160 steps" in text  # 1,337 // 64 · 8


@pytest.mark.parametrize(
    ("words", "expected"),
    (
        (["attack=fgsm"], "attack.init=none with loss.inner=kl"),
        (["attack=ikl_2345", "attack.attack.init=none"], "attack.init=none with loss.inner=kl"),
        (["attack=n_fgsm", "attack.noise=0"], "attack.init=none with loss.inner=kl"),
        (["loss=pgd_at", "loss.inner=dlr", "data.num_classes=2"], "loss.inner=dlr: expected 3 or more classes, got 2"),
        (["threat.norm=l3"], "threat.norm: expected one of linf, l2, l1, got 'l3'"),
        (["attack=apgd", "threat.norm=l1"], "expected linf or l2 for APGD"),
        (["attack=fgsm_rs", "attack.step_size=0.1"], "expected none beside attack.relative_step_size=1.25"),
    ),
)
def test_refusals(words: list[str], expected: str) -> None:
    with pytest.raises(SettingError, match=expected):
        check_training(compose("train", [*DIGITS, *words]))


class Shift(Attack):
    """An attack of a user's own, with the least it needs."""

    def __call__(self, objective: Any, x: Tensor, *, generator: Any = None) -> Tensor:
        return (x + 0.01).clamp(0, 1)


class Stranger:
    def __call__(self, objective: Any, x: Tensor, *, generator: Any = None) -> Tensor:
        return x


def test_an_own_attack_trains(tmp_path: Path) -> None:
    run = trainer(tmp_path, attack=Shift(), loss=PGDAT(), epochs=1)
    before = run.model[0].weight.detach().clone()
    run.fit()
    assert not torch.equal(run.model[0].weight, before)


@pytest.mark.parametrize(("name", "works"), (("Shift", True), ("Stranger", False)))
def test_own_classes_are_named_in_a_config(name: str, works: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "my_attacks", sys.modules[__name__])
    config = compose("train", DIGITS) | {"attack": {"_target_": f"my_attacks.{name}"}}
    if works:
        assert isinstance(check_training(config)["attack"], Shift)
    else:
        with pytest.raises(SettingError, match=r"derived from advtrain.attacks.Attack, got Stranger"):
            check_training(config)


def test_nested_classes_of_a_stored_config_must_be_ours_too() -> None:
    stored = compose("train", ["attack=ikl_2345", "data=cifar10"])["attack"]
    assert build(stored, trusted=False).for_epoch(1, 4).steps == 2
    stored["attack"]["_target_"] = "os.getcwd"
    with pytest.raises(SettingError, match=r"expected a class of advtrain in the stored config, got os.getcwd"):
        build(stored, trusted=False)


@pytest.mark.parametrize("name", [name for name in choices("attack") if name != "pgd"])
def test_another_attack_under_a_recipe_has_its_own_numbers(name: str) -> None:
    """quickstart sets PGD's steps and step size; whoever chooses another attack gets that attack as it is."""
    plain = compose("train", ["data=digits", "model=small_cnn", f"attack={name}"])["attack"]
    assert compose("train", ["experiment=quickstart", f"attack={name}"])["attack"] == plain


def test_nested_settings_of_a_recipe_stay_with_it_and_those_of_the_command_line_count(tmp_path: Path) -> None:
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "mine.yaml").write_text(
        "# @package _global_\ndefaults:\n  - override /data: digits\n  - override /model: small_cnn\n"
        "  - override /attack: ikl_2345\nattack:\n  attack:\n    init: none\n    restarts: 2\n"
    )
    kept = compose("train", ["experiment=mine"], tmp_path)["attack"]["attack"]
    assert (kept["init"], kept["restarts"]) == ("none", 2)
    other = compose("train", ["experiment=mine", "attack=pgd_ramp", "attack.attack.restarts=3"], tmp_path)["attack"]
    assert (other["attack"]["init"], other["attack"]["restarts"], other["ramp_epochs"]) == ("uniform", 3, 5)
