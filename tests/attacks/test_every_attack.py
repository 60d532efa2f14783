"""The properties that every attack has to have, over every file in configs/attack and every norm."""

from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from advtrain.attacks.norms import NORMS, norm_named
from advtrain.composition import choices, compose
from advtrain.config import build
from advtrain.engine.modes import attack_mode
from advtrain.losses import PGDAT
from advtrain.random import BatchRows, seeded_generator
from advtrain.types import Attack, SettingError

ATTACKS = [name for name in choices("attack") if name != "none"]
EPS = {"linf": 0.1, "l2": 0.6, "l1": 1.5}
REFUSED = {("apgd", "l1")}  # with a message of its own: tests/attacks/test_apgd.py
EVERY = [(name, norm) for name in ATTACKS for norm in NORMS if (name, norm) not in REFUSED]


@cache
def composed(name: str, norm: str) -> dict[str, Any]:
    words = [f"attack={name}", "data=digits", "model=small_cnn", f"threat.norm={norm}", f"threat.eps={EPS[norm]}"]
    return compose("train", words)["attack"]


def without_radius(config: dict[str, Any]) -> dict[str, Any]:
    """`config` with eps=0, also of a nested attack."""
    changed = {key: without_radius(value) if isinstance(value, dict) else value for key, value in config.items()}
    return changed | {"eps": 0.0}


def configured(name: str, norm: str) -> Attack:
    """The attack of a file in epoch 3 of 4, as a run would build it."""
    return build(composed(name, norm)).for_epoch(3, 4)


def images(n: int = 5, low: float = 0.0, high: float = 1.0) -> Tensor:
    draws = torch.rand(n, 2, 3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    return low + (high - low) * draws


def linear(x: Tensor) -> Tensor:
    """An objective with one direction per pixel: climbing it by any step can only raise it."""
    weight = torch.linspace(-1, 1.3, x[0].numel(), dtype=x.dtype).view(1, *x.shape[1:])
    return (weight * x).flatten(1).sum(1)


def bent(x: Tensor) -> Tensor:
    return torch.cos(9 * x).flatten(1).sum(1) + linear(x)


class Recorder:
    """An objective that keeps the first images it is asked about."""

    def __init__(self) -> None:
        self.first: Tensor | None = None

    def __call__(self, x: Tensor) -> Tensor:
        if self.first is None:
            self.first = x.detach().clone()
        return linear(x)


@pytest.mark.parametrize("name", ATTACKS)
def test_the_file_says_what_it_is(name: str) -> None:
    text = (Path(__file__).resolve().parents[2] / "configs" / "attack" / f"{name}.yaml").read_text()
    assert text.startswith("#") and len(configured(name, "linf").describe()) > 10


@pytest.mark.parametrize(("name", "norm"), sorted(REFUSED))
def test_the_exceptions_refuse(name: str, norm: str) -> None:
    with pytest.raises(SettingError, match=r"attack.norm: expected"):
        configured(name, norm)


@pytest.mark.parametrize(("name", "norm"), EVERY)
class TestEveryAttack:
    def test_radius_and_pixels(self, name: str, norm: str) -> None:
        attack, x = configured(name, norm), images()
        assert attack.norm == norm
        for objective in (linear, bent):
            x_adv = attack(objective, x, generator=seeded_generator(1))
            assert (norm_named(norm).length(x_adv - x) <= attack.radius + 1e-6).all()
            assert x_adv.min() >= 0 and x_adv.max() <= 1
            assert (x_adv.shape, x_adv.dtype, x_adv.requires_grad) == (x.shape, x.dtype, False)

    def test_only_n_fgsm_goes_beyond_eps(self, name: str, norm: str) -> None:
        if name != "n_fgsm":
            assert configured(name, norm).radius <= EPS[norm]
        else:
            assert configured(name, norm).radius == pytest.approx(3 * EPS[norm])

    def test_objective_is_not_lower_than_where_it_began(self, name: str, norm: str) -> None:
        """On a linear objective, away from 0 and 1, where even a single step of any length cannot overshoot."""
        x, objective = images(6, 0.3, 0.7), Recorder()
        x_adv = configured(name, norm)(objective, x, generator=seeded_generator(1))
        assert objective.first is not None
        assert (linear(x_adv) > linear(objective.first)).all()

    def test_weights_buffers_gradients_and_modes_are_untouched(self, name: str, norm: str) -> None:
        model = nn.Sequential(nn.Conv2d(2, 3, 2), nn.BatchNorm2d(3), nn.Flatten(), nn.Linear(12, 3)).double().train()
        model[0].eval()
        model[3].weight.grad = torch.ones_like(model[3].weight)
        state = {key: value.clone() for key, value in model.state_dict().items()}
        x, y, loss = images(4), torch.arange(4) % 3, PGDAT()
        before = x.clone()
        with attack_mode(model):
            configured(name, norm)(loss.inner(model, x, y), x, generator=seeded_generator(1))
        assert torch.equal(x, before) and not x.requires_grad and x.grad is None
        assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
        assert torch.equal(model[3].weight.grad, torch.ones_like(model[3].weight)) and model[0].weight.grad is None
        assert model.training and model[1].training and not model[0].training

    def test_weights_take_no_gradient_even_where_they_could(self, name: str, norm: str) -> None:
        model = nn.Sequential(nn.Flatten(), nn.Linear(18, 2)).double()
        configured(name, norm)(lambda z: model(z)[:, 0], images(2), generator=seeded_generator(1))
        assert all(p.grad is None and p.requires_grad for p in model.parameters())

    def test_same_generator_same_result(self, name: str, norm: str) -> None:
        x, attack = images(), configured(name, norm)
        first, second, other = (attack(bent, x, generator=seeded_generator(seed)) for seed in (1, 1, 2))
        assert torch.equal(first, second)
        assert torch.equal(first, other) == (name in ("fgsm", "free"))  # those two draw nothing

    def test_images_do_not_depend_on_their_batch(self, name: str, norm: str) -> None:
        x, attack = images(6), configured(name, norm)
        whole = attack(bent, x, generator=seeded_generator(1))
        parts = [
            attack(bent, x[rows], generator=BatchRows(seeded_generator(1), 6, rows))
            for rows in (slice(0, 1), slice(1, 6))
        ]
        assert torch.equal(torch.cat(parts), whole)

    def test_zero_gradients_are_harmless(self, name: str, norm: str) -> None:
        """All images, and one among others."""
        x, attack = images(), configured(name, norm)

        def dead(z: Tensor) -> Tensor:
            return (0 * z).flatten(1).sum(1)

        def half_dead(z: Tensor) -> Tensor:
            return torch.where(torch.arange(len(z)) < 2, dead(z), bent(z))

        for objective in (dead, half_dead):
            x_adv = attack(objective, x, generator=seeded_generator(1))
            assert torch.isfinite(x_adv).all()
            assert (norm_named(norm).length(x_adv - x) <= attack.radius + 1e-6).all()

    def test_eps_zero_moves_nothing(self, name: str, norm: str) -> None:
        x = images()
        attack = build(without_radius(composed(name, norm))).for_epoch(3, 4)
        x_adv = attack(bent, x, generator=seeded_generator(1))
        torch.testing.assert_close(x_adv, x, rtol=0, atol=1e-12)
