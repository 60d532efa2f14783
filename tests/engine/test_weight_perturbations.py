"""Perturbations of the weights against their formulas in float64, with every loss; exact restoration; no trace."""

import copy
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from advtrain.composition import choices, compose
from advtrain.config import build
from advtrain.engine import ASAM, AWP, SAM, NoPerturbation
from tests.engine.toy import network, trainer, with_teacher

PERTURBATIONS = [name for name in choices("weight_perturbation") if name != "none"]
LOSSES = choices("loss")


@cache
def settings(group: str, choice: str) -> dict[str, Any]:
    """What the YAML says, for data of four classes."""
    data = ["data=npz", "data.train=a", "data.test=b", "data.num_classes=4"]
    return compose("train", [*data, f"{group}={choice}"])[group]


def perturbation(name: str, **changes: Any) -> Any:
    return build(settings("weight_perturbation", name) | {"start_epoch": 1} | changes)


def parameters(model: nn.Module) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def equal(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def length(tensors: Any) -> float:
    """The L2 norm over all entries of all tensors, entry by entry."""
    return sum(value**2 for tensor in tensors for value in tensor.flatten().tolist()) ** 0.5


def awp_moves(own: AWP, weights: dict[str, Tensor], gradients: dict[str, Tensor]) -> dict[str, Tensor]:
    return {
        name: own.gamma * length([w]) / length([gradients[name]]) * gradients[name] if w.dim() > 1 else 0 * w
        for name, w in weights.items()
    }


def sam_moves(own: SAM, weights: dict[str, Tensor], gradients: dict[str, Tensor]) -> dict[str, Tensor]:
    norm = length(gradients.values())
    return {name: own.rho * g / norm for name, g in gradients.items()}


def asam_moves(own: ASAM, weights: dict[str, Tensor], gradients: dict[str, Tensor]) -> dict[str, Tensor]:
    scale = {name: w.abs() + own.eta if name.endswith("weight") else torch.ones_like(w) for name, w in weights.items()}
    norm = length(scale[name] * g for name, g in gradients.items())
    return {name: own.rho * scale[name] ** 2 * g / norm for name, g in gradients.items()}


SLOW: dict[str, Callable[..., dict[str, Tensor]]] = {"awp": awp_moves, "sam": sam_moves, "asam": asam_moves}


class Watched:
    """A perturbation that keeps what it met: the weights before, inside and after the block."""

    def __init__(self, inner: Any) -> None:
        self.inner = inner

    def for_epoch(self, epoch: int) -> "Watched":
        return self

    @contextmanager
    def __call__(self, model: nn.Module, ascent: Callable[[], None]) -> Iterator[None]:
        self.before = parameters(model)
        with self.inner(model, ascent):
            self.inside = parameters(model)
            assert all(p.grad is None for p in model.parameters())
            yield
        self.after = parameters(model)
        self.gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("name", PERTURBATIONS)
def test_a_step_with_every_loss(name: str, loss: str, tmp_path: Path) -> None:
    """The perturbation is the formula's, the step's gradient that at the perturbed weights, the weights come back."""
    watched = Watched(perturbation(name))
    criterion = with_teacher(build(settings("loss", loss)))
    run = trainer(tmp_path, network(norm=True), loss=criterion, weight_perturbation=watched)
    model, criterion = copy.deepcopy(run.model).train(), copy.deepcopy(run.loss)
    passes: list[tuple[Tensor, Tensor, Tensor]] = []
    run.step._replica.register_forward_pre_hook(lambda _, inputs: passes.append(inputs))
    batch = next(iter(run.train_loader.epoch(1)))
    run.model.train()
    attack = run.parts.attack.for_epoch(1, 2) if run.parts.attack is not None and run.loss.needs_attack else None
    run.step(batch, attack, watched, 1, 0)
    assert len(passes) == 2 and all(torch.equal(a, b) for a, b in zip(*passes, strict=True))

    criterion.start_batch(batch.y, *passes[0][3:4])  # the teacher's logits of x

    def gradients(weights: dict[str, Tensor]) -> dict[str, Tensor]:
        trial = copy.deepcopy(model)
        trial.load_state_dict(weights, strict=False)
        total, _ = copy.deepcopy(criterion).outer(trial, *passes[0])
        total.backward()
        return {key: p.grad for key, p in trial.named_parameters() if p.grad is not None}

    ascent = gradients(watched.before)
    assert ascent.keys() == watched.before.keys()
    moves = SLOW[name](watched.inner, watched.before, ascent)
    for key, before in watched.before.items():
        torch.testing.assert_close(watched.inside[key] - before, moves[key], rtol=1e-9, atol=1e-12)
    assert any(moves[key].any() for key in moves)
    assert equal(watched.after, watched.before)
    expected = gradients(watched.inside)
    assert expected.keys() == watched.gradients.keys()
    for key, gradient in watched.gradients.items():
        torch.testing.assert_close(gradient, expected[key], rtol=1e-9, atol=1e-12)


def cross_entropy_ascent(model: nn.Module) -> Callable[[], None]:
    x, y = torch.rand(8, 3, 6, 6), torch.arange(8) % 4
    return lambda: nn.functional.cross_entropy(model(x), y).backward()


@pytest.mark.parametrize("name", PERTURBATIONS)
class TestEvery:
    def test_weights_come_back_after_an_error(self, name: str) -> None:
        model = network(norm=True)
        before = parameters(model)
        with pytest.raises(RuntimeError, match="in the step"), perturbation(name)(model, cross_entropy_ascent(model)):
            assert not equal(parameters(model), before)
            raise RuntimeError("in the step")
        assert equal(parameters(model), before)

    def test_weights_stay_after_an_error_in_the_ascent(self, name: str) -> None:
        def broken() -> None:
            cross_entropy_ascent(model)()
            raise RuntimeError("in the ascent")

        model = network(norm=True)
        before = parameters(model)
        with pytest.raises(RuntimeError, match="in the ascent"), perturbation(name)(model, broken):
            raise AssertionError("the block must not run")
        assert equal(parameters(model), before)

    def test_the_loss_is_higher_inside(self, name: str) -> None:
        model = network(norm=True).double().eval()
        x, y = torch.rand(8, 3, 6, 6, dtype=torch.float64), torch.arange(8) % 4

        def loss() -> Tensor:
            return nn.functional.cross_entropy(model(x), y)

        plain = loss().item()
        with perturbation(name)(model, lambda: loss().backward()):
            assert loss().item() > plain

    def test_a_zero_gradient_moves_nothing(self, name: str) -> None:
        model = network(norm=True)
        before = parameters(model)
        with perturbation(name)(model, lambda: (model(torch.rand(2, 3, 6, 6)).sum() * 0).backward()):
            assert equal(parameters(model), before)

    def test_parameters_without_a_gradient_stay(self, name: str) -> None:
        model = network(norm=True)
        model[0].requires_grad_(False)
        before = parameters(model)
        with perturbation(name)(model, cross_entropy_ascent(model)):
            inside = parameters(model)
        assert torch.equal(inside["0.weight"], before["0.weight"])
        assert not torch.equal(inside["4.weight"], before["4.weight"])

    def test_it_waits_for_its_epoch(self, name: str) -> None:
        waiting = perturbation(name, start_epoch=3)
        assert isinstance(waiting.for_epoch(2), NoPerturbation)
        assert waiting.for_epoch(3) is waiting

    def test_the_ascent_leaves_no_trace_in_prior_and_statistics(self, name: str, tmp_path: Path) -> None:
        """A perturbation of size 0 moves nothing: the run must be the one without, buffers and prior included."""
        states = []
        size = "gamma" if name == "awp" else "rho"
        for i, choice in enumerate((NoPerturbation(), perturbation(name, **{size: 0}))):
            run = trainer(tmp_path / str(i), network(norm=True), weight_perturbation=choice)
            run.fit()
            states.append({**run.model.state_dict(), **run.loss.state_dict()})
        assert equal(*states)

    def test_accumulation_equals_the_large_batch(self, name: str, tmp_path: Path) -> None:
        """Five pieces do not divide the batch evenly."""
        curves = []
        for accumulation in (1, 5):
            directory = tmp_path / str(accumulation)
            trainer(directory, accumulation=accumulation, weight_perturbation=perturbation(name)).fit()
            records = map(json.loads, (directory / "metrics.jsonl").read_text().splitlines())
            curves.append([record["loss"] for record in records if "loss" in record])
        assert len(curves[0]) == 8
        assert curves[1] == pytest.approx(curves[0], rel=1e-9)


def test_awp_is_the_published_algorithm_but_for_the_weight_decay() -> None:
    """The published order: proxy SGD step, normalised difference, optimiser step on w + v, subtraction of v."""
    lr, decay, gamma = 0.1, 5e-4, 0.01
    x, y = torch.rand(8, 3, 6, 6, dtype=torch.float64), torch.arange(8) % 4

    def loss(model: nn.Module) -> Tensor:
        return nn.functional.cross_entropy(model(x), y)

    def sgd(model: nn.Module, lr: float, decay: float = 0) -> torch.optim.SGD:
        return torch.optim.SGD(model.parameters(), lr=lr, weight_decay=decay)

    ours = network().double()
    start = parameters(ours)
    with AWP(gamma=gamma)(ours, lambda: loss(ours).backward()):
        loss(ours).backward()
    sgd(ours, lr, decay).step()

    for proxy_lr in (0.01, lr):  # which one makes no difference
        model, proxy = network().double(), network().double()
        (-loss(proxy)).backward()
        sgd(proxy, proxy_lr).step()
        v = {}
        for name, moved in proxy.named_parameters():
            difference = moved.detach() - start[name]
            is_weight = "weight" in name and moved.dim() > 1
            v[name] = gamma * start[name].norm() / difference.norm() * difference if is_weight else 0 * difference
        with torch.no_grad():
            for name, p in model.named_parameters():
                p.add_(v[name])
        loss(model).backward()
        sgd(model, lr, decay).step()
        for name, p in ours.named_parameters():
            published = dict(model.named_parameters())[name] - v[name]
            torch.testing.assert_close(published, p - lr * decay * v[name], rtol=1e-9, atol=1e-12)


def linear_loss(model: nn.Module, slopes: dict[str, Tensor]) -> Tensor:
    return sum(((slopes[name] * p).sum() for name, p in model.named_parameters()), torch.zeros(()))


@pytest.mark.parametrize("name", ("sam", "asam"))
def test_no_other_move_of_that_size_raises_a_linear_loss_more(name: str) -> None:
    """The defining property: ε maximises the first-order loss over the ball ‖T⁻¹ε‖ ≤ ρ, where T = 1 for SAM."""
    model, own = network(norm=True).double(), perturbation(name)
    slopes = {key: torch.randn_like(p) for key, p in model.named_parameters()}
    before = parameters(model)
    scale = {
        key: p.abs() + own.eta if name == "asam" and "weight" in key else torch.ones_like(p)
        for key, p in before.items()
    }
    with own(model, lambda: linear_loss(model, slopes).backward()):
        moves = {key: p - before[key] for key, p in parameters(model).items()}
    assert length(moves[key] / scale[key] for key in moves) == pytest.approx(own.rho, rel=1e-9)
    gain = sum((slopes[key] * moves[key]).sum().item() for key in moves)
    # the maximum of a linear function over an ellipsoid: ρ‖T·g‖
    assert gain == pytest.approx(own.rho * length(scale[key] * slopes[key] for key in slopes), rel=1e-9)
    for trial in range(50):  # near and far from the move
        other = {key: move / scale[key] + 0.01 * 1.2**trial * torch.randn_like(move) for key, move in moves.items()}
        size = length(other.values())
        assert sum((slopes[key] * o * scale[key]).sum().item() for key, o in other.items()) * own.rho / size < gain


def test_asam_does_not_see_a_rescaling_of_layers_and_sam_does() -> None:
    """Layers scaled by 2 and ½ make the same function of a ReLU network; with η = 0 so do the perturbed ones."""
    x, y = torch.rand(16, 5, dtype=torch.float64), torch.arange(16) % 3
    found = {}
    for own in (ASAM(rho=0.3, eta=0), SAM(rho=0.3)):
        for factor in (1, 2):
            torch.manual_seed(5)
            first, second = nn.Linear(5, 7, bias=False).double(), nn.Linear(7, 3, bias=False).double()
            model = nn.Sequential(first, nn.ReLU(), second)
            with torch.no_grad():
                first.weight.mul_(factor)
                second.weight.div_(factor)
            with own(model, lambda model=model: nn.functional.cross_entropy(model(x), y).backward()):
                found[type(own), factor] = nn.functional.cross_entropy(model(x), y).item()
    assert found[ASAM, 2] == pytest.approx(found[ASAM, 1], rel=1e-12)
    assert found[SAM, 2] != pytest.approx(found[SAM, 1], rel=1e-3)
