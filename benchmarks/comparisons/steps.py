"""A whole training step, TRADES or IKL, against the published way of taking it (`benchmarks.published`).

Both sides start from the same weights, see the same batch and take the optimiser's step. Ours is `TrainingStep` as the
trainer calls it. Before the clock runs, each side takes one step from a given adversarial image, and loss, gradient of
the attack at a fixed image and gradient of the weights are compared with those of the published step in float64: what
is the same mathematics lies as far from them as the published step in float32 does.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from advtrain.attacks import PGD
from advtrain.attacks.ascent import GradientAttack
from advtrain.data.base import Batch
from advtrain.engine import NoPerturbation
from advtrain.engine.acceleration import OFF, Acceleration
from advtrain.engine.numerics import Numerics
from advtrain.engine.step import TrainingStep
from advtrain.losses import IKL, TRADES, Loss
from advtrain.types import Images, Objective
from benchmarks import published
from benchmarks.comparisons.parity import all_apart, apart, same_sign
from benchmarks.timing import Work, compared, interleaved, significant

EPS, STEP_SIZE, RATE = 8 / 255, 2 / 255, 0.01
PUBLISHED = "published"


@dataclass(frozen=True)
class Rung:
    """One way of running our step.

    Attributes:
        acceleration: how its passes are run.
        autocast: whether the passes of the model run in bfloat16, which changes the numbers and is asked for.
    """

    acceleration: Acceleration = OFF
    autocast: bool = False

    @property
    def precision(self) -> str:
        return "bfloat16 autocast, opt-in" if self.autocast else "float32"


RUNGS = {
    "eager": Rung(),
    "compile=model": Rung(Acceleration("model")),
    "compile=step": Rung(Acceleration("step")),
    "eager, bf16": Rung(autocast=True),
    "compile=step, bf16": Rung(Acceleration("step"), autocast=True),
}


@dataclass(frozen=True)
class Case:
    """What is trained on what.

    Attributes:
        network: makes the model, with its own random weights.
        loss: "trades" or "ikl".
        x, y: the batch.
        classes: of the model.
        steps: of the attack.
    """

    network: Callable[[], nn.Module]
    loss: str
    x: Tensor
    y: Tensor
    classes: int = 10
    steps: int = 10

    def model(self) -> nn.Module:
        torch.manual_seed(0)
        return self.network().train().requires_grad_(True)

    def our_loss(self) -> Loss:
        return TRADES() if self.loss == "trades" else IKL(num_classes=self.classes, inner="ikl")

    def attack(self) -> PGD:
        return PGD(eps=EPS, steps=self.steps, step_size=STEP_SIZE, init="gaussian")


@dataclass(frozen=True)
class Found:
    """What one step from a given adversarial image computes: loss, gradient of the attack there, of the weights."""

    loss: float
    attack_gradient: Tensor
    weight_gradients: list[Tensor]

    def parity(self, expected: "Found") -> dict[str, float]:
        """Relative distances from what is expected, and the share of equal signs of the attack's gradient."""
        return {
            "loss": significant(abs(self.loss - expected.loss) / abs(expected.loss), 2),
            "attack_gradient": apart(self.attack_gradient, expected.attack_gradient),
            "attack_gradient_same_sign": same_sign(self.attack_gradient, expected.attack_gradient),
            "weight_gradient": all_apart(self.weight_gradients, expected.weight_gradients),
        }


class Given(GradientAttack):
    """No attack: takes the gradient of the objective at given images, by the step's own passes, and returns those."""

    def __init__(self, x_adv: Images) -> None:
        self.x_adv = x_adv
        self.gradients: list[Tensor] = []

    def __call__(self, objective: Objective, x: Images, *, generator: Any = None) -> Images:
        images = torch.empty_like(x).copy_(self.x_adv)  # in the layout of x, as an attack's are
        self.gradients.append(self._ascent.value_and_gradient(objective, images)[1])
        return images


