"""Auto-PGD: projected gradient ascent that chooses its step size and keeps the best point."""

import math

import torch

from advtrain import checks
from advtrain.attacks import ascent
from advtrain.attacks.norms import NORMS, norm_named
from advtrain.random import Source
from advtrain.types import Images, Objective, PerImage, SettingError

MOMENTUM = 0.75  # α of the paper: the weight of the new step against the last movement
RISING = 0.75  # ρ: the share of steps that must have raised the objective


class APGD(ascent.GradientAttack):
    """APGD (Croce & Hein, "Reliable evaluation of adversarial robustness ...", arXiv:2003.01690, algorithm 1).

    Starts with steps of 2ε and momentum. At checkpoints an image's step is halved, and the search goes on from its best
    point, where fewer than ρ of the steps since the last checkpoint raised the objective, or where neither step nor
    best value changed since then. The best point of all is returned, so the objective is never below its start.

    Costs `steps` forward-backward passes and one forward pass.

    Args:
        norm: "linf" or "l2". L1 has an APGD of its own (arXiv:2103.01208), which is not offered for training.
        eps: radius of the ball, in units of pixels in [0, 1].
        steps: gradient steps; 2 to 10 are usual in training.
        init: "none" starts at the image, "uniform" at a uniform draw from the ball.
    """

    def __init__(self, *, norm: str = "linf", eps: float | str, steps: int = 10, init: str = "uniform") -> None:
        if norm == "l1":
            raise SettingError(
                "attack.norm: expected linf or l2 for APGD, got 'l1', for which APGD is another algorithm; "
                "choose attack=pgd, which has L1's own step and projection"
            )
        self.norm = checks.choice("attack.norm", norm, NORMS)
        self.eps = checks.radius("attack.eps", eps, norm)
        self.steps = checks.integer("attack.steps", steps, low=1)
        self.init = checks.choice("attack.init", init, ("none", "uniform"))
        self._geometry = norm_named(norm)

    def __call__(
        self, objective: Objective, x: Images, *, generator: Source = None, start: Images | None = None
    ) -> Images:
        """Finds adversarial images; arguments and result as for `PGD`."""
        x = x.detach()
        if start is None:
            current = previous = ascent.start(self._geometry, x, self.eps, self.init, generator)
        else:
            current = previous = self._inside(x, start.detach())
        search = _Search(current, 2 * self.eps)
        turning = checkpoints(self.steps)
        for k in range(self.steps):
            value, gradient = self._ascent.value_and_gradient(objective, current)
            search.see(current, value, gradient)
            if k in turning:
                current, gradient = search.turn(current, gradient)
            following = self._inside(x, self._geometry.step(current, gradient, search.step_size))
            if k > 0:
                momentum = MOMENTUM * (following - current) + (1 - MOMENTUM) * (current - previous)
                following = self._inside(x, current + momentum)
            current, previous = following, current
        return ascent.per_image(ascent.values(objective, current) > search.best_value, current, search.best)

    @property
    def radius(self) -> float:
        return self.eps

    @property
    def starts_at_image(self) -> bool:
        return self.init == "none"

    @property
    def single_step(self) -> bool:
        return self.steps == 1

    def with_budget(self, *, eps: float, steps: int | None = None, relative_step_size: float | None = None) -> "APGD":
        if relative_step_size is not None:
            raise SettingError(
                f"attack.relative_step_size: expected none for APGD, which chooses its steps, got "
                f"{relative_step_size}; set it to null"
            )
        return APGD(norm=self.norm, eps=eps, steps=self.steps if steps is None else steps, init=self.init)

    def describe(self) -> str:
        start = {"none": "x", "uniform": "U(ball)"}[self.init]
        return f"{ascent.ball(self.norm, self.eps)}, {self.steps} steps of APGD, at first of 2ε, from {start}"

    def _inside(self, x: Images, x_adv: Images) -> Images:
        return self._geometry.inside(x, x_adv, self.eps)


class _Search:
    """What the search of each image has seen, and its step size.

    Attributes:
        step_size: η, shape (n, 1, 1, 1).
        best, best_value, best_gradient: x_max, f(x_max), ∇f(x_max).
    """

    def __init__(self, x: Images, step_size: float) -> None:
        self.step_size = torch.full_like(x[:, :1, :1, :1], step_size)
        self.best, self.best_gradient = x, torch.zeros_like(x)
        self.best_value = self._last = torch.empty(0)
        self._best_before, self._halved_before = self.best_value, torch.zeros(len(x), dtype=torch.bool, device=x.device)
        self._rises, self._steps = torch.zeros(len(x), dtype=torch.int64, device=x.device), 0

    def see(self, x: Images, value: PerImage, gradient: Images) -> None:
        """Takes note of the objective at the point that a step led to."""
        if not len(self._last) and len(x):  # the starting point
            self.best, self.best_gradient = x, gradient
            self.best_value = self._last = self._best_before = value
            return
        better = value > self.best_value
        self.best = ascent.per_image(better, x, self.best)
        self.best_gradient = ascent.per_image(better, gradient, self.best_gradient)
        self.best_value = value.where(better, self.best_value)
        self._rises = self._rises + (value > self._last)
        self._steps += 1
        self._last = value

    def turn(self, x: Images, gradient: Images) -> tuple[Images, Images]:
        """At a checkpoint: halves the step where the search is stuck, and continues there from the best point.

        Returns:
            The points to go on from and the gradients at them; no pass is spent on going back.
        """
        unchanged = (self.best_value == self._best_before) & ~self._halved_before
        stuck = (self._rises < RISING * self._steps) | unchanged
        self.step_size = ascent.per_image(stuck, self.step_size / 2, self.step_size)
        self._best_before, self._halved_before = self.best_value, stuck
        self._rises, self._steps = torch.zeros_like(self._rises), 0
        self._last = self.best_value.where(stuck, self._last)
        return ascent.per_image(stuck, self.best, x), ascent.per_image(stuck, self.best_gradient, gradient)


def checkpoints(steps: int) -> set[int]:
    """w_j = ⌈p_j N⌉ for N steps, with p_0 = 0, p_1 = 0.22, p_{j+1} = p_j + max(p_j - p_{j-1} - 0.03, 0.06)."""
    last, now = 0.0, 0.22
    found = set()
    while now < 1:
        found.add(math.ceil(round(now * steps, 9)))  # rounded, because 0.8 · 5 is 4 and must not become 5
        last, now = now, now + max(now - last - 0.03, 0.06)
    return found
