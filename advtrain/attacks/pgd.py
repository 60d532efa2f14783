"""Projected gradient ascent, in any norm, on any objective.

    attack = PGD(norm="linf", eps=8 / 255, steps=10, step_size=2 / 255, init="uniform")
    x_adv = attack(objective, x, generator=generator)

The attack is an initial point, a step rule and a projection over a function "images → loss per image". It knows no
model and no label; whoever builds the objective decides both (`advtrain.losses.Loss.inner`, or three lines of yours).
"""

from advtrain import checks
from advtrain.attacks import ascent
from advtrain.attacks.norms import NORMS, norm_named
from advtrain.random import Source
from advtrain.types import Images, Objective, SettingError


class PGD(ascent.GradientAttack):
    """Projected gradient descent (Madry et al., arXiv:1706.06083), maximising the objective.

    Each step moves along the steepest direction of the norm (sign for Linf, unit gradient for L2, few pixels for L1),
    then back into the ball around the clean image and into [0, 1]. Only the gradient of the images is computed.

    With one step it is FGSM (Goodfellow et al., arXiv:1412.6572: init="none", relative_step_size=1) and FGSM-RS (Wong
    et al., arXiv:2001.03994: init="uniform", relative_step_size=1.25).

    Args:
        norm: "linf", "l2" or "l1".
        eps: radius of the ball, in units of pixels in [0, 1].
        steps: gradient steps per restart.
        step_size: length of a step in the norm, same units as `eps`.
        relative_step_size: the same as a fraction of `eps`, in place of `step_size`; 1/4 when neither is given.
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
        relative_step_size: float | None = None,
        init: str = "uniform",
        gaussian_scale: float = 0.001,
        restarts: int = 1,
    ) -> None:
        self.norm = checks.choice("attack.norm", norm, NORMS)
        self.eps = checks.radius("attack.eps", eps, norm)
        self.steps = checks.integer("attack.steps", steps, low=1)
        self.step_size = _step_size(self.eps, step_size, relative_step_size)
        self.init = checks.choice("attack.init", init, ascent.INITS)
        self.gaussian_scale = checks.number("attack.gaussian_scale", gaussian_scale, low=0)
        self.restarts = checks.integer("attack.restarts", restarts, low=1)
        self._fixed_step = step_size is not None
        self._relative_step_size = relative_step_size
        self._geometry = norm_named(norm)

    def __call__(
        self, objective: Objective, x: Images, *, generator: Source = None, start: Images | None = None
    ) -> Images:
        """Finds adversarial images.

        Args:
            objective: images (n, c, h, w) → loss per image (n,); differentiable in the images.
            x: clean images in [0, 1], shape (n, c, h, w).
            generator: where random starts come from; torch's global generator when not given.
            start: images that the first start is taken from in place of `init`, brought into the ball first.

        Returns:
            Images in [0, 1] within `eps` of `x`, same shape, dtype and device, detached.
        """
        x = x.detach()
        best = self._climb(objective, x, generator, start)
        if self.restarts == 1:
            return best
        best_value = ascent.values(objective, best)
        for _ in range(self.restarts - 1):
            candidate = self._climb(objective, x, generator)
            value = ascent.values(objective, candidate)
            better = value > best_value
            best = ascent.per_image(better, candidate, best)
            best_value = value.where(better, best_value)
        return best

    @property
    def radius(self) -> float:
        return self.eps

    @property
    def starts_at_image(self) -> bool:
        return self.init == "none"

    @property
    def single_step(self) -> bool:
        return self.steps == 1

    def with_budget(self, *, eps: float, steps: int | None = None, relative_step_size: float | None = None) -> "PGD":
        relative = self._relative_step_size if relative_step_size is None else relative_step_size
        fixed = None
        if self._fixed_step and relative_step_size is None:
            fixed = self.step_size * (eps / self.eps if self.eps else 1.0)
        return PGD(
            norm=self.norm,
            eps=eps,
            steps=self.steps if steps is None else steps,
            step_size=fixed,
            relative_step_size=relative,
            init=self.init,
            gaussian_scale=self.gaussian_scale,
            restarts=self.restarts,
        )

    def describe(self) -> str:
        start = {"none": "x", "uniform": "U(ball)", "gaussian": f"x + {self.gaussian_scale:g} N(0, 1)"}[self.init]
        restarts = f", {self.restarts} restarts" if self.restarts > 1 else ""
        steps = f"{self.steps} step{'s' if self.steps > 1 else ''} of {self.step_size:.5g}"
        return f"{ascent.ball(self.norm, self.eps)}, {steps} from {start}{restarts}"

    def _climb(self, objective: Objective, x: Images, generator: Source, start: Images | None = None) -> Images:
        if start is None:
            x_adv = ascent.start(self._geometry, x, self.eps, self.init, generator, self.gaussian_scale)
        else:
            x_adv = self._geometry.inside(x, start.detach(), self.eps)
        return self._ascent.climb(
            objective, self._geometry, x, x_adv, eps=self.eps, step_size=self.step_size, steps=self.steps
        )


def _step_size(eps: float, absolute: float | str | None, relative: float | None) -> float:
    if absolute is None:
        return eps * checks.number("attack.relative_step_size", 0.25 if relative is None else relative, above=0)
    if relative is not None:
        raise SettingError(
            f"attack.step_size: expected none beside attack.relative_step_size={relative:g}, got {absolute}; "
            "set one of the two to null"
        )
    return checks.number("attack.step_size", absolute, low=0)
