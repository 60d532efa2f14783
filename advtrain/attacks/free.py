"""The attack that costs nothing: the training pass's own image gradient, and a perturbation that is carried on."""

import torch

from advtrain import checks
from advtrain.attacks import ascent
from advtrain.attacks.norms import NORMS, norm_named
from advtrain.random import Source
from advtrain.types import Images, Objective, SettingError


class Free(ascent.GradientAttack):
    """Free adversarial training: each minibatch is replayed m times, and every backward pass serves twice.

    Shafahi et al., "Adversarial Training for Free!", NeurIPS 2019, arXiv:1904.12843, algorithm 1. The gradient of the
    training loss that moves the weights also moves the perturbation by a step of ε; the perturbation is kept for the
    next replay and for the next minibatch. `advtrain.engine.free` does this; here are the settings and the step.

    Replays count as optimiser steps, so an epoch costs m ordinary ones. The paper divides the epochs of the ordinary
    run by m: `replays=8, trainer.epochs=10` costs about what 80 epochs of standard training cost.

    Called like any attack, on weights that stand still, it is what m replays are then: m steps of ε from the image.

    Args:
        norm: "linf" (the paper's), "l2" or "l1".
        eps: radius of the ball and length of a step, in units of pixels in [0, 1].
        replays: m, how often each minibatch is trained on in succession.
    """

    def __init__(self, *, norm: str = "linf", eps: float | str, replays: int = 8) -> None:
        self.norm = checks.choice("attack.norm", norm, NORMS)
        self.eps = checks.radius("attack.eps", eps, norm)
        self.replays = checks.integer("attack.replays", replays, low=1)
        self._geometry = norm_named(norm)

    def __call__(self, objective: Objective, x: Images, *, generator: Source = None) -> Images:
        """m steps of ε from the image; arguments as for `PGD`."""
        x = x.detach()
        perturbation = torch.zeros_like(x)
        for _ in range(self.replays):
            x_adv = self.applied(x, perturbation)
            _, gradient = self._ascent.value_and_gradient(objective, x_adv)
            perturbation = self.ascended(x_adv, perturbation, gradient)
        return self.applied(x, perturbation)

    def applied(self, x: Images, perturbation: Images) -> Images:
        """x + δ, in the ball and in [0, 1]."""
        return self._geometry.inside(x, x + perturbation, self.eps)

    def ascended(self, x_adv: Images, perturbation: Images, gradient: Images) -> Images:
        """δ after a step of ε along the gradient that was found at `x_adv`; in the ball around zero."""
        moved = self._geometry.step(x_adv, gradient, self.eps) - x_adv
        return self._geometry.project(perturbation + moved, self.eps)

    @property
    def radius(self) -> float:
        return self.eps

    @property
    def starts_at_image(self) -> bool:
        return True

    @property
    def single_step(self) -> bool:
        return True

    def with_budget(self, *, eps: float, steps: int | None = None, relative_step_size: float | None = None) -> "Free":
        if steps is not None or relative_step_size is not None:
            raise SettingError(
                f"attack.steps: expected none for Free, which takes one step of eps per replay, got {steps} and "
                f"relative_step_size={relative_step_size}; set both to null"
            )
        return Free(norm=self.norm, eps=eps, replays=self.replays)

    def describe(self) -> str:
        return (
            f"{ascent.ball(self.norm, self.eps)}, 1 step of ε per replay from the last x' - x; each minibatch is "
            f"replayed {self.replays} times, so an epoch costs {self.replays}"
        )
