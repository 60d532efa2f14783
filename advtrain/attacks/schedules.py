"""Attacks that change as training goes on."""

from collections.abc import Sequence

from advtrain import checks
from advtrain.random import Source
from advtrain.types import Attack, Images, Objective, SettingError


class Scheduled(Attack):
    """Any attack, with a radius that grows and steps that change over the epochs.

    With `ramp` the radius in epoch e is ε·e/n up to epoch n, then ε. The epochs are divided into as many equal phases
    as `steps` (or `relative_step_size`) has entries; phase i takes `steps[i]` steps of `relative_step_size[i]` times
    the epoch's radius. IKL trains this way (arXiv:2305.13948).

        Scheduled(attack=PGD(eps=8 / 255, steps=10), ramp_epochs=5)

    Args:
        attack: what is scheduled; it must have `with_budget`, as all of `advtrain.attacks` do.
        eps: ε, in units of pixels in [0, 1]; the attack's own when None, and the same as that otherwise.
        ramp: whether the radius grows.
        ramp_epochs: n; all epochs when None.
        steps: steps of each phase; the attack's own when None.
        relative_step_size: step size of each phase, as a fraction of the epoch's radius; when None the attack's own
            steps grow with the radius.
    """

    def __init__(
        self,
        *,
        attack: Attack,
        eps: float | str | None = None,
        ramp: bool = True,
        ramp_epochs: int | None = None,
        steps: Sequence[int] | None = None,
        relative_step_size: Sequence[float] | None = None,
    ) -> None:
        if not isinstance(attack, Attack):
            raise SettingError(f"attack.attack: expected an attack with its own _target_, got {attack!r}; name one")
        self.attack, self.norm = attack, attack.norm
        own = getattr(attack, "eps", None)
        self.eps = checks.radius("attack.eps", own if eps is None else eps, self.norm)
        if own is not None and own != self.eps:
            raise SettingError(f"attack.attack.eps: expected attack.eps={self.eps:g}, got {own:g}; set attack.eps")
        self.ramp = checks.flag("attack.ramp", ramp)
        self.ramp_epochs = None if ramp_epochs is None else checks.integer("attack.ramp_epochs", ramp_epochs, low=1)
        self.steps = _phases("attack.steps", steps)
        self.relative_step_size = _phases("attack.relative_step_size", relative_step_size)
        self.phases = len(self.steps or self.relative_step_size or [1])
        if steps is not None and relative_step_size is not None and len(steps) != len(relative_step_size):
            raise SettingError(
                f"attack.steps: expected a list as long as attack.relative_step_size, got {steps} and "
                f"{relative_step_size}; give one entry per phase, e.g. [2,3,4,5]"
            )
        for phase in range(self.phases):  # every phase's settings are checked now, not in the middle of the run
            self._phase(phase, self.eps)

    def __call__(self, objective: Objective, x: Images, *, generator: Source = None) -> Images:
        """What it ends with: the attack of the last epoch."""
        return self._phase(self.phases - 1, self.eps)(objective, x, generator=generator)

    def for_epoch(self, epoch: int, epochs: int) -> Attack:
        """The attack of that epoch, counted from 1."""
        over = epochs if self.ramp_epochs is None else self.ramp_epochs
        eps = self.eps * epoch / over if self.ramp and epoch <= over else self.eps
        return self._phase((epoch - 1) * self.phases // epochs, eps)

    def with_budget(
        self, *, eps: float, steps: int | None = None, relative_step_size: float | None = None
    ) -> "Scheduled":
        raise SettingError("attack.attack: expected an attack, got a schedule; put all changes into one schedule")

    @property
    def radius(self) -> float:
        return self._phase(0, self.eps).radius

    @property
    def starts_at_image(self) -> bool:
        return self.attack.starts_at_image

    @property
    def single_step(self) -> bool:
        return any(self._phase(phase, self.eps).single_step for phase in range(self.phases))

    def describe(self) -> str:
        """The last phase's attack, then what differs before."""
        parts = [self._phase(self.phases - 1, self.eps).describe()]
        if self.ramp:
            over = "all epochs" if self.ramp_epochs is None else f"{self.ramp_epochs} epochs"
            parts.append(f"the radius and its steps growing over {over}")
        if self.phases > 1:
            counts = [str(count) for count in self.steps or [""] * self.phases]
            sizes = [f"of {size:.3g} ε" for size in self.relative_step_size or []] or [""] * self.phases
            phases = [f"{count} {size}".strip() for count, size in zip(counts, sizes, strict=True)]
            parts.append(f"steps by phase: {', '.join(phases)}")
        return "; ".join(parts)

    def _phase(self, phase: int, eps: float) -> Attack:
        steps = None if self.steps is None else self.steps[phase]
        relative = None if self.relative_step_size is None else self.relative_step_size[phase]
        return self.attack.with_budget(eps=eps, steps=steps, relative_step_size=relative)


def _phases(name: str, entries: Sequence[float] | None) -> list | None:
    """A checked list with one entry per phase; the attack itself checks what an entry may be."""
    if entries is not None and (isinstance(entries, str) or not isinstance(entries, Sequence) or not entries):
        raise SettingError(f"{name}: expected a list with an entry per phase, got {entries!r}; e.g. [2,3,4,5]")
    return None if entries is None else list(entries)
