"""The parity gate lets through what computes the run's step, stops what computes another one, and leaves no trace."""

import copy
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from advtrain.attacks import APGD, NFGSM, PGD, Attack
from advtrain.engine.acceleration import OFF, Acceleration, Passes, compiled
from advtrain.engine.acceleration.parity import Verdict, bounds, figures, judge
from advtrain.engine.acceleration.scene import Scene, observe
from advtrain.engine.numerics import Numerics
from advtrain.losses import IKL, KL, PGDAT, TRADES, Distillation, Loss, objectives
from advtrain.losses.functional import kl
from advtrain.random import BatchRows
from tests.engine.toy import LOSSES, VARIANTS, Toy, network, trainer

CPU = torch.device("cpu")
DOUBLE, SINGLE, BFLOAT = Numerics(CPU, torch.float64), Numerics(CPU), Numerics(CPU, autocast=True)
ATTACK = PGD(eps=0.05, steps=3)


def learned(norm: bool = True) -> nn.Module:
    """A network whose predictions differ from image to image, as they do a little into training."""
    model = network(norm)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(2)
        model(torch.rand(64, 3, 6, 6, generator=torch.Generator().manual_seed(5)))
    return model.train()


def scene(loss: Loss, attack: Attack | None = ATTACK, model: nn.Module | None = None, n: int = 24) -> Scene:
    generator = torch.Generator().manual_seed(1)
    x = torch.rand(n * loss.views, 3, 6, 6, generator=generator)
    y = (torch.arange(n) % 4).repeat(loss.views)
    rows = BatchRows(generator, n, slice(0, n), loss.views)
    return Scene(learned() if model is None else model, loss.train(), attack, x, y, rows)


def in_double(one: Scene) -> Scene:
    if isinstance(one.loss, Distillation) and one.loss.teacher is not None:
        one.loss.teacher.to(torch.float64)
    return replace(one, model=copy.deepcopy(one.model).double(), x=one.x.double())


def verdict(one: Scene, other: Scene, numerics: Numerics = DOUBLE, passes: Passes | None = None) -> Verdict:
    """The gate's verdict on a candidate that sees `other` where the run has `one`; both share the model."""
    reference = observe(one, Passes(one.model, OFF), numerics.exact())
    got = observe(other, Passes(one.model, OFF) if passes is None else passes, numerics, reference)
    return Verdict(figures(one, reference, got, numerics.exact()), bounds(numerics.word, 2), len(one.x))


class SwappedOuter(TRADES):
    def regulariser(self, natural_logits: Tensor, adversarial_logits: Tensor, y: Tensor) -> Tensor:
        return self.beta * kl(adversarial_logits, natural_logits)


class SwappedInner(TRADES):
    def inner(self, model: nn.Module, x: Tensor, y: Tensor) -> Any:
        with torch.no_grad():
            natural = model(x)
        return lambda images: kl(model(images), natural, reduction="none")


class Stale(TRADES):
    """Natural logits of other images."""

    def inner(self, model: nn.Module, x: Tensor, y: Tensor) -> Any:
        with torch.no_grad():
            natural = model(x.roll(1, 0))
        return objectives.ModelObjective(model, objectives.KL(natural))


class Retained(TRADES):
    """Natural logits that move with the images."""

    def inner(self, model: nn.Module, x: Tensor, y: Tensor) -> Any:
        return lambda images: kl(model(images.flip(-1)), model(images), reduction="none")


