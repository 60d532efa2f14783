"""Schedules around any attack: radii and steps per epoch, and IKL's recipes bit for bit."""

from typing import Any

import pytest
import torch
from torch import Tensor

from advtrain.attacks import APGD, NFGSM, PGD, Scheduled
from advtrain.composition import compose
from advtrain.config import build
from advtrain.types import Attack, SettingError

EPS = 8 / 255
# name: steps and relative step size of each phase
IKL = {
    "ikl_2345": ((2, 3, 4, 5), (1.0, 0.66666667, 0.5, 0.5)),
    "ikl_low": ((2,), (1.0,)),
    "ikl_always_5": ((5,), (0.5,)),
}


def configured(name: str, *words: str) -> Attack:
    return build(compose("train", [f"attack={name}", "data=cifar10", *words])["attack"])


def bent(x: Tensor) -> Tensor:
    return torch.cos(12 * x).flatten(1).sum(1)


@pytest.mark.parametrize("name", IKL)
def test_ikl_attacks_are_these_pgds(name: str) -> None:
    """ε_e = ε e/E; steps and step sizes of arXiv:2305.13948 by phase; the same bits as PGD with these numbers."""
    schedule, (steps, relative) = configured(name), IKL[name]
    x = torch.rand(2, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    for epoch in (1, 2, 49, 50, 51, 100, 101, 150, 151, 199, 200):
        phase, eps = (epoch - 1) * len(steps) // 200, EPS * epoch / 200
        plain = PGD(eps=eps, steps=steps[phase], step_size=eps * relative[phase], init="gaussian", gaussian_scale=0.001)
        found = schedule.for_epoch(epoch, 200)
        assert isinstance(found, PGD) and (found.eps, found.steps, found.step_size) == (
            plain.eps,
            plain.steps,
            plain.step_size,
        )
        pair = [attack(bent, x, generator=torch.Generator().manual_seed(epoch)) for attack in (found, plain)]
        assert torch.equal(*pair)


def test_the_documented_thirds() -> None:
    steps = [configured("ikl_2345").for_epoch(epoch, 200) for epoch in (50, 100, 150, 200)]
    for attack, share in zip(steps, (1, 2 / 3, 1 / 2, 1 / 2), strict=True):
        assert isinstance(attack, PGD) and attack.step_size == pytest.approx(attack.eps * share, rel=1e-6)


def test_flat_overrides_of_the_schedules_remain() -> None:
    words = ["attack.eps=4/255", "attack.steps=[1,2]", "attack.relative_step_size=[1,0.5]", "attack.ramp=false"]
    last = configured("ikl_2345", *words, "attack.attack.init=uniform").for_epoch(9, 9)
    assert isinstance(last, PGD)
    assert (last.eps, last.steps, last.step_size, last.init) == (4 / 255, 2, 2 / 255, "uniform")


@pytest.mark.parametrize(
    "attack",
    (PGD(eps=0.2, steps=3), PGD(eps=0.2, steps=1, relative_step_size=1.25), APGD(eps=0.2), NFGSM(eps=0.2)),
)
def test_the_ramp_grows_any_attack(attack: Any) -> None:
    schedule = Scheduled(attack=attack, ramp_epochs=4)
    radii = [schedule.for_epoch(epoch, 10).radius for epoch in range(1, 11)]
    expected = [attack.radius * min(epoch / 4, 1) for epoch in range(1, 11)]
    assert radii == pytest.approx(expected)
    assert radii[-1] == attack.radius
    assert Scheduled(attack=attack, ramp=False).for_epoch(1, 10).radius == attack.radius
    assert type(schedule.for_epoch(1, 10)) is type(attack)


def test_steps_grow_with_the_radius_unless_given() -> None:
    for attack in (PGD(eps=0.2, steps=3, step_size=0.05), PGD(eps=0.2, steps=3, relative_step_size=0.25)):
        first = Scheduled(attack=attack, ramp_epochs=4).for_epoch(1, 10)
        assert isinstance(first, PGD) and first.step_size == pytest.approx(0.0125)
    given = Scheduled(attack=attack, ramp_epochs=4, relative_step_size=[1.0, 0.5])
    sizes = [given.for_epoch(epoch, 10).step_size for epoch in (4, 5, 6, 10)]  # pyright: ignore
    assert sizes == pytest.approx([0.2, 0.2, 0.1, 0.1])


def test_eps_zero_can_be_scheduled() -> None:
    x = torch.rand(2, 1, 3, 3)
    schedule = Scheduled(attack=PGD(eps=0, steps=2, step_size=0.1), ramp_epochs=2)
    assert torch.equal(schedule.for_epoch(1, 3)(bent, x), x)


def test_an_attack_of_ones_own_can_be_scheduled() -> None:
    class Shift(Attack):
        def __init__(self, eps: float) -> None:
            self.eps = eps

        def __call__(self, objective: Any, x: Tensor, *, generator: Any = None) -> Tensor:
            return (x + self.eps).clamp(0, 1)

        def with_budget(self, *, eps: float, steps: Any = None, relative_step_size: Any = None) -> "Shift":
            return Shift(eps)

    x = torch.zeros(1, 1, 1, 1)
    found = [Scheduled(attack=Shift(0.4), ramp_epochs=2).for_epoch(e, 5)(bent, x).item() for e in (1, 2, 5)]
    assert found == pytest.approx([0.2, 0.4, 0.4])


class Plain(Attack):
    """The least an own attack can be."""

    def __call__(self, objective: Any, x: Tensor, *, generator: Any = None) -> Tensor:
        return x


def test_an_own_attack_needs_only_a_call() -> None:
    plain = Plain()
    assert isinstance(plain, Attack) and plain.for_epoch(1, 2) is plain and plain.describe() == "Plain"
    assert not plain.single_step and not plain.starts_at_image


@pytest.mark.usefixtures("without_type_checks")
@pytest.mark.parametrize(
    ("changes", "message"),
    (
        ({"steps": [1, 2], "relative_step_size": [1.0]}, "expected a list as long as attack.relative_step_size"),
        ({"steps": 3}, r"attack.steps: expected a list with an entry per phase, got 3"),
        ({"steps": []}, r"attack.steps: expected a list"),
        ({"steps": [2, 0]}, "attack.steps: expected an integer of at least 1, got 0"),
        ({"relative_step_size": [-1.0]}, "attack.relative_step_size: expected a number above 0, got -1"),
        ({"ramp_epochs": 0}, "attack.ramp_epochs: expected an integer of at least 1"),
        ({"ramp": "yes"}, "attack.ramp: expected true or false"),
        ({"eps": 0.3}, "attack.attack.eps: expected attack.eps=0.3, got 0.2"),
        ({"attack": {"eps": 1}}, "attack.attack: expected an attack with its own _target_"),
        ({"attack": NFGSM(eps=0.1), "steps": [2]}, "attack.steps: expected none for NFGSM"),
        ({"attack": APGD(eps=0.1), "relative_step_size": [1.0]}, "expected none for APGD"),
        ({"attack": Scheduled(attack=PGD(eps=0.1, steps=1))}, "got a schedule; put all changes into one"),
        ({"attack": Plain(), "eps": 0.1}, "got Plain without with_budget"),
    ),
)
def test_bad_schedules_are_refused_at_start(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingError, match=message):
        Scheduled(**{"attack": PGD(eps=0.2, steps=2), **changes})


def test_descriptions_name_what_changes() -> None:
    text = configured("ikl_2345").describe()
    assert "growing over all epochs" in text
    assert "steps by phase: 2 of 1 ε, 3 of 0.667 ε, 4 of 0.5 ε, 5 of 0.5 ε" in text
    assert "growing over 5 epochs" in configured("fgsm_rs_ramp").describe()
