"""Robust accuracy over a grid of radii, in one pass: each radius starts from the images of the one before.

What is broken at a radius stays broken, with its image, at every larger one, whose ball holds that image. So the curve
falls by construction, and a radius costs passes only for the images that survived the smaller ones.
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from advtrain import checks
from advtrain.attacks.norms import NORMS, norm_named
from advtrain.evaluation.autoattack.exact import perturb
from advtrain.evaluation.climbing import CLIMB, climbed, l1_plan, margins
from advtrain.evaluation.modes import eager, exact_float32, frozen
from advtrain.evaluation.settings import CurveSettings
from advtrain.evaluation.statistics import wilson_interval
from advtrain.evaluation.verify import judge
from advtrain.random import seeded_generator
from advtrain.types import Images, Labels

Report = Callable[[str], None]
MULTIPLES = (0.25, 0.5, 0.75, 1.0, 1.25, 1.5, 2.0)  # of the threat's radius, where no grid is given
ZERO = 0.01  # an accuracy that counts as none: an attack without a bound must succeed on every image


@dataclass(frozen=True)
class Curve:
    """Robust accuracy at each radius, on the same images.

    Attributes:
        norm: of the balls.
        eps: their radii, ascending, in units of pixels in [0, 1].
        correct: images that no attack broke, at each radius.
        clean: images classified correctly without attack.
        n_examples: images looked at.
        boundless: the radius from which every ball holds the image whose pixels are all ½, so that no model is robust.
        settings: what ran.
        seconds: it took.
    """

    norm: str
    eps: tuple[float, ...]
    correct: tuple[int, ...]
    clean: int
    n_examples: int
    boundless: float
    settings: Mapping[str, Any]
    seconds: float

    @property
    def accuracy(self) -> list[float]:
        """At each radius, as fractions."""
        return [correct / self.n_examples for correct in self.correct]

    @property
    def monotone(self) -> bool:
        """Whether no radius has a higher accuracy than a smaller one."""
        steps = (self.clean, *self.correct)
        return all(later <= earlier for earlier, later in pairwise(steps))

    @property
    def reaches_zero(self) -> bool | None:
        """Whether the accuracy falls to nothing where it has to; None where no radius is large enough to tell.

        An attack without a bound succeeds on every image (Carlini et al., arXiv:1902.06705, section 5.4); where it does
        not, gradients are masked.
        """
        return None if self.eps[-1] < self.boundless else self.accuracy[-1] <= ZERO

    def record(self) -> dict[str, Any]:
        """The "curve" of evaluation.json; its lists have an entry per radius."""
        return {
            "norm": self.norm,
            "eps": list(self.eps),
            "accuracy": self.accuracy,
            "correct": list(self.correct),
            "interval": [list(wilson_interval(correct, self.n_examples)) for correct in self.correct],
            "n_examples": self.n_examples,
            "clean": {"accuracy": self.clean / self.n_examples, "correct": self.clean},
            "monotone": self.monotone,
            "reaches_zero": self.reaches_zero,
            "settings": dict(self.settings),
            "seconds": round(self.seconds, 3),
        }

    def lines(self) -> list[str]:
        """For people: one line per radius."""
        lines = [f"accuracy over radii ({self.norm}, {self.n_examples} images)", self._line(0.0, self.clean)]
        lines += [self._line(eps, correct) for eps, correct in zip(self.eps, self.correct, strict=True)]
        if self.reaches_zero is False:
            lines.append(f"  doubtful: no model is robust at ε = {self.eps[-1]:.5g}; its gradients are masked")
        return lines

    def _line(self, eps: float, correct: int) -> str:
        low, high = wilson_interval(correct, self.n_examples)
        return f"  ε = {eps:<8.5g} {correct / self.n_examples:7.2%}  [{low:.2%}, {high:.2%}]"


def radii(settings: CurveSettings, norm: str, eps: float) -> tuple[float, ...]:
    """The grid, ascending, each radius once: that of the settings, or multiples of the threat's radius.

    Raises:
        SettingError: a radius is none in this norm.
    """
    grid = [checks.radius("eval.curve.eps", word, norm) for word in settings.eps] or [eps * m for m in MULTIPLES]
    if norm == "linf" and not settings.eps:
        grid = [min(radius, 1.0) for radius in grid]
    return tuple(sorted({radius for radius in grid if radius > 0}))


def curve_result(
    model: nn.Module,
    x: Images,
    y: Labels,
    *,
    norm: str,
    eps: float,
    settings: CurveSettings,
    device: torch.device | str = "cpu",
    report: Report | None = None,
) -> Curve:
    """Measures the accuracy of `model` at every radius of the grid, each verdict re-checked from its image.

    Args:
        model: images in [0, 1] to logits; float32, on `device`. Its modes are as before on return.
        x: images, on the CPU. All of them are attacked: `settings.n_examples` is for the caller to obey.
        y: labels, on the CPU.
        norm: "linf", "l2" or "l1".
        eps: the threat's radius, for the grid where the settings have none.
        settings: grid, seed and batch size.
        device: where the model is.
        report: takes a readable line per batch.

    Raises:
        SettingError: a setting does not fit.
        EvaluationError: an attack's verdict is not backed by its image.
    """
    checks.choice("threat.norm", norm, NORMS)
    grid = radii(settings, norm, eps)
    model, started = eager(model), time.monotonic()
    correct = torch.zeros(len(grid) + 1, dtype=torch.int64)
    with frozen(model), exact_float32():
        for batch, rows in enumerate(torch.arange(len(y)).split(settings.batch_size)):
            sweep = Sweep(model, x[rows], y[rows], norm, device, seed=settings.seed, batch=batch)
            verdicts = [sweep.robust] + [sweep.advance(radius) for radius in grid]
            correct += torch.stack(verdicts).sum(1)
            if report is not None:
                report(f"curve: {int(rows[-1]) + 1} of {len(y)} images, {len(grid)} radii")
    geometry = norm_named(norm)
    return Curve(
        norm=norm,
        eps=grid,
        correct=tuple(correct[1:].tolist()),
        clean=int(correct[0]),
        n_examples=len(y),
        boundless=float(geometry.length(torch.full_like(x[:1], 0.5))),
        settings={**CLIMB[norm].record(norm), "seed": settings.seed, "batch_size": settings.batch_size},
        seconds=time.monotonic() - started,
    )


class Sweep:
    """One batch on its way through ascending radii.

    Attributes:
        images: the best adversarial images so far, on the CPU: of the largest margin for a wrong class.
        robust: which images are still classified correctly, bool, on the CPU.
        eps: the radius that this holds for.
    """

    def __init__(
        self,
        model: nn.Module,
        x: Images,
        y: Labels,
        norm: str,
        device: torch.device | str,
        *,
        seed: int,
        batch: int,
    ) -> None:
        self.model, self.norm, self.device, self.eps = model, norm, device, 0.0
        self._geometry = norm_named(norm)
        self._x, self._y = x.to(device).contiguous(), y.to(device)
        self._images = self._x.clone()
        with torch.no_grad():
            logits = model(self._x)
        self._margins = margins(logits, self._y)
        self._order = logits.scatter(1, self._y[:, None], -torch.inf).argsort(1, descending=True)
        self._robust = logits.argmax(1) == self._y
        self._seed = seed
        generator = seeded_generator(seed, "curve", batch, device=self._x.device)
        # One direction per image and kind of start, in the ball of radius 1. Drawn for the whole batch, so that the
        # starts at a radius do not depend on which images smaller radii broke.
        self._noise = {key: self._geometry.uniform(self._x, 1.0, generator) for key in ("ce", "margin", "target")}

    @property
    def images(self) -> Images:
        return self._images.to("cpu", copy=True)

    @property
    def robust(self) -> Tensor:
        return self._robust.to("cpu", copy=True)  # the search goes on in place

    def advance(self, eps: float) -> Tensor:
        """Attacks what is left at radius `eps`, which is larger than the last; returns `robust`, re-checked."""
        climb = CLIMB[self.norm]
        scale, self.eps = (eps / self.eps if self.eps else 0.0), eps
        if scale:  # towards the new sphere, along the direction that was best
            carried = self._x + (self._images - self._x) * scale
            self._try("margin", climb.steps, carried)
        for key in ("ce", "margin"):
            self._try(key, climb.steps, self._start(key))
        for place in range(min(climb.targets, self._order.shape[1] - 1)):
            self._try("target", climb.target_steps, self._start("target"), self._order[:, place])
        if climb.apgd_steps:
            self._try_l1()
        verdict = judge(
            self.model,
            self._x.cpu(),
            self.images,
            self._y.cpu(),
            self.robust,
            norm=self.norm,
            eps=eps,
            batch_size=len(self._x),
            device=self.device,
        )
        self._robust &= verdict.robust.to(self._robust.device)
        return self.robust

    def _start(self, key: str) -> Images:
        return self._geometry.inside(self._x, self._x + self._noise[key] * self.eps, self.eps)

    @torch.no_grad()
    def _try(self, objective: str, steps: int, start: Images, targets: Tensor | None = None) -> None:
        """A search on the images that are left."""
        left = self._robust.nonzero().flatten()
        if len(left):
            aims = None if targets is None else targets[left]
            x, y = self._x[left], self._y[left]
            found = climbed(self.model, objective, x, y, start[left], aims, norm=self.norm, eps=self.eps, steps=steps)
            self._keep(left, found)

    @torch.no_grad()
    def _try_l1(self) -> None:
        left = self._robust.nonzero().flatten()
        if len(left):
            plan = l1_plan(self.eps, self._order.shape[1])
            self._keep(left, perturb(self.model, self._x[left], self._y[left], plan, self._seed).images)

    def _keep(self, left: Tensor, found: Images) -> None:
        """Keeps what an attack on the images `left` improved."""
        logits = self.model(found)
        value, broken = margins(logits, self._y[left]), logits.argmax(1) != self._y[left]
        better = (value > self._margins[left]) | broken
        self._images[left[better]] = found[better]
        self._margins[left[better]] = value[better]
        self._robust[left[broken]] = False
