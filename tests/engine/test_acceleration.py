"""Training with compiled passes gives the same numbers as without.

Most tests trace and differentiate as torch.compile does but run the graphs' operations one by one ("aot_eager"), which
takes no C++ compiler and lets results be compared to the last digits; one runs the code that users get.
"""

import copy
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch

from advtrain.attacks import APGD, NFGSM, PGD, Free, Scheduled
from advtrain.attacks.ascent import Eager
from advtrain.config import ThreatSettings
from advtrain.engine import AWP, EMA, SAM, checkpoints
from advtrain.engine.acceleration import Acceleration, Passes, compiled
from advtrain.engine.modes import attack_mode
from advtrain.losses import IKL, PGDAT, TRADES
from tests.engine.accelerating import EPS, MODEL, STEP, accelerated, assert_same_training, chosen, trained
from tests.engine.toy import DATA, LOSSES, network, trainer

pytestmark = pytest.mark.usefixtures("traceable")


@pytest.mark.usefixtures("aot_eager")
@pytest.mark.parametrize(
    ("name", "norm"),
    chosen([*product(LOSSES, (True,)), ("mart", False), ("gkl", False)], {("ikl", True), ("kd", True)}),
)
def test_training_is_the_same(name: str, norm: bool, tmp_path: Path) -> None:
    """Two epochs, a class prior in force in the second; weights perturbed; statistics and their counts averaged."""
    assert_same_training(
        tmp_path,
        lambda: {
            "model": network(norm),
            "loss": LOSSES[name](),
            "weight_perturbation": AWP(),
            "averaging": EMA(),
        },
    )


@pytest.mark.usefixtures("aot_eager")
@pytest.mark.parametrize("name", ("two_views", pytest.param("mixup", marks=pytest.mark.slow)))
def test_training_is_the_same_with_two_views_mixed_images_and_accumulation(name: str, tmp_path: Path) -> None:
    assert_same_training(
        tmp_path,
        lambda: {
            "model": network(norm=True),
            "accumulation": 5,
            "weight_perturbation": SAM(),
            "epochs": 1,
            **DATA[name](),
        },
        (STEP,),
    )


ATTACKS = {
    "l2": lambda: PGD(norm="l2", eps=EPS["l2"], steps=2),
    "l1": lambda: PGD(norm="l1", eps=EPS["l1"], steps=2),
    "restarts": lambda: PGD(eps=EPS["linf"], steps=2, restarts=2),
    "apgd": lambda: APGD(eps=EPS["linf"], steps=4),
    "n_fgsm": lambda: NFGSM(eps=EPS["linf"]),
    "scheduled": lambda: Scheduled(attack=PGD(norm="l2", eps=EPS["l2"], steps=1), steps=[1, 2]),
    "free": lambda: Free(eps=EPS["linf"], replays=2),
}


@pytest.mark.usefixtures("aot_eager")
@pytest.mark.parametrize(
    ("name", "batchnorm"),
    chosen([*product(ATTACKS, ("eval",)), ("l1", "train"), ("apgd", "train")], set()),
)
def test_training_is_the_same_with_every_attack(name: str, batchnorm: str, tmp_path: Path) -> None:
    def make() -> dict[str, Any]:
        attack = ATTACKS[name]()
        return {
            "model": network(norm=True),
            "loss": PGDAT() if name == "free" else TRADES(),
            "attack": attack,
            "attack_batchnorm": batchnorm,
            "threat": ThreatSettings(attack.norm, str(EPS[attack.norm])),
        }

    assert_same_training(tmp_path, make)


@pytest.mark.parametrize("acceleration", (pytest.param(MODEL, marks=pytest.mark.slow), STEP), ids=str)
def test_what_users_get_is_the_same_too(acceleration: Acceleration, tmp_path: Path) -> None:
    assert_same_training(
        tmp_path,
        lambda: {"model": network(norm=True), "loss": IKL(num_classes=4, inner="ikl"), "weight_perturbation": AWP()},
        (acceleration,),
    )


@pytest.mark.usefixtures("aot_eager")
def test_nothing_but_the_calls_is_another(tmp_path: Path) -> None:
    """State dicts, copies and attributes are those of the bare model."""
    run = accelerated(trainer(tmp_path, network(norm=True), averaging=EMA(), epochs=1), STEP)
    run.fit()
    keys = list(network(norm=True).state_dict())
    saved = checkpoints.load(run.last_path, torch.device("cpu"))
    for state in (run.model.state_dict(), run.averaged.state_dict(), saved["model"], saved["averaged"]):
        assert list(state) == keys
    for model in (run.averaged, copy.deepcopy(run.model)):
        assert [type(module) for module in model.modules()] == [type(module) for module in network(True).modules()]


@pytest.mark.usefixtures("aot_eager")
def test_a_compiled_model_is_the_model_to_those_who_look() -> None:
    model = network(norm=True)
    model.temperature = 3.0
    outside = compiled.CompiledModel(model)
    assert outside.temperature == 3.0
    with pytest.raises(AttributeError):
        _ = outside.nothing
    assert list(outside.parameters()) == list(model.parameters())
    for training in (False, True):
        outside.train(training)
        assert outside.training == model.training == model[1].training == training
        model.train(not training)
        assert outside.training != training


@pytest.mark.slow
@pytest.mark.usefixtures("aot_eager")
def test_a_resumed_run_is_the_same(tmp_path: Path) -> None:
    whole, _ = trained(tmp_path / "whole", STEP, model=network(norm=True), epochs=2)
    trained(tmp_path / "parts", STEP, model=network(norm=True), epochs=1)
    resumed, _ = trained(tmp_path / "parts", STEP, model=network(norm=True), epochs=2)
    assert resumed == whole


@pytest.mark.usefixtures("aot_eager")
def test_a_compiled_step_casts_as_autocast_says() -> None:
    model, x, y, loss = network(norm=True), torch.rand(4, 3, 6, 6), torch.arange(4), PGDAT()
    passes = Passes(model, STEP)
    gradients = []
    for bf16 in (True, False):
        with attack_mode(model), torch.autocast("cpu", dtype=torch.bfloat16, enabled=bf16):
            for ascent, seen in ((passes.ascent, passes.attacked), (Eager(), model)):
                gradients.append(ascent.value_and_gradient(loss.inner(seen, x, y), x)[1])
    assert [gradient.dtype for gradient in gradients] == [torch.float32] * 4
    torch.testing.assert_close(gradients[0], gradients[1], rtol=0.02, atol=1e-3)
    torch.testing.assert_close(gradients[2], gradients[3])
    assert not torch.allclose(gradients[0], gradients[2], rtol=1e-4, atol=1e-6)
