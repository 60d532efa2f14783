"""One optimiser step: what it computes, what it leaves untouched, and that cutting up a batch changes nothing."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from advtrain.attacks import PGD
from advtrain.engine import AWP, NoPerturbation
from advtrain.engine.modes import attack_mode, buffers_kept
from advtrain.losses import PGDAT, TRADES, Distillation
from tests.engine.toy import DATA, LOSSES, Toy, network, trainer, weights_of

# What ARD and RSLAD ask of a step, AdaAD and IAD ask, too.
each_loss = pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow) if name in ("ard", "rslad") else name for name in LOSSES]
)


def metrics(directory: Path) -> list[dict[str, Any]]:
    import json

    return [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]


@each_loss
@pytest.mark.parametrize("perturbation", (NoPerturbation, AWP))
def test_accumulation_equals_the_large_batch(name: str, perturbation: type, tmp_path: Path) -> None:
    """Two epochs, so that the class prior is in force in the second; 5 pieces do not divide the batch evenly."""
    losses = []
    for accumulation in (1, 5):
        directory = tmp_path / str(accumulation)
        run = trainer(directory, loss=LOSSES[name](), accumulation=accumulation, weight_perturbation=perturbation())
        run.fit()
        losses.append([record["loss"] for record in metrics(directory) if "loss" in record])
    assert len(losses[0]) == 8
    assert losses[1] == pytest.approx(losses[0], rel=1e-9)


@pytest.mark.parametrize("name", DATA)
def test_accumulation_of_two_views_and_of_mixed_images_equals_the_large_batch(name: str, tmp_path: Path) -> None:
    losses = []
    for accumulation in (1, 5):
        directory = tmp_path / str(accumulation)
        run = trainer(directory, epochs=1, accumulation=accumulation, weight_perturbation=AWP(), **DATA[name]())
        run.fit()
        losses.append([record["loss"] for record in metrics(directory) if "loss" in record])
    assert len(losses[0]) == 4
    assert losses[1] == pytest.approx(losses[0], rel=1e-9)


def test_both_views_are_attacked_from_starts_of_their_own(tmp_path: Path) -> None:
    """Of the same images twice, after a step of no length."""
    seen = []

    class Watching(TRADES):
        def outer(self, model: nn.Module, x: Tensor, x_adv: Tensor, y: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
            seen.append((x, x_adv))
            return super().outer(model, x, x_adv, y)

    run = trainer(tmp_path, data=Toy(augment="none", second_view="none"), loss=Watching(second_view_weight=0.5))
    batch = next(iter(run.train_loader.epoch(1)))
    run.step(replace(batch, second=batch.x), PGD(eps=0.05, steps=1, step_size=1e-9), NoPerturbation(), 1, 0)
    x, x_adv = seen[0]
    assert torch.equal(*x.chunk(2))
    first, second = x_adv.chunk(2)
    assert (first != second).float().mean() > 0.9
    assert (x_adv - x).abs().max() < 0.0501


@each_loss
def test_training_lowers_the_loss(name: str, tmp_path: Path) -> None:
    loss = LOSSES[name]()
    trainer(tmp_path, loss=loss, epochs=6).fit()
    curve = [record["loss"] for record in metrics(tmp_path) if "loss" in record]
    if isinstance(loss, Distillation) and loss.warmup_epochs:
        curve = curve[4 * loss.warmup_epochs :]  # before it is another loss
    assert sum(curve[-4:]) < sum(curve[:4])


@pytest.mark.parametrize("batchnorm", ("eval", "train"))
def test_the_attack_leaves_the_model_as_it_was(batchnorm: str) -> None:
    model = network(norm=True).train()
    model[1].eval()  # a mode of its own
    model[0].weight.grad = torch.ones_like(model[0].weight)
    model[4].bias.requires_grad_(False)
    before = weights_of(model)
    loss, x, y = PGDAT(), torch.rand(8, 3, 6, 6), torch.arange(8) % 4
    with attack_mode(model, batchnorm):
        assert model[1].training == (batchnorm == "train")
        assert not any(p.requires_grad for p in model.parameters())
        x_adv = PGD(eps=0.1, steps=3)(loss.inner(model, x, y), x)
    assert not torch.equal(x_adv, x)
    assert all(torch.equal(a, b) for a, b in zip(before, weights_of(model), strict=True))
    assert model.training and not model[1].training
    assert torch.equal(model[0].weight.grad, torch.ones_like(model[0].weight))
    assert [p.requires_grad for p in model.parameters()] == [True, True, True, True, True, False]


def test_batchnorm_mode_changes_the_attack() -> None:
    model = network(norm=True)
    loss, x, y = PGDAT(), torch.rand(8, 3, 6, 6), torch.arange(8) % 4
    found = []
    for batchnorm in ("eval", "train"):
        with attack_mode(model, batchnorm):
            generator = torch.Generator().manual_seed(0)
            found.append(PGD(eps=0.1, steps=3)(loss.inner(model, x, y), x, generator=generator))
    assert not torch.equal(*found)


def test_an_attack_in_train_mode_sees_what_a_model_in_train_mode_computes() -> None:
    """To the bit, although BatchNorm keeps no statistics meanwhile."""
    model = network(norm=True).train()
    loss, x, y = PGDAT(), torch.rand(8, 3, 6, 6), torch.arange(8) % 4
    with attack_mode(model, "train"):
        found = PGD(eps=0.1, steps=3)(loss.inner(model, x, y), x, generator=torch.Generator().manual_seed(0))
    expected = PGD(eps=0.1, steps=3)(loss.inner(model, x, y), x, generator=torch.Generator().manual_seed(0))
    assert torch.equal(found, expected)


def test_buffers_come_back_after_an_error() -> None:
    model = network(norm=True).train()
    before = model[1].running_mean.clone()
    with pytest.raises(RuntimeError), buffers_kept(model):
        model(torch.rand(4, 3, 6, 6))
        assert not torch.equal(model[1].running_mean, before)
        raise RuntimeError
    assert torch.equal(model[1].running_mean, before)


def test_clipping_bounds_the_gradient(tmp_path: Path) -> None:
    run = trainer(tmp_path, clip_norm=1e-3, epochs=1)
    run.fit()
    norm = torch.stack([p.grad.norm() for p in run.model.parameters() if p.grad is not None]).norm()
    assert norm == pytest.approx(1e-3, rel=1e-3)


def test_natural_logits_are_computed_once_and_no_weight_gets_a_gradient() -> None:
    """Counts what one attack of K steps costs: 1 natural forward and K forward-backward passes to the images."""
    model = network()
    forwards = []
    model[0].register_forward_hook(lambda *_: forwards.append(torch.is_grad_enabled()))
    x, y = torch.rand(4, 3, 6, 6), torch.arange(4)
    with attack_mode(model):
        PGD(eps=0.1, steps=5)(TRADES().inner(model, x, y), x)
    assert forwards == [False] + [True] * 5
    assert all(p.grad is None for p in model.parameters())


def test_what_layers_draw_is_named_by_the_step(tmp_path: Path) -> None:
    """Dropout draws alike whatever was drawn from the global generator before, and otherwise in another step."""

    def loss(before: int, step: int) -> float:
        model = nn.Sequential(nn.Dropout(0.5), network())
        run = trainer(tmp_path, model, loss=TRADES())
        batch = next(iter(run.train_loader.epoch(1)))
        run.model.train()
        torch.rand(before)
        return float(run.step(batch, None, NoPerturbation(), 1, step)["loss"])

    assert loss(3, 0) == loss(70, 0) != loss(3, 1)