class Ours:
    """Our step at one rung, ready to be timed."""

    def __init__(self, case: Case, rung: Rung) -> None:
        self.case, self.model = case, case.model().to(memory_format=torch.channels_last)
        self.attack = case.attack()
        self.batch = Batch(case.x, case.y, slice(0, len(case.x)))
        self.step = TrainingStep(
            self.model,
            case.our_loss(),
            torch.optim.SGD(self.model.parameters(), lr=RATE, momentum=0.9),
            numerics=Numerics(torch.device("cpu"), autocast=rung.autocast, memory_format=torch.channels_last),
            batch_size=len(case.x),
            accumulation=1,
            attack_batchnorm="eval",
            clip_norm=None,
            seed=0,
            acceleration=rung.acceleration,
        )

    def __call__(self) -> None:
        self.step(self.batch, self.attack, NoPerturbation(), 1, 0)

    def found(self, x_adv: Tensor) -> Found:
        given = Given(x_adv)
        parts = self.step(self.batch, given, NoPerturbation(), 1, 0)
        return Found(parts["loss"].item(), given.gradients[0].contiguous(), gradients(self.model))


class Published:
    """The published step, ready to be timed."""

    def __init__(self, case: Case, dtype: torch.dtype = torch.float32) -> None:
        self.case, self.model = replace(case, x=case.x.to(dtype)), case.model().to(dtype)
        optimizer = torch.optim.SGD(self.model.parameters(), lr=RATE, momentum=0.9)
        ball, none = (published.Ball(EPS, steps, STEP_SIZE) for steps in (case.steps, 0))
        self.step, self.without_attack = (
            published.build(case.loss, self.model, optimizer, which, num_classes=case.classes) for which in (ball, none)
        )

    def __call__(self) -> None:
        self.step(self.case.x, self.case.y)

    def found(self, x_adv: Tensor) -> Found:
        x_adv = x_adv.to(self.case.x.dtype)
        gradient = self._attack_gradient(x_adv)
        done = self.without_attack(self.case.x, self.case.y, x_adv)
        return Found(done.loss, gradient, gradients(self.model))

    def _attack_gradient(self, x_adv: Tensor) -> Tensor:
        """Of the sum over the batch, in eval mode."""
        self.model.eval()
        images, case = x_adv.clone().requires_grad_(), self.case
        natural, adversarial = self.model(case.x), self.model(images)
        if case.loss == "trades":
            value = F.kl_div(F.log_softmax(adversarial, 1), F.softmax(natural, 1), reduction="sum")
        else:
            uniform = torch.full_like(natural, 1 / case.classes)  # the class prior of the first epoch
            value = len(images) * published.pairwise_ikl(natural, adversarial, uniform, 1, 1)
        return torch.autograd.grad(value, images)[0]


def gradients(model: nn.Module) -> list[Tensor]:
    """Copies of the weights' gradients, in the usual layout."""
    return [weight.grad.detach().clone().contiguous() for weight in model.parameters() if weight.grad is not None]


def nearby(x: Tensor) -> Tensor:
    """A point in the ball around each image, the same for all ways."""
    noise = torch.rand(x.shape, generator=torch.Generator().manual_seed(1))
    return (x + EPS * (2 * noise - 1)).clamp(0, 1)


def measured(case: Case, rungs: Mapping[str, Rung], *, rounds: int) -> dict[str, Any]:
    """Times, ratios to the published step and parity of each rung."""
    torch.compiler.reset()  # what other cases compiled would count against this one's number of variants
    sides: dict[str, Any] = {PUBLISHED: Published(case), **{name: Ours(case, rung) for name, rung in rungs.items()}}
    x_adv = nearby(case.x)
    exact = Published(case, torch.float64).found(x_adv)
    parities = {name: side.found(x_adv).parity(exact) for name, side in sides.items()}
    ways: dict[str, Work] = sides
    found = compared(interleaved(ways, rounds=rounds, seed=0), PUBLISHED)
    for name, figures in found.items():
        figures["images_per_second"] = significant(1e3 * len(case.x) / figures["milliseconds"])
        figures["precision"] = rungs[name].precision if name in rungs else "float32"
        figures["parity"] = parities[name]
    return found
