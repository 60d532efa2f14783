"""FGSM from a point of much noise, without projection."""

from advtrain import checks
from advtrain.attacks import ascent
from advtrain.attacks.norms import NORMS, norm_named
from advtrain.random import Source
from advtrain.types import Images, Objective, SettingError


class NFGSM(ascent.GradientAttack):
    """x + η + a step of length ε, with η ~ U(-kε, kε) and no projection onto the ε-ball.

    de Jorge et al., "Make Some Noise: Reliable and Efficient Single-Step Adversarial Training", NeurIPS 2022,
    arXiv:2202.01181, algorithm 1. The image may therefore lie (k + 1)ε away: see `radius`. Both the noisy point and the
    result are clipped to [0, 1]. In L2 and L1, beyond the paper, η is uniform in the ball of radius kε.

    Args:
        norm: "linf" (the paper's), "l2" or "l1".
        eps: ε, the length of the step, in units of pixels in [0, 1].
        noise: k, the radius of the noise as a multiple of `eps`.
    """

    def __init__(self, *, norm: str = "linf", eps: float | str, noise: float = 2.0) -> None:
        self.norm = checks.choice("attack.norm", norm, NORMS)
        self.eps = checks.radius("attack.eps", eps, norm)
        self.noise = checks.number("attack.noise", noise, low=0)
        self._geometry = norm_named(norm)

    def __call__(self, objective: Objective, x: Images, *, generator: Source = None) -> Images:
        """Finds adversarial images, `radius` away from `x` at most; arguments as for `PGD`."""
        x = x.detach()
        noisy = (x + self._geometry.uniform(x, self.noise * self.eps, generator)).clamp(0, 1)
        _, gradient = self._ascent.value_and_gradient(objective, noisy)
        return self._geometry.step(noisy, gradient, self.eps).clamp(0, 1)

    @property
    def radius(self) -> float:
        return (self.noise + 1) * self.eps

    @property
    def starts_at_image(self) -> bool:
        return self.noise == 0

    @property
    def single_step(self) -> bool:
        return True

    def with_budget(self, *, eps: float, steps: int | None = None, relative_step_size: float | None = None) -> "NFGSM":
        if steps is not None or relative_step_size is not None:
            raise SettingError(
                f"attack.steps: expected none for NFGSM, which takes one step of eps, got {steps} and "
                f"relative_step_size={relative_step_size}; set both to null"
            )
        return NFGSM(norm=self.norm, eps=eps, noise=self.noise)

    def describe(self) -> str:
        noise = f"U(-{self.noise:g}ε, {self.noise:g}ε)" if self.norm == "linf" else f"U(ball of {self.noise:g}ε)"
        return f"1 step of ε = {self.eps:.5g} from x + {noise}, unprojected: {ascent.ball(self.norm, self.radius)}"
