"""The rungs of the GPU script's ladder, each one a way of taking the same step, and how true each is."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from advtrain.attacks.ascent import Ascent, Eager
from advtrain.attacks.norms import norm_named
from advtrain.data.base import Batch
from advtrain.engine import SGD, NoPerturbation
from advtrain.engine.acceleration import OFF, Acceleration
from advtrain.engine.modes import attack_mode
from advtrain.engine.numerics import Numerics
from advtrain.engine.step import TrainingStep
from advtrain.types import Attack, Images, Objective
from benchmarks import published
from benchmarks.gpu_cases import EPS, Case, make_attack, make_loss, network
from benchmarks.gpu_machine import arithmetic
from benchmarks.gpu_timing import significant

LR = 1e-3  # small, so that nothing diverges however long it is timed
NUDGE = 1e-3  # the step by which the sign of a gradient is seen


@dataclass(frozen=True)
class Rung:
    """One way of taking the step.

    Attributes:
        name: in the table.
        precision: fp32, tf32, bf16, or PyTorch's defaults; see `gpu_machine.arithmetic`.
        channels_last: layout of model and images.
        acceleration: of advtrain's step.
        rival: whether it is the step written the published way.
        short: whether the conclusion rests on it: it is run where only few rungs are, and before the others.
    """

    name: str
    precision: str = "fp32"
    channels_last: bool = True
    acceleration: Acceleration = OFF
    rival: bool = False
    short: bool = False

    @property
    def needs_cuda(self) -> bool:
        return self.precision in ("tf32", "defaults") or self.acceleration.cuda_graph

    @property
    def rate(self) -> str:
        """The precision whose matrix rate bounds it."""
        return "tf32" if self.precision == "defaults" else self.precision

    @property
    def compiled(self) -> bool:
        return self.acceleration.compile != "off"

    @property
    def steps_alone(self) -> bool:
        """Whether steps are compiled or replayed: a gradient would be another graph, built for the look alone."""
        return self.acceleration.compile == "step" or self.acceleration.cuda_graph


REFERENCE = "float32, contiguous"
PUBLISHED, DEFAULTS, TUNED = "published, float32", "published, PyTorch's defaults", "published, tuned"
RIVALS = (PUBLISHED, DEFAULTS, TUNED)
STEP, REPLAYED = "+ compile=step", "+ compile=step, CUDA graph"
LADDER = (
    Rung(PUBLISHED, channels_last=False, rival=True, short=True),
    Rung(DEFAULTS, "defaults", channels_last=False, rival=True),
    Rung(TUNED, "tf32", rival=True, short=True),
    Rung(REFERENCE, channels_last=False, short=True),
    Rung("+ channels_last"),
    Rung("+ tf32", "tf32"),
    Rung("+ bf16", "bf16", short=True),
    Rung("+ compile=model", "bf16", acceleration=Acceleration("model")),
    Rung(STEP, "bf16", acceleration=Acceleration("step"), short=True),
    Rung(REPLAYED, "bf16", acceleration=Acceleration("step", True), short=True),
    Rung("+ CUDA graph, not compiled", "bf16", acceleration=Acceleration("off", True)),
)
# Built in this order: the reference, then what the conclusion rests on; of few rungs early what is likely to win.
ORDER = (
    *(REFERENCE, PUBLISHED, TUNED, "+ bf16", REPLAYED, STEP),
    *("+ tf32", "+ channels_last", "+ CUDA graph, not compiled", DEFAULTS, "+ compile=model"),
)
SHORT_ORDER = (REFERENCE, PUBLISHED, REPLAYED, "+ bf16", TUNED, STEP)

# What passes, compared with float32: least cosine between the images' gradients (0.9999 is a distance of 0.014: cuDNN
# may choose Winograd's convolutions), least share of equal signs (where the gradient is not tiny, see `compared`),
# largest relative L2 distance between the weights' gradients. The length of the images' gradient is reported only: KL
# and IKL are differences of nearly equal logits, so that rounding changes it first, which a sign does not see.
GATES = {
    "fp32": {"cosine": 0.9999, "sign_agreement": 0.995, "weights_relative_l2": 1e-2},
    "tf32": {"cosine": 0.999, "sign_agreement": 0.98, "weights_relative_l2": 5e-2},
    "bf16": {"cosine": 0.95, "sign_agreement": 0.9, "weights_relative_l2": 0.25},
}


@dataclass(frozen=True)
class FixedImages:
    """Where gradients are looked at, at least 2 NUDGE away from 0 and 1.

    Attributes:
        found: by float32's attack on the first batch.
        start: where attacks start. So close to the images the gradients of KL and IKL are differences of nearly equal
            logits, which no low precision resolves: for the record, not for the verdict.
    """

    found: Images
    start: Images


class Probe(Attack):
    """In the place of an attack: looks at the gradient at given images through the passes of the step under test.

    It returns `points.found` as adversarial images.

    Args:
        points: the images.
        sign_only: whether to leave out the gradient itself.

    Attributes:
        gradient: of the objective at the found images.
        direction, start_direction: -1, 0 or 1 per pixel: where an attack's step goes from there and from the start.
    """

    gradient: Tensor | None = None
    direction: Tensor
    start_direction: Tensor

    def __init__(self, points: FixedImages, *, sign_only: bool) -> None:
        self._points, self._sign_only = points, sign_only
        self._ascent: Ascent = Eager()

    def using(self, ascent: Ascent) -> "Probe":
        self._ascent = ascent
        return self

    def __call__(self, objective: Objective, x: Images, *, generator: Any = None) -> Images:
        found, start = (torch.empty_like(x).copy_(at) for at in (self._points.found, self._points.start))  # x's layout
        if not self._sign_only:
            self.gradient = self._ascent.value_and_gradient(objective, found)[1].clone()
        self.direction = self._step(objective, found)
        self.start_direction = self._step(objective, start)
        return found

    def _step(self, objective: Objective, at: Images) -> Tensor:
        # Two tensors for the two arguments: were they one, torch.compile would build a graph for that case alone.
        centre, settings = at.clone(), {"eps": 2 * NUDGE, "step_size": NUDGE, "steps": 1}
        moved = self._ascent.climb(objective, norm_named("linf"), centre, at.clone(), **settings)
        return (moved - at).sign()


@dataclass(frozen=True)
class Look:
    """What is compared between ways of taking a step.

    Attributes:
        gradient: of the attack's objective at the found images; None where only its sign is seen.
        direction: sign of the step that the attack takes from there.
        start_direction: and from the start.
        weights: gradient of the training loss at the found images, all parameters in one vector.
    """

    gradient: Tensor | None
    direction: Tensor
    start_direction: Tensor
    weights: Tensor


class Entrant:
    """A way of taking the case's step, ready to run.

    Args:
        rung: which way.
        case: what is trained.
        data: its batches, which it takes in turn.
        state: the weights to start from.
        toy: whether the network is a stand-in.
    """

    def __init__(self, rung: Rung, case: Case, data: list[Batch], state: dict[str, Tensor], toy: bool) -> None:
        self.rung, self.case, self.data = rung, case, data
        device = data[0].x.device
        self._layout = torch.channels_last if rung.channels_last else torch.contiguous_format
        self.model = network(case, toy, device).to(memory_format=self._layout)
        self.model.load_state_dict(state)
        self.model.train()
        self._calls = 0
        self._take = self._rival() if rung.rival else self._ours(device)
        self.last_loss: Tensor | float = math.nan

    def __call__(self) -> None:
        """Takes one step on the next batch."""
        self._calls += 1
        with arithmetic(self.rung.precision):
            self.last_loss = self._take(self.data[self._calls % len(self.data)])

    def _ours(self, device: torch.device) -> Callable[[Batch], Tensor | float]:
        numerics = Numerics(device, autocast=self.rung.precision == "bf16", memory_format=self._layout)
        loss, attack = make_loss(self.case).to(device).train(), make_attack(self.case)
        self._step = TrainingStep(
            self.model,
            loss,
            SGD(lr=LR).build(self.model),
            numerics=numerics,
            batch_size=self.case.batch,
            accumulation=1,
            attack_batchnorm="eval",
            clip_norm=None,
            seed=0,
            acceleration=self.rung.acceleration,
        )
        return lambda batch: self._step(batch, attack, NoPerturbation(), 1, self._calls)["loss"]

    def _rival(self) -> Callable[[Batch], Tensor | float]:
        step = self._published(self.case.steps, 2 / 255)
        return lambda batch: step(batch.x.to(memory_format=self._layout), batch.y).loss

    def _published(self, steps: int, step_size: float, eps: float = EPS, lr: float = LR) -> published.Step:
        optimizer = torch.optim.SGD(self.model.parameters(), lr=lr, momentum=0.9, weight_decay=5e-4 if lr else 0)
        ball = published.Ball(eps=eps, steps=steps, step_size=step_size)
        return published.build(self.case.loss, self.model, optimizer, ball, num_classes=self.case.num_classes)

    def look(self, points: FixedImages) -> Look:
        """Its gradients at given images, on the first batch. Moves the weights by one step, as any training does."""
        batch = self.data[0]
        with arithmetic(self.rung.precision):
            if self.rung.rival:
                x = batch.x.to(memory_format=self._layout)
                found, start = (torch.empty_like(x).copy_(at) for at in (points.found, points.start))
                one_step = self._published(1, NUDGE, eps=1.0, lr=0.0)
                direction, start_direction = (
                    (one_step(x, batch.y, at.clone()).x_adv - at).sign() for at in (found, start)
                )
                self._published(0, NUDGE, lr=0.0)(x, batch.y, found)
                return Look(None, direction, start_direction, self._weight_gradient())
            probe = Probe(points, sign_only=self.rung.steps_alone)
            self._step(batch, probe, NoPerturbation(), 1, 0)
            return Look(probe.gradient, probe.direction, probe.start_direction, self._weight_gradient())

    def _weight_gradient(self) -> Tensor:
        return torch.cat([p.grad.flatten().float() for p in self.model.parameters() if p.grad is not None])


def fixed_images(case: Case, data: list[Batch], state: dict[str, Tensor], toy: bool) -> FixedImages:
    """What float32's attack finds on the first batch, and where it starts."""
    batch = data[0]
    model = network(case, toy, batch.x.device)
    model.load_state_dict(state)
    loss, attack = make_loss(case).to(batch.x.device), make_attack(case)
    generator = torch.Generator(batch.x.device).manual_seed(2)
    with arithmetic("fp32"), attack_mode(model):
        found = attack(loss.inner(model, batch.x, batch.y), batch.x, generator=generator)
    noise = torch.randn(batch.x.shape, generator=generator, device=batch.x.device)
    low, high = 2 * NUDGE, 1 - 2 * NUDGE
    return FixedImages(found.clamp(low, high), (batch.x + 0.001 * noise).clamp(low, high))


