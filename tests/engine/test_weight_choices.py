"""Every weight perturbation with every averaging, found by their YAML: a run, its resumption, its refusals."""

import signal
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

from advtrain.attacks import PGD
from advtrain.composition import choices, compose
from advtrain.config import build
from advtrain.engine import Interrupted, NoLogger, Trainer, checkpoints
from advtrain.losses import PGDAT
from advtrain.runs import check_training
from advtrain.types import SettingError
from tests.engine.toy import network, trainer, weights_of

PERTURBATIONS, AVERAGINGS = choices("weight_perturbation"), choices("averaging")
WAYS = ("averaged", "copied", "recomputed")


@cache
def settings(group: str, choice: str) -> dict[str, Any]:
    return compose("train", [f"{group}={choice}"])[group]


def part(group: str, choice: str, **changes: Any) -> Any:
    """The choice, acting from the first epoch on."""
    config = settings(group, choice)
    return build(config | {key: 1 for key in ("start_epoch",) if key in config} | changes)


class StopAfter(NoLogger):
    """Asks the run to stop, as Ctrl-C does, once it has logged this step."""

    def __init__(self, step: int) -> None:
        self.step = step

    def log(self, step: int, record: dict[str, float]) -> None:
        if step == self.step and "loss" in record:
            signal.raise_signal(signal.SIGINT)


def same(a: Any, b: Any) -> bool:
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a if key != "seconds")
    if isinstance(a, list):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b


def run(directory: Path, perturbation: str, averaging: str, logger: NoLogger, **changes: Any) -> Trainer:
    return trainer(
        directory,
        network(norm=True),
        weight_perturbation=part("weight_perturbation", perturbation),
        averaging=part("averaging", averaging, **changes),
        logger=logger,
        loss=PGDAT(),
        attack=PGD(eps=0.05, steps=1),
        batch_size=48,  # two steps in each of two epochs
    )


PRODUCT = [(p, a, {}) for p in PERTURBATIONS for a in AVERAGINGS]
OTHER_STATISTICS = [
    ("none", averaging, {"batchnorm": way})
    for averaging in AVERAGINGS
    for way in WAYS
    if settings("averaging", averaging).get("batchnorm", way) != way
]


@pytest.mark.parametrize(("perturbation", "averaging", "changes"), PRODUCT + OTHER_STATISTICS)
def test_a_run_and_its_resumption(perturbation: str, averaging: str, changes: dict[str, str], tmp_path: Path) -> None:
    """Stopped in the middle of the second epoch and continued, a run ends bit for bit like another one."""
    whole = run(tmp_path / "whole", perturbation, averaging, NoLogger(), **changes)
    start = weights_of(whole.model)
    whole.fit()
    assert not any(torch.equal(a, b) for a, b in zip(start, weights_of(whole.model), strict=True))
    assert all(torch.isfinite(tensor).all() for tensor in weights_of(whole.averaged))
    assert (averaging == "none") == same(whole.averaged.state_dict(), whole.model.state_dict())
    network(norm=True).load_state_dict(checkpoints.load(whole.best_path)["averaged"], strict=True)

    with pytest.raises(Interrupted):
        run(tmp_path / "cut", perturbation, averaging, StopAfter(3), **changes).fit()
    stopped = checkpoints.load(tmp_path / "cut" / "checkpoints" / "last.pt")["position"]
    assert (stopped["epoch"], stopped["step"]) == (1, 1)
    resumed = run(tmp_path / "cut", perturbation, averaging, NoLogger(), **changes)
    resumed.fit()
    for path, other in ((whole.last_path, resumed.last_path), (whole.best_path, resumed.best_path)):
        assert same(checkpoints.load(path), checkpoints.load(other))


@pytest.mark.parametrize("group", ("weight_perturbation", "averaging"))
def test_a_choice_that_would_never_act_is_refused(group: str) -> None:
    late = [choice for choice in choices(group) if "start_epoch" in settings(group, choice)]
    assert late
    for choice in late:
        words = ["experiment=quickstart", f"{group}={choice}", "trainer.epochs=5"]
        check_training(compose("train", [*words, f"{group}.start_epoch=5"]))
        with pytest.raises(
            SettingError, match=rf"{group}\.start_epoch: expected one of the 5 epochs, got 6: \w+ would"
        ):
            check_training(compose("train", [*words, f"{group}.start_epoch=6"]))
