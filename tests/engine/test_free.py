"""Free adversarial training against algorithm 1 of arXiv:1904.12843, its state, and what it does not go with."""

import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from advtrain import distributed
from advtrain.attacks import Free, Scheduled
from advtrain.composition import compose
from advtrain.engine import SGD, Interrupted, checkpoints
from advtrain.engine.free import ReplayedLoader, WarmStart
from advtrain.engine.interrupts import StopRequest
from advtrain.losses import PGDAT
from advtrain.random import BatchRows, seeded_generator
from advtrain.runs import check_training
from advtrain.types import SettingError
from tests.engine.toy import Toy, network, trainer, weights_of

REPLAYS, EPS, RATE = 3, 0.05, 0.1
CPU = torch.device("cpu")


def free_run(directory: Path, **changes: Any) -> Any:
    return trainer(
        directory,
        **{
            "attack": Free(eps=EPS, replays=REPLAYS),
            "loss": PGDAT(),
            "optimizer": SGD(lr=RATE, momentum=0.0, weight_decay=0.0),
            **changes,
        },
    )


def algorithm_1(epochs: int) -> tuple[list[Tensor], Tensor]:
    """Weights and δ after `epochs` passes, each minibatch replayed: one backward for both, δ kept throughout."""
    model = network().double()
    weights = list(model.parameters())
    delta = torch.zeros(24, 3, 6, 6, dtype=torch.float64)
    loader = Toy().train_loader(batch_size=24, seed=0)
    for epoch in range(1, epochs + 1):
        for batch in loader.epoch(epoch):
            x = batch.x.double()
            for _ in range(REPLAYS):
                x_adv = (x + delta).clamp(0, 1).requires_grad_()
                loss = F.cross_entropy(model(x_adv), batch.y)
                *steps, slope = torch.autograd.grad(loss, [*weights, x_adv])
                with torch.no_grad():
                    for weight, step in zip(weights, steps, strict=True):
                        weight -= RATE * step
                delta = (delta + EPS * slope.sign()).clamp(-EPS, EPS)
    return weights_of(model), delta


