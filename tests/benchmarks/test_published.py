"""The published way of a step, in float64, against advtrain's: the same images and the same gradient from one start."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from advtrain.attacks import PGD
from advtrain.data.base import Batch
from advtrain.engine import AWP, NoPerturbation
from advtrain.engine.numerics import Numerics
from advtrain.engine.step import TrainingStep
from advtrain.losses import IKL, PGDAT, TRADES
from advtrain.models import SmallPreActResNet
from benchmarks import published
from benchmarks.published import Ball, ClassMeans, IKLSettings, Proxy

BALL = Ball(eps=0.06, steps=4, step_size=0.02)
CLASSES, N = 4, 6
LR, DECAY, GAMMA = 0.1, 0.05, 0.3
LOSSES = {
    "pgd_at": lambda: PGDAT(),
    "trades": lambda: TRADES(),
    "ikl": lambda: IKL(num_classes=CLASSES, inner="ikl"),
    "ikl_awp": lambda: IKL(num_classes=CLASSES, inner="ikl"),
}


def plain() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Flatten(), nn.Linear(6 * 6 * 6, CLASSES))


NETWORKS = {"plain": plain, "batchnorm": lambda: SmallPreActResNet(num_classes=CLASSES, width=4)}


def network(kind: str) -> nn.Module:
    """With BatchNorm statistics that are not those of initialisation, so that eval and train mode differ."""
    torch.manual_seed(5)
    model = NETWORKS[kind]().double().train()
    with torch.no_grad():
        for _ in range(3):
            model(torch.rand(16, 3, 8, 8, dtype=torch.float64))
    return model


def batch() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(11)
    return torch.rand(N, 3, 8, 8, generator=generator, dtype=torch.float64), torch.arange(N) % CLASSES


def optimizer(model: nn.Module, decay: float = 0.0) -> torch.optim.SGD:
    return torch.optim.SGD(model.parameters(), lr=LR, momentum=0.9, weight_decay=decay)


def prior_rows() -> Tensor:
    """A class prior that is not uniform; numbers that float32 holds exactly, rows that sum to exactly 1."""
    return torch.tensor([[5, 1, 1, 1], [1, 4, 2, 1], [0, 2, 6, 0], [3, 1, 1, 3]]) / 8


def settings(loss: Any) -> IKLSettings:
    means = ClassMeans(CLASSES, loss.prior.temperature, torch.zeros((), dtype=torch.float64))
    means.weights = loss.prior.weights.double()
    return IKLSettings(means)


class Outcome:
    """One step in both ways from the same weights and the same start, and what each leaves."""

    def __init__(self, name: str, kind: str, decay: float = 0.0) -> None:
        x, y = batch()
        attack = PGD(eps=BALL.eps, steps=BALL.steps, step_size=BALL.step_size, init="gaussian")
        self.seen: list[Tensor] = []
        self.ours, self.theirs, self.before = network(kind), network(kind), network(kind)
        self.loss = LOSSES[name]()
        if isinstance(self.loss, IKL):
            self.loss.prior.weights.copy_(prior_rows())
            self.settings = settings(self.loss)
        start = published.same_start(attack, x, seed=0, epoch=1, step=0)
        self._ours(x, y, attack, name, decay)
        self.done = self._theirs(x, y, start, name, decay)

    def _ours(self, x: Tensor, y: Tensor, attack: PGD, name: str, decay: float) -> None:
        outer = self.loss.outer

        def watched(model: nn.Module, x: Tensor, x_adv: Tensor, y: Tensor) -> Any:
            self.seen.append(x_adv)
            return outer(model, x, x_adv, y)

        self.loss.outer = watched
        step = TrainingStep(
            self.ours,
            self.loss,
            optimizer(self.ours, decay),
            numerics=Numerics(torch.device("cpu"), torch.float64),
            batch_size=N,
            accumulation=1,
            attack_batchnorm="eval",
            clip_norm=None,
            seed=0,
        )
        perturbation = AWP(gamma=GAMMA) if name == "ikl_awp" else NoPerturbation()
        self.parts = step(Batch(x, y, slice(0, N)), attack, perturbation, 1, 0)

    def _theirs(self, x: Tensor, y: Tensor, start: Tensor, name: str, decay: float) -> published.Done:
        common = (self.theirs, optimizer(self.theirs, decay), BALL)
        if name == "pgd_at":
            return published.pgd_at_step(*common, x, y, start)
        if name == "trades":
            return published.trades_step(*common, x, y, start)
        if name == "ikl_awp":
            self.settings = replace(self.settings, proxy=Proxy(self.theirs, gamma=GAMMA))
        return published.ikl_step(*common, self.settings, x, y, start)


@pytest.mark.parametrize("kind", NETWORKS)
@pytest.mark.parametrize("name", published.STEPS)
def test_the_published_step_is_ours(name: str, kind: str) -> None:
    """But for rounding: images, gradients, what is logged, running statistics and the new weights."""
    both = Outcome(name, kind)
    x, _ = batch()
    assert (both.done.x_adv - x).abs().max() > 0.05  # the attack went somewhere
    assert torch.allclose(both.done.x_adv, both.seen[-1], rtol=0, atol=1e-12)
    ours = dict(both.ours.named_parameters())
    for key, parameter in both.theirs.named_parameters():
        assert parameter.grad.abs().max() > 0, key
        assert torch.allclose(parameter.grad, ours[key].grad, rtol=1e-8, atol=1e-11), key
    for key, value in both.theirs.state_dict().items():  # without decay: the weights after the step, too
        assert torch.allclose(value, both.ours.state_dict()[key], rtol=1e-8, atol=1e-11), key
    assert both.done.loss == pytest.approx(both.parts["loss"].item(), rel=1e-9)
    assert both.done.accuracy == pytest.approx(both.parts["robust_accuracy"].item())


def test_the_class_prior_gathers_the_same() -> None:
    both = Outcome("ikl", "batchnorm")
    assert torch.allclose(both.settings.prior.gathered, both.loss.prior.sums, rtol=1e-9)
    both.settings.prior.end_epoch()
    both.loss.prior.end_epoch()
    assert torch.allclose(both.settings.prior.weights.float(), both.loss.prior.weights)


def test_weight_decay_acts_on_the_perturbed_weights_in_the_published_awp() -> None:
    """w' there = w' here - lr · wd · v, with v the perturbation γ‖w‖ g/‖g‖ of each matrix; vectors do not move."""
    both = Outcome("ikl_awp", "plain", decay=DECAY)
    without = Outcome("ikl_awp", "plain")
    x, y = batch()
    copy = both.before
    loss, *_ = published.ikl_loss(copy, both.settings, both.settings.prior.rows(y), x, both.seen[-1], y)
    loss.backward()
    for key, start in copy.named_parameters():
        move = GAMMA * start.norm() / start.grad.norm() * start.grad if start.dim() > 1 else torch.zeros_like(start)
        ours, theirs = both.ours.state_dict()[key], both.theirs.state_dict()[key]
        assert torch.allclose(theirs, ours - LR * DECAY * move, rtol=1e-9, atol=1e-12), key
        assert start.dim() == 1 or (LR * DECAY * move).abs().max() > 1e-4, key  # far above the tolerance
        assert torch.allclose(without.theirs.state_dict()[key], without.ours.state_dict()[key], rtol=1e-9), key


def test_a_step_can_be_built_by_name_and_starts_by_itself() -> None:
    x, y = batch()
    for name in published.STEPS:
        model = network("batchnorm")
        done = published.build(name, model, optimizer(model), BALL, num_classes=CLASSES)(x, y)
        inside = (done.x_adv - x).abs().max() <= BALL.eps + 1e-12 and done.x_adv.min() >= 0 and done.x_adv.max() <= 1
        assert inside and not torch.equal(done.x_adv, x)
    with pytest.raises(ValueError, match="expected one of pgd_at, trades"):
        published.build("free", network("plain"), None, BALL)  # pyright: ignore[reportArgumentType]
