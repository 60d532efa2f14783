"""PGD against a slow reference written from its definition, and the properties every attack has to have."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from advtrain.attacks import PGD, PGDSchedule
from advtrain.attacks.norms import norm_named
from advtrain.composition import choices, compose
from advtrain.config import build
from advtrain.random import BatchRows, seeded_generator
from advtrain.types import SettingError

ATTACKS = [name for name in choices("attack") if name != "none"]


def convex(x: Tensor) -> Tensor:
    """A smooth convex objective per image whose gradient vanishes nowhere in the box."""
    weight = torch.linspace(-1, 1.3, x[0].numel(), dtype=x.dtype).view(1, *x.shape[1:])
    return ((weight * x).flatten(1).sum(1) + 3).square() + x.flatten(1).square().sum(1)


def reference(x: Tensor, start: Tensor, norm: str, eps: float, steps: int, step_size: float) -> Tensor:
    """PGD pixel by pixel and image by image, from the definition."""
    found = []
    for image, point in zip(x, start, strict=True):
        current = point.clone()
        for _ in range(steps):
            leaf = current[None].clone().requires_grad_()
            (gradient,) = torch.autograd.grad(convex(leaf)[0], leaf)
            flat_gradient, flat_image = gradient.flatten().tolist(), image.flatten().tolist()
            moved = []
            if norm == "linf":
                for value, slope, clean in zip(current.flatten().tolist(), flat_gradient, flat_image, strict=True):
                    value += step_size * ((slope > 0) - (slope < 0))
                    moved.append(min(max(value, clean - eps), clean + eps))
            else:
                length = math.sqrt(sum(slope * slope for slope in flat_gradient))
                stepped = [
                    v + step_size * s / length for v, s in zip(current.flatten().tolist(), flat_gradient, strict=True)
                ]
                distance = math.sqrt(sum((v - c) ** 2 for v, c in zip(stepped, flat_image, strict=True)))
                shrink = min(1.0, eps / distance) if distance else 1.0
                moved = [c + (v - c) * shrink for v, c in zip(stepped, flat_image, strict=True)]
            current = torch.tensor([min(max(v, 0.0), 1.0) for v in moved], dtype=x.dtype).view_as(image)
        found.append(current)
    return torch.stack(found)


def images(n: int = 3, seed: int = 0) -> Tensor:
    return torch.rand(n, 2, 3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(("norm", "eps", "step_size"), (("linf", 0.1, 0.04), ("l2", 0.7, 0.3)))
@pytest.mark.parametrize("init", ("none", "uniform", "gaussian"))
def test_pgd_equals_the_reference(norm: str, eps: float, step_size: float, init: str) -> None:
    x = images()
    attack = PGD(norm=norm, eps=eps, steps=4, step_size=step_size, init=init, gaussian_scale=0.01)
    generator = torch.Generator().manual_seed(5)
    if init == "none":
        start = x
    elif init == "gaussian":
        start = x + 0.01 * torch.randn(x.shape, generator=generator, dtype=x.dtype)
    elif norm == "linf":
        start = x + eps * (2 * torch.rand(x.shape, generator=generator, dtype=x.dtype) - 1)
    else:
        direction = torch.randn(x.shape, generator=generator, dtype=x.dtype)
        radius = eps * torch.rand(3, 1, 1, 1, generator=generator, dtype=x.dtype) ** (1 / 18)
        start = x + radius * direction / direction.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
    expected = reference(x, start.clamp(0, 1), norm, eps, 4, step_size)
    actual = attack(convex, x, generator=torch.Generator().manual_seed(5))
    torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-12)


def configured(name: str) -> PGD:
    config = compose("train", [f"attack={name}", "data=digits", "model=small_cnn"])
    return build(config["attack"]).for_epoch(3, 4)


@pytest.mark.parametrize("name", ATTACKS)
class TestEveryConfig:
    """Found by globbing configs/attack."""

    def test_objective_is_not_lower_than_at_the_start(self, name: str) -> None:
        x = images(6)
        x_adv = configured(name)(convex, x, generator=seeded_generator(0))
        assert (convex(x_adv) > convex(x)).all()

    def test_same_generator_same_result(self, name: str) -> None:
        x, attack = images(4), configured(name)
        first, second, other = (attack(convex, x, generator=seeded_generator(seed)) for seed in (1, 1, 2))
        assert torch.equal(first, second)
        x_start = [attack._start(x, seeded_generator(seed)) for seed in (1, 2)]
        assert not torch.equal(*x_start) and other.shape == x.shape

    def test_images_do_not_depend_on_their_batch(self, name: str) -> None:
        x, attack = images(6), configured(name)
        whole = attack(convex, x, generator=seeded_generator(1))
        parts = [
            attack(convex, x[rows], generator=BatchRows(seeded_generator(1), 6, rows))
            for rows in (slice(0, 2), slice(2, 6))
        ]
        assert torch.equal(torch.cat(parts), whole)

    def test_zero_gradients_are_harmless(self, name: str) -> None:
        x = images(3)
        x_adv = configured(name)(lambda z: (0 * z).flatten(1).sum(1), x, generator=seeded_generator(1))
        assert torch.isfinite(x_adv).all()

    def test_model_and_input_are_untouched(self, name: str) -> None:
        model = nn.Sequential(nn.Conv2d(2, 3, 2), nn.BatchNorm2d(3), nn.Flatten(), nn.Linear(12, 2)).double().eval()
        state = {key: value.clone() for key, value in model.state_dict().items()}
        x = images(4)
        before = x.clone()
        x_adv = configured(name)(lambda z: model(z)[:, 0], x, generator=seeded_generator(1))
        assert torch.equal(x, before) and not x_adv.requires_grad and x_adv.dtype == x.dtype
        assert all(p.grad is None for p in model.parameters()) and not model.training
        assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())


@settings(max_examples=40, deadline=None)
@given(
    norm=st.sampled_from(("linf", "l2")),
    eps=st.floats(0, 1),
    steps=st.integers(1, 4),
    relative=st.floats(0.01, 3),
    init=st.sampled_from(("none", "uniform", "gaussian")),
    restarts=st.integers(1, 2),
    seed=st.integers(0, 1000),
)
def test_ball_and_box(norm: str, eps: float, steps: int, relative: float, init: str, restarts: int, seed: int) -> None:
    x = images(3, seed).float()
    attack = PGD(norm=norm, eps=eps, steps=steps, step_size=relative * eps, init=init, restarts=restarts)
    x_adv = attack(convex, x, generator=seeded_generator(seed))
    assert (norm_named(norm).length(x_adv - x) <= eps + 1e-6).all()
    assert x_adv.min() >= 0 and x_adv.max() <= 1 and x_adv.shape == x.shape


def test_restarts_keep_the_best_of_each_image() -> None:
    def wavy(x: Tensor) -> Tensor:  # many local maxima
        return torch.sin(40 * x).flatten(1).sum(1)

    x = images(8)

    def make(restarts: int) -> PGD:
        return PGD(eps=0.3, steps=2, step_size=0.01, restarts=restarts)

    generator = torch.Generator().manual_seed(3)
    singles = torch.stack([wavy(make(1)(wavy, x, generator=generator)) for _ in range(4)])
    best = wavy(make(4)(wavy, x, generator=torch.Generator().manual_seed(3)))
    assert torch.equal(best, singles.amax(0))
    assert len(singles.argmax(0).unique()) > 1  # not all from one restart


def test_tiny_gradients_still_give_l2_steps() -> None:
    x = images(2).float()
    x_adv = PGD(norm="l2", eps=0.5, steps=1, step_size=0.5, init="none")(lambda z: 1e-30 * convex(z), x)
    moved = (x_adv - x).flatten(1).norm(dim=1)
    assert (moved > 0.2).all()


def test_the_default_step_is_a_quarter_of_eps() -> None:
    assert PGD(eps="8/255", steps=10).step_size == pytest.approx(2 / 255)


@pytest.mark.parametrize(
    ("changes", "message"),
    (
        ({"eps": 8}, "attack.eps: expected an Linf radius from 0 to 1, got 8"),
        ({"eps": -0.1}, "attack.eps: expected a number of at least 0, got -0.1"),
        ({"steps": 0}, "attack.steps: expected an integer of at least 1, got 0"),
        ({"steps": 2.5}, "attack.steps: expected an integer"),
        ({"norm": "l7"}, "attack.norm: expected one of linf, l2, got 'l7'"),
        ({"init": "zero"}, "attack.init: expected one of none, uniform, gaussian, got 'zero'"),
        ({"restarts": 0}, "attack.restarts"),
        ({"eps": "8/0"}, "attack.eps"),
    ),
)
@pytest.mark.usefixtures("without_type_checks")
def test_bad_settings_are_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingError, match=message.replace("(", r"\(")):
        PGD(**{"eps": 0.1, "steps": 3, **changes})


class TestSchedule:
    """The recipe of arXiv:2305.13948: ε_e = ε e/E; 2, 3, 4, 5 steps of ε_e, 2ε_e/3, ε_e/2, ε_e/2 in the quarters."""

    def test_the_documented_schedule(self) -> None:
        schedule = build(compose("train", ["attack=ikl_2345", "data=cifar10"])["attack"])
        for epoch in range(1, 201):
            attack = schedule.for_epoch(epoch, 200)
            quarter = (epoch - 1) // 50
            eps = 8 / 255 * epoch / 200
            assert attack.eps == pytest.approx(eps)
            assert attack.steps == (2, 3, 4, 5)[quarter]
            assert attack.step_size == pytest.approx(eps * (1, 2 / 3, 1 / 2, 1 / 2)[quarter], rel=1e-6)
            assert attack.init == "gaussian" and attack.gaussian_scale == 0.001

    @pytest.mark.parametrize(("name", "steps", "relative"), (("ikl_always_5", 5, 0.5), ("ikl_low", 2, 1.0)))
    def test_the_constant_ones(self, name: str, steps: int, relative: float) -> None:
        schedule = build(compose("train", [f"attack={name}", "data=cifar10"])["attack"])
        for epoch in (1, 100, 200):
            attack = schedule.for_epoch(epoch, 200)
            assert attack.steps == steps and attack.step_size == pytest.approx(relative * 8 / 255 * epoch / 200)

    def test_without_ramp_the_radius_stays(self) -> None:
        schedule = PGDSchedule(eps=0.1, steps=[1], relative_step_size=[1.0], ramp=False)
        assert [schedule.for_epoch(e, 5).eps for e in (1, 5)] == [0.1, 0.1]

    def test_lists_must_match(self) -> None:
        with pytest.raises(SettingError, match="expected a list as long as"):
            PGDSchedule(eps=0.1, steps=[1, 2], relative_step_size=[1.0])


def test_every_attack_file_says_what_it_is() -> None:
    folder = Path(__file__).resolve().parents[2] / "configs" / "attack"
    for file in folder.glob("*.yaml"):
        assert file.read_text().startswith("#"), f"{file.name} lacks its opening comment"