def test_a_run_is_algorithm_1(tmp_path: Path) -> None:
    run = free_run(tmp_path)
    run.fit()
    weights, delta = algorithm_1(2)
    for found, expected in zip(weights_of(run.model), weights, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(run.warm_start.perturbation, delta, rtol=0, atol=1e-12)
    assert delta.flatten(1).any(1).all()  # of every row: the perturbation is warm
    assert run.position.epoch == 2 and run.train_loader.steps_per_epoch == 4 * REPLAYS


@pytest.mark.parametrize("steps", (1, 4, 6))
def test_a_run_stopped_between_replays_ends_bit_equal(
    steps: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = free_run(tmp_path / "whole")
    whole.fit()

    def stops(request: StopRequest, step: int) -> bool:
        request.number = 2
        return step == steps

    with monkeypatch.context() as patch, pytest.raises(Interrupted):
        patch.setattr(StopRequest, "must_stop", stops)
        free_run(tmp_path / "cut").fit()
    state = checkpoints.load(tmp_path / "cut" / "checkpoints" / "last.pt")
    assert state["position"]["step"] == steps and state["attack"]["perturbation"].any()
    resumed = free_run(tmp_path / "cut")
    resumed.fit()
    assert torch.equal(resumed.warm_start.perturbation, whole.warm_start.perturbation)
    assert all(torch.equal(a, b) for a, b in zip(weights_of(resumed.model), weights_of(whole.model), strict=True))


def test_other_runs_keep_no_perturbation(tmp_path: Path) -> None:
    run = trainer(tmp_path, epochs=1)
    run.fit()
    assert run.warm_start is None and "attack" not in checkpoints.load(run.last_path)


def warm(x: Tensor) -> WarmStart:
    return WarmStart(Free(eps=EPS), (4, *x.shape[1:]), device=CPU, dtype=x.dtype)


def test_the_perturbation_does_not_depend_on_how_rows_are_spread(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two processes with two rows each, gathered, hold what one process with four rows holds."""
    x = torch.rand(3, 4, 1, 3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    slopes = torch.randn(x.shape, dtype=x.dtype, generator=torch.Generator().manual_seed(1))

    def steps(start: WarmStart, rows: slice) -> WarmStart:
        for images, slope in zip(x, slopes, strict=True):
            source = BatchRows(seeded_generator(0), 4, rows)
            (start(lambda z: z, images[rows], generator=source) * slope[rows]).sum().backward()
            start.after_backward()
        return start

    alone = steps(warm(x[0]), slice(0, 4))
    monkeypatch.setattr(distributed, "world_size", lambda: 2)
    parts = []
    for rank in (0, 1):
        monkeypatch.setattr(distributed, "rank", lambda rank=rank: rank)
        parts.append(steps(warm(x[0]), slice(2 * rank, 2 * rank + 2)))
    others = [torch.cat([torch.zeros_like(x[0, :2]), parts[1].perturbation[2:]]), torch.zeros_like(x[0])]
    monkeypatch.setattr(distributed, "all_reduce_sum", lambda own: own + others[0])
    parts[0].synchronise()
    assert torch.equal(parts[0].perturbation, alone.perturbation)

    parts[1].load_state_dict(parts[0].state_dict())  # a checkpoint made by two is read by another number
    assert torch.equal(parts[1].perturbation, alone.perturbation)


@pytest.mark.usefixtures("without_type_checks")
def test_rows_that_are_not_this_processes_are_an_error() -> None:
    x = torch.rand(4, 1, 3, 3, dtype=torch.float64)
    for images, rows in ((x[:2], slice(0, 2)), (x, slice(1, 5)), (torch.cat([x, x]), slice(0, 4))):
        with pytest.raises(ValueError, match="expected all rows"):
            warm(x)(lambda z: z, images, generator=BatchRows(seeded_generator(0), 4, rows))


@pytest.mark.parametrize("start", (0, 1, 3, 7, 11))
def test_the_loader_replays_and_resumes_between_replays(start: int) -> None:
    plain = Toy().train_loader(batch_size=24, seed=0)
    replayed = ReplayedLoader(plain, 3)
    assert replayed.steps_per_epoch == 12
    expected = [batch for batch in plain.epoch(2) for _ in range(3)][start:]
    found = list(replayed.epoch(2, start))
    assert len(found) == 12 - start
    assert all(torch.equal(a.x, b.x) and torch.equal(a.y, b.y) for a, b in zip(found, expected, strict=True))


def test_a_ramp_bounds_the_perturbation_of_each_epoch(tmp_path: Path) -> None:
    run = free_run(tmp_path, attack=Scheduled(attack=Free(eps=EPS, replays=2), ramp_epochs=4), epochs=2)
    run.fit()
    assert 0 < run.warm_start.perturbation.abs().max() <= EPS / 2 + 1e-12


def test_one_backward_pass_per_replay(tmp_path: Path) -> None:
    """What free means: forward passes of the training loss alone, none of an attack."""
    run = free_run(tmp_path, epochs=1)
    forwards = []
    run.model[0].register_forward_hook(lambda *_: forwards.append(run.model.training))
    run.model.train()
    attack = run.warm_start.carrying(run.parts.attack)
    for step, batch in enumerate(itertools.islice(run.train_loader.epoch(1), 5)):
        run.step(batch, attack, run.parts.weight_perturbation, 1, step)
    assert forwards == [True] * 5


@pytest.mark.parametrize(
    ("words", "expected"),
    (
        (["loss=trades"], "attack=free with loss TRADES and loss.inner=kl: expected loss=pgd_at"),
        (["loss=pgd_at", "loss.inner=margin"], "loss.inner=margin: expected loss=pgd_at with loss.inner=ce"),
        (["loss=pgd_at", "weight_perturbation=awp"], "weight_perturbation AWP: expected none"),
        (["loss=pgd_at", "trainer.accumulation=2"], "trainer.accumulation=2: expected 1"),
    ),
)
def test_what_does_not_go_together_stops_at_start(words: list[str], expected: str) -> None:
    config = compose("train", ["experiment=quickstart", "attack=free", *words])
    with pytest.raises(SettingError, match=expected):
        check_training(config)
    config["attack"] = {"_target_": "advtrain.attacks.Scheduled", "attack": config["attack"]}
    with pytest.raises(SettingError, match=expected):
        check_training(config)