class OneView(KL):
    def outer(self, model: nn.Module, x: Tensor, x_adv: Tensor, y: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        one, two = x.chunk(2), x_adv.chunk(2)
        return super().outer(model, one[0].repeat(2, 1, 1, 1), two[0].repeat(2, 1, 1, 1), y)


class Quadruple(IKL):
    """Without the ¼ of the wMSE."""

    def __init__(self) -> None:
        super().__init__(num_classes=4)
        self.wmse_weight *= 4


def two_views() -> KL:
    return KL(second_view_weight=0.5)


WRONG: dict[str, tuple[Callable[[], Loss], Callable[[Scene], Scene], str]] = {
    "KL arguments swapped in training": (TRADES, lambda s: replace(s, loss=SwappedOuter()), "weights"),
    "KL arguments swapped in the attack": (TRADES, lambda s: replace(s, loss=SwappedInner()), "gradient"),
    "a quarter forgotten": (lambda: IKL(num_classes=4), lambda s: replace(s, loss=Quadruple()), "weights"),
    "stale natural logits": (TRADES, lambda s: replace(s, loss=Stale()), "gradient"),
    "natural logits that move": (TRADES, lambda s: replace(s, loss=Retained()), "climb"),
    "BatchNorm in train mode": (PGDAT, lambda s: replace(s, attack_batchnorm="train"), "gradient"),
    "a dropped view": (two_views, lambda s: replace(s, loss=OneView(second_view_weight=0.5)), "weights"),
    "one step instead of three": (PGDAT, lambda s: replace(s, attack=PGD(eps=0.05, steps=1)), "reach"),
    "another radius": (PGDAT, lambda s: replace(s, attack=PGD(eps=0.1, steps=3)), "outside"),
    "another label": (PGDAT, lambda s: replace(s, y=s.y.roll(1)), "loss"),
}


@pytest.mark.parametrize("numerics", (DOUBLE, SINGLE), ids=("fp64", "fp32"))
@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_step_fails(case: str, numerics: Numerics) -> None:
    loss, wrong, figure = WRONG[case]
    one = scene(loss())
    one = in_double(one) if numerics is DOUBLE else one
    found = verdict(one, wrong(one), numerics)
    assert not found.passed and figure in found.failed, found
    assert figure in found.reason() and "above" in found.reason()


@pytest.mark.parametrize("case", ("stale natural logits", "natural logits that move", "another label"))
def test_what_bfloat16_cannot_hide(case: str) -> None:
    loss, wrong, figure = WRONG[case]
    one = scene(loss())
    assert verdict(one, one, BFLOAT).passed
    assert figure in verdict(one, wrong(one), BFLOAT).failed


@pytest.mark.parametrize("name", (*LOSSES, *VARIANTS))
@pytest.mark.parametrize("numerics", (DOUBLE, SINGLE), ids=("fp64", "fp32"))
def test_the_same_step_passes_with_figures_of_zero(name: str, numerics: Numerics) -> None:
    one = scene((LOSSES | VARIANTS)[name](), None if name == "standard" else ATTACK)
    one = in_double(one) if numerics is DOUBLE else one
    found = judge(one, Passes(one.model, OFF), numerics)
    assert found.passed and found.reason() == ""
    compared = {name: value for name, value in found.record()["figures"].items() if value is not None}
    assert compared.pop("outside", 0) < 1e-5 and set(compared.values()) == {0.0}
    assert (found.figures.climb is None) == (name == "standard")


@pytest.mark.parametrize(
    "attack",
    (ATTACK, PGD(eps=0.3, norm="l2", steps=2), APGD(eps=0.05, steps=3), NFGSM(eps=0.05), PGD(eps=0.05, steps=1)),
    ids=("pgd", "l2", "apgd", "n_fgsm", "fgsm_rs"),
)
def test_every_attack_is_probed(attack: Attack) -> None:
    one = in_double(scene(PGDAT(), attack))
    found = verdict(one, one)
    assert found.passed and found.figures.gradient == 0 and found.figures.reach == 0
    assert "gradient" in verdict(one, replace(one, y=one.y.roll(1))).failed


def test_an_attack_of_the_users_own_is_judged_by_the_model_it_sees() -> None:
    class Own(Attack):
        def __call__(self, objective: Any, x: Tensor, *, generator: Any = None) -> Tensor:
            return (x + 0.01).clamp(0, 1)

    one = in_double(scene(PGDAT(), Own()))
    assert verdict(one, one).passed
    assert "gradient" in verdict(one, replace(one, attack_batchnorm="train")).failed


@pytest.mark.parametrize("loss", (TRADES, PGDAT, lambda: IKL(num_classes=4)))
def test_bfloat16_passes(loss: Callable[[], Loss]) -> None:
    one = scene(loss())
    found = judge(one, Passes(one.model, OFF), BFLOAT)
    assert found.passed, found.reason()
    assert found.figures.weights > 1e-4  # it does round


def test_a_network_beyond_bfloat16_fails() -> None:
    """It looks at images that lie near 256, where bfloat16 has steps of 2; float32 tells them apart."""

    class Shifted(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = learned(norm=False)
            with torch.no_grad():
                kernels = self.inner[0].weight
                kernels -= kernels.mean((2, 3), keepdim=True)  # blind to what is constant

        def forward(self, x: Tensor) -> Tensor:
            return self.inner(x + 256)

    one = scene(PGDAT(), model=Shifted())
    assert judge(one, Passes(one.model, OFF), SINGLE).passed
    assert {"gradient", "weights"} <= set(judge(one, Passes(one.model, OFF), BFLOAT).failed)


def test_nan_fails() -> None:
    class Broken(TRADES):
        def outer(self, model: nn.Module, x: Tensor, x_adv: Tensor, y: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
            total, parts = super().outer(model, x, x_adv, y)
            return total * torch.nan, parts

    one = scene(TRADES())
    assert {"weights", "loss"} <= set(verdict(one, replace(one, loss=Broken()), SINGLE).failed)


@pytest.mark.parametrize("compile", ("model", "step"))
def test_compiled_passes_pass(compile: str, without_type_checks: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Traced and differentiated as torch.compile does; the code that is made of it is not needed here."""
    monkeypatch.setattr(compiled, "BACKEND", "aot_eager")
    one = scene(TRADES())
    found = judge(one, Passes(one.model, Acceleration(compile)), SINGLE)
    assert found.passed, found.reason()
    assert found.figures.climb is not None


@pytest.mark.parametrize("word", ("fp64", "fp32", "tf32", "bf16"))
def test_bounds_follow_the_roundoff(word: str) -> None:
    """u √d for what is smooth, its root for what has kinks, and the cap; by hand for 16 layers."""
    found = bounds(word, 16)
    u = {"fp64": 2**-53, "fp32": 2**-24, "tf32": 2**-11, "bf16": 2**-9}[word]
    assert found.loss == found.buffers == pytest.approx(64 * u)
    angle = math.asin(min(math.sin(math.pi / 3), 80 * u**0.5))
    assert found.weights == found.gradient == pytest.approx(math.sin(angle))
    assert found.climb == pytest.approx(1 - math.cos(angle), rel=1e-3)


def test_no_trace(tmp_path: Path) -> None:
    """Weights, buffers, class prior, gradients, modes, random numbers."""
    run = trainer(tmp_path, learned(), precision="fp32", data=Toy(), loss=IKL(num_classes=4))
    run.model[1].eval()
    run.model[0].weight.grad = torch.ones_like(run.model[0].weight)
    run.loss.prior.update(torch.rand(8, 4), torch.arange(8) % 4)
    one = replace(scene(PGDAT()), model=run.model, loss=run.loss)
    before = [copy.deepcopy(part.state_dict()) for part in (run.model, run.loss, run.optimizer)]
    modes, state = [m.training for m in run.model.modules()], torch.get_rng_state()

    assert judge(one, Passes(run.model, OFF), BFLOAT).passed

    for part, kept in zip((run.model, run.loss), before, strict=False):
        assert all(value.equal(kept[name]) for name, value in part.state_dict().items())
    assert run.optimizer.state_dict() == before[2]
    assert [m.training for m in run.model.modules()] == modes
    assert torch.get_rng_state().equal(state)
    assert run.model[0].weight.grad.equal(torch.ones_like(run.model[0].weight)) and run.model[4].bias.grad is None


def test_gradients_are_taken_at_the_references_points() -> None:
    """A candidate whose attack ends elsewhere has the same gradients at the same points."""
    one = in_double(scene(PGDAT()))
    shorter = replace(one, attack=PGD(eps=0.05, steps=3, step_size=0.012))
    reference = observe(one, Passes(one.model, OFF), DOUBLE)
    got = observe(shorter, Passes(one.model, OFF), DOUBLE, reference)
    assert not got.adversarial.equal(reference.adversarial)
    assert got.gradient.equal(reference.gradient) and got.loss.equal(reference.loss)
    assert all(a.equal(b) for a, b in zip(got.weights, reference.weights, strict=True))


def test_a_fresh_model_is_judged_by_the_statistics_of_the_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    from advtrain.engine.acceleration import parity

    one = scene(PGDAT(), model=network(norm=True).train())
    seen: list[Tensor] = []

    def observed(scene: Scene, *rest: Any) -> Any:
        seen.append(scene.model[1].running_mean.clone())
        return observe(scene, *rest)

    monkeypatch.setattr(parity, "observe", observed)
    judge(one, Passes(one.model, OFF), SINGLE)
    expected = one.model[0](one.x).mean((0, 2, 3))
    assert all(torch.allclose(mean, expected, atol=1e-6) for mean in seen) and len(seen) == 2
    assert one.model[1].running_mean.equal(torch.zeros(6))

    seen.clear()
    trained = scene(PGDAT())
    judge(trained, Passes(trained.model, OFF), SINGLE)
    assert all(mean.equal(trained.model[1].running_mean) for mean in seen)


def test_half_the_rows_where_memory_is_short(monkeypatch: pytest.MonkeyPatch) -> None:
    one = scene(two_views(), n=24)
    from advtrain.engine.acceleration import parity

    def observed(seen: Scene, *rest: Any) -> Any:
        if len(seen.x) > 24:
            raise torch.OutOfMemoryError("no more")
        return observe(seen, *rest)

    monkeypatch.setattr(parity, "observe", observed)
    found = judge(one, Passes(one.model, OFF), SINGLE)
    assert found.passed and found.images == 24
    assert one.half().x.equal(torch.cat([one.x[:12], one.x[24:36]]))
