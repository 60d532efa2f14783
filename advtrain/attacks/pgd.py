"""Projected gradient ascent, in any norm, on any objective.

    attack = PGD(norm="linf", eps=8 / 255, steps=10, step_size=2 / 255, init="uniform")
    x_adv = attack(objective, x, generator=generator)

The attack is an initial point, a step rule and a projection over a function "images → loss per image". It knows no
model and no label; whoever builds the objective decides both (`advtrain.losses.Loss.inner`, or three lines of yours).
"""

import torch

from advtrain import checks
from advtrain.attacks.norms import NORMS, norm_named
from advtrain.random import Source, normal_like
from advtrain.types import Images, Objective, PerImage

INITS = ("none", "uniform", "gaussian")


class PGD:
    """Projected gradient descent (Madry et al., arXiv:1706.06083), maximising the objective.

    Each step moves along the steepest direction of the norm (sign for Linf, unit gradient for L2), then back into the
    ball around the clean image and into [0, 1]. Only the gradient of the images is computed.

    Args:
        norm: "linf" or "l2".
        eps: radius of the ball, in units of pixels in [0, 1].
        steps: gradient steps per restart.
        step_size: length of a step in the norm, same units as `eps`; eps/4 when None (2/255 at 8/255).
        init: "none" starts at the image; "uniform" at a uniform draw from the ball; "gaussian" at
            x + gaussian_scale · N(0, 1) as in the TRADES code.
        gaussian_scale: standard deviation of the Gaussian start.
        restarts: independent starts, of which the point of the largest objective is kept for each image.
    """

    def __init__(
        self,
        *,
        norm: str = "linf",
        eps: float | str,
        steps: int,
        step_size: float | str | None = None,
        init: str = "uniform",
        gaussian_scale: float = 0.001,
        restarts: int = 1,
    ) -> None:
        self.norm = checks.choice("attack.norm", norm, NORMS)
        self.eps = checks.radius("attack.eps", eps, norm)
        self.steps = checks.integer("attack.steps", steps, low=1)
        self.step_size = self.eps / 4 if step_size is None else checks.number("attack.step_size", step_size, low=0)
        self.init = checks.choice("attack.init", init, INITS)
        self.gaussian_scale = checks.number("attack.gaussian_scale", gaussian_scale, low=0)
        self.restarts = checks.integer("attack.restarts", restarts, low=1)
        self._geometry = norm_named(norm)

    def __call__(self, objective: Objective, x: Images, *, generator: Source = None) -> Images:
        """Finds adversarial images.

        Args:
            objective: images (n, c, h, w) → loss per image (n,); differentiable in the images.
            x: clean images in [0, 1], shape (n, c, h, w).
            generator: where random starts come from; torch's global generator when not given.

        Returns:
            Images in [0, 1] within `eps` of `x`, same shape, dtype and device, detached.
        """
        x = x.detach()
        best = self._climb(objective, x, generator)
        if self.restarts == 1:
            return best
        best_value = _values(objective, best)
        for _ in range(self.restarts - 1):
            candidate = self._climb(objective, x, generator)
            value = _values(objective, candidate)
            better = value > best_value
            best = torch.where(better.view(-1, 1, 1, 1), candidate, best)
            best_value = torch.where(better, value, best_value)
        return best

    def for_epoch(self, epoch: int, epochs: int) -> "PGD":
        """The attack of that epoch (from 1): always this one. Schedules differ (`advtrain.attacks.PGDSchedule`)."""
        return self

    def describe(self) -> str:
        start = {"none": "x", "uniform": "U(ball)", "gaussian": f"x + {self.gaussian_scale:g} N(0, 1)"}[self.init]
        restarts = f", {self.restarts} restarts" if self.restarts > 1 else ""
        return (
            f"‖x' - x‖_{self.norm.removeprefix('l')} ≤ {self.eps:.5g}, {self.steps} steps of "
            f"{self.step_size:.5g} from {start}{restarts}"
        )

    def _climb(self, objective: Objective, x: Images, generator: Source) -> Images:
        x_adv = self._start(x, generator)
        for _ in range(self.steps):
            x_adv = self._step(objective, x, x_adv)
        return x_adv

    def _start(self, x: Images, generator: Source) -> Images:
        if self.init == "none":
            return x.clone()
        if self.init == "gaussian":
            return self._inside(x, x + self.gaussian_scale * normal_like(x, generator))
        return self._inside(x, x + self._geometry.uniform(x, self.eps, generator))

    def _step(self, objective: Objective, x: Images, x_adv: Images) -> Images:
        # The sum, not the mean: an image's gradient must not shrink with the size of the batch around it.
        with torch.enable_grad():
            leaf = x_adv.detach().requires_grad_()
            (gradient,) = torch.autograd.grad(objective(leaf).sum(), leaf)
        return self._inside(x, x_adv + self.step_size * self._geometry.direction(gradient))

    def _inside(self, x: Images, x_adv: Images) -> Images:
        return (x + self._geometry.project(x_adv - x, self.eps)).clamp(0, 1)


@torch.no_grad()
def _values(objective: Objective, x: Images) -> PerImage:
    return objective(x)
