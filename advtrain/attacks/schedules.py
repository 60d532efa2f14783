"""Attacks that change as training goes on."""

from collections.abc import Sequence

from advtrain import checks
from advtrain.attacks.norms import NORMS
from advtrain.attacks.pgd import INITS, PGD
from advtrain.types import SettingError


class PGDSchedule:
    """PGD whose radius grows and whose steps change over the epochs (the recipes of IKL, arXiv:2305.13948).

    The epochs are divided into as many equal phases as `steps` has entries. In epoch e of E the radius is
    ε_e = ε·e/E when `ramp` is on, and phase i takes `steps[i]` steps of `relative_step_size[i]`·ε_e.

    Args:
        norm, eps, init, gaussian_scale, restarts: as for `PGD`; `eps` is the radius of the last epoch.
        steps: steps of each phase.
        relative_step_size: step size of each phase, as a fraction of ε_e.
        ramp: whether the radius grows linearly from ε/E to ε.
    """

    def __init__(
        self,
        *,
        norm: str = "linf",
        eps: float | str,
        steps: Sequence[int],
        relative_step_size: Sequence[float],
        ramp: bool = True,
        init: str = "gaussian",
        gaussian_scale: float = 0.001,
        restarts: int = 1,
    ) -> None:
        if isinstance(steps, str | int) or not len(steps) == len(relative_step_size) >= 1:
            raise SettingError(
                f"attack.steps: expected a list as long as attack.relative_step_size, got {steps} and "
                f"{relative_step_size}; give one entry per phase, e.g. [2,3,4,5]"
            )
        self.norm = checks.choice("attack.norm", norm, NORMS)
        self.eps = checks.radius("attack.eps", eps, norm)
        self.steps = [checks.integer("attack.steps", n, low=1) for n in steps]
        self.relative_step_size = [checks.number("attack.relative_step_size", s, above=0) for s in relative_step_size]
        self.ramp = checks.flag("attack.ramp", ramp)
        self.init = checks.choice("attack.init", init, INITS)
        self.gaussian_scale = checks.number("attack.gaussian_scale", gaussian_scale, low=0)
        self.restarts = checks.integer("attack.restarts", restarts, low=1)

    def for_epoch(self, epoch: int, epochs: int) -> PGD:
        """The attack of that epoch, counted from 1."""
        phase = (epoch - 1) * len(self.steps) // epochs
        eps = self.eps * epoch / epochs if self.ramp else self.eps
        return PGD(
            norm=self.norm,
            eps=eps,
            steps=self.steps[phase],
            step_size=eps * self.relative_step_size[phase],
            init=self.init,
            gaussian_scale=self.gaussian_scale,
            restarts=self.restarts,
        )

    def describe(self) -> str:
        phases = ", ".join(f"{n} of {s:.3g} ε" for n, s in zip(self.steps, self.relative_step_size, strict=True))
        ramp = f"growing to {self.eps:.5g}" if self.ramp else f"{self.eps:.5g}"
        return f"‖x' - x‖_{self.norm.removeprefix('l')} ≤ ε {ramp}, steps by phase: {phases}, from {self.init}"
