"""What the parity gate looks at: one batch of a run, the passes over it, and a probe in its attack."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from advtrain.attacks.ascent import Ascent, Eager
from advtrain.attacks.norms import Linf, Norm, norm_named
from advtrain.data.base import Batch
from advtrain.engine.acceleration.passes import Passes
from advtrain.engine.modes import attack_mode
from advtrain.engine.numerics import Numerics
from advtrain.losses import Loss, taught_beside
from advtrain.random import BatchRows, seeded_generator
from advtrain.types import Attack, Images, Logits, Objective, PerImage, Targets


@dataclass(frozen=True)
class Scene:
    """What a step of the run starts from, on one pass of one batch.

    Attributes:
        model: the bare model, on its device.
        loss: on the same device.
        attack: of the last epoch, when schedules have reached their whole radius; None for none.
        x, y: the rows of one pass, in the run's layout; with two views [view 1; view 2].
        rows: where random starts come from; its generator is made anew for each use.
        attack_batchnorm: "eval" or "train".
        known: what the teacher says of x, where that was computed before.
    """

    model: nn.Module
    loss: Loss
    attack: Attack | None
    x: Images
    y: Targets
    rows: BatchRows
    attack_batchnorm: str = "eval"
    known: Logits | None = None

    @classmethod
    def of(
        cls, model: nn.Module, loss: Loss, attack: Attack | None, batch: Batch, x: list[Images], batch_size: int
    ) -> "Scene":
        """The first pass of a batch: as many of its rows as the views in `x` have."""
        n, views = len(x[0]), len(x)
        rows = slice(batch.rows.start, batch.rows.start + n)
        source = BatchRows(torch.Generator(), batch_size, rows, views)
        known = None if batch.taught is None else batch.taught[:n]
        return cls(model, loss, attack, torch.cat(x), torch.cat([batch.y[:n]] * views), source, known=known)

    def taught(self) -> tuple[Logits, ...]:
        """What the loss takes beside images and labels: see `taught_beside`."""
        return taught_beside(self.loss, self.x, self.known)

    def source(self) -> BatchRows:
        return replace(self.rows, generator=seeded_generator(0, "parity", device=self.x.device))

    def half(self) -> "Scene":
        """The first half of the rows of each view."""
        views, first = self.rows.views, self.rows.rows.start
        n = len(self.x) // views
        x, y = (torch.cat([view[: n // 2] for view in rows.chunk(views)]) for rows in (self.x, self.y))
        known = None if self.known is None else self.known[: n // 2]
        return replace(self, x=x, y=y, known=known, rows=replace(self.rows, rows=slice(first, first + n // 2)))


class Probe:
    """An `Ascent` that looks at one step of an attack from a fixed point, and otherwise does what `ascent` does.

    Args:
        ascent: runs the passes.
        geometry: of the attack's steps.
        point: from where; the attack's own second point when None, or its first one if there is no second. (The first
            may lie so near to the image that a divergence has hardly a gradient there, in no numerics.)

    Attributes:
        point: as above.
        moved: where one step leads from there.
        gradient: the gradient there, where the passes tell it: a compiled step gives the moved images alone.
    """

    def __init__(self, ascent: Ascent, geometry: Norm, point: Images | None = None) -> None:
        self.ascent, self.geometry, self.point = ascent, geometry, point
        self._given, self._calls = point is not None, 0
        self.moved: Tensor | None = None
        self.gradient: Tensor | None = None

    def value_and_gradient(self, objective: Objective, x: Images) -> tuple[PerImage, Images]:
        self._calls += 1
        value, gradient = self.ascent.value_and_gradient(objective, x)
        if self._given and self._calls == 1:
            assert self.point is not None
            self._note(self.point, self.ascent.value_and_gradient(objective, self.point)[1])
        elif not self._given and self._calls <= 2:
            self._note(x, gradient)
        return value, gradient

    def climb(self, objective: Objective, geometry: Norm, x: Images, x_adv: Images, **how: Any) -> Images:
        self._calls += 1
        if self._calls == 1:
            once = how | {"steps": 1}
            if not self._given:
                self.point = x_adv if how["steps"] == 1 else self.ascent.climb(objective, geometry, x, x_adv, **once)
            assert self.point is not None
            self.point = self.point.clone()  # a replayed graph may give the same memory again
            if isinstance(self.ascent, Eager):
                self.gradient = self.ascent.value_and_gradient(objective, self.point)[1]
            self.moved = self.ascent.climb(objective, geometry, x, self.point, **once).clone()
        return self.ascent.climb(objective, geometry, x, x_adv, **how)

    def _note(self, x: Images, gradient: Images) -> None:
        self.point, self.gradient = x.detach().clone(), gradient.detach().clone()
        self.moved = self.geometry.step(self.point, self.gradient, 1.0)


@dataclass(frozen=True)
class Seen:
    """What passes made of a scene. The attack's part is None where there is no attack."""

    point: Tensor | None
    moved: Tensor | None
    gradient: Tensor | None
    adversarial: Tensor
    loss: Tensor
    weights: list[Tensor]
    buffers: list[Tensor]