def compared(look: Look, reference: Look) -> dict[str, float | None]:
    """How far a look is from the reference's; None for what is no finite number.

    Signs are compared where the reference's gradient is at least a hundredth of its root mean square.
    """
    assert reference.gradient is not None
    root_mean_square = reference.gradient.square().mean().sqrt()
    clear = reference.gradient.abs() >= 0.01 * root_mean_square
    agreeing = (look.direction == reference.gradient.sign())[clear].float().mean()
    found = {"sign_agreement": float(agreeing)}
    if look.gradient is not None:
        found |= _distance("", look.gradient, reference.gradient)
    found |= _distance("weights_", look.weights, reference.weights)
    found["start_sign_agreement"] = float((look.start_direction == reference.start_direction).float().mean())
    return {name: significant(value) if math.isfinite(value) else None for name, value in found.items()}


def _distance(prefix: str, found: Tensor, expected: Tensor) -> dict[str, float]:
    found, expected = found.double(), expected.double()
    cosine = (found * expected).sum() / (found.norm() * expected.norm())
    return {
        f"{prefix}relative_l2": float((found - expected).norm() / expected.norm()),
        f"{prefix}cosine": float(cosine),
    }


def verdict(rung: Rung, parity: dict[str, float | None]) -> str | None:
    """What keeps a rung from passing; None where it passes."""
    gate = GATES[rung.rate]
    for name, value in parity.items():
        if value is None:
            return f"{name} is no finite number"
        if name == "weights_relative_l2" and value > gate[name]:
            return f"{name} {value:.2g}, at most {gate[name]:g} allowed"
        if name in ("cosine", "sign_agreement") and value < gate[name]:
            return f"{name} {value:.4g}, at least {gate[name]:g} needed"
    return None