def observe(scene: Scene, passes: Passes, numerics: Numerics, at: Seen | None = None) -> Seen:
    """Attacks the batch and takes both gradients.

    Args:
        scene: left as it is.
        passes: of the scene's model.
        numerics: in which they run.
        at: whose points the gradients are taken at; its own when None.
    """
    model, loss = scene.model, scene.loss
    with untouched(model, loss), numerics.products(), passes.teaching():
        with numerics.casting():
            taught = scene.taught()
        loss.start_batch(scene.y, *taught)
        probe, adversarial = _attack(scene, passes, numerics, at, taught)
        torch.manual_seed(0)
        x_adv = adversarial if at is None else at.adversarial
        with torch.enable_grad(), numerics.casting():
            total, _ = loss.outer(passes.trained, scene.x, x_adv, scene.y, *taught)
        learning = [p for p in model.parameters() if p.requires_grad]
        found = torch.autograd.grad(total, learning, allow_unused=True)
        weights = [torch.zeros_like(p) if g is None else g for p, g in zip(learning, found, strict=True)]
        buffers = [b.clone() for b in model.buffers() if b.is_floating_point()]
        return Seen(probe.point, probe.moved, probe.gradient, adversarial, total.detach(), weights, buffers)


def _attack(
    scene: Scene, passes: Passes, numerics: Numerics, at: Seen | None, taught: tuple[Logits, ...]
) -> tuple[Probe, Images]:
    attack, point = scene.attack, None if at is None else at.point
    geometry = Linf() if attack is None else norm_named(attack.norm)
    probe = Probe(passes.ascent, geometry, point)
    if attack is None:
        return probe, scene.x
    torch.manual_seed(0)
    with attack_mode(scene.model, scene.attack_batchnorm), numerics.casting():
        objective = scene.loss.inner(passes.attacked, scene.x, scene.y, *taught)
        adversarial = attack.using(probe)(objective, scene.x, generator=scene.source()).detach().clone()
        if probe.moved is None:  # the attack runs passes of its own: then a random point of its ball
            probe, radius = Probe(Eager(), geometry, point), min(attack.radius, 8 / 255)
            inside = scene.x + geometry.uniform(scene.x, radius, scene.source())
            probe.value_and_gradient(objective, geometry.inside(scene.x, inside, radius))
    return probe, adversarial


@contextmanager
def untouched(model: nn.Module, loss: Loss) -> Iterator[None]:
    """Puts everything that a step changes back on exit: buffers, modes, the loss's state, random numbers."""
    before = [(buffer, buffer.clone()) for module in (model, loss) for buffer in module.buffers()]
    modes = [(module, module.training) for root in (model, loss) for module in root.modules()]
    device = next(model.parameters()).device
    with torch.random.fork_rng([device.index] if device.type == "cuda" else []):
        try:
            model.train()
            loss.train()
            yield
        finally:
            with torch.no_grad():
                for buffer, value in before:
                    buffer.copy_(value)
            for module, training in modes:
                module.training = training
