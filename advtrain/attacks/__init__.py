"""Attacks that make training and evaluation examples.

    attack = PGD(norm="linf", eps=8 / 255, steps=10, step_size=2 / 255, init="uniform")
    x_adv = attack(objective, x, generator=generator)

`objective` maps images to a loss per image; an attack looks for nearby images on which it is large. It knows no model
and no label. One that changes over the epochs is asked for the attack of an epoch first:

    scheduled = Scheduled(attack=attack, ramp_epochs=5)  # the radius grows from eps/5 to eps
    x_adv = scheduled.for_epoch(epoch, epochs)(objective, x, generator=generator)

- `PGD`: projected gradient ascent in Linf, L2 or L1; with one step FGSM and FGSM-RS.
- `APGD`: PGD that chooses its step size and keeps the best point; Linf or L2.
- `NFGSM`: one step from a point of much noise, without projection.
- `Free`: one step per replay of the minibatch, on the gradient that trains the weights.
- `Scheduled`: any of them, with a radius that grows and steps that change over the epochs.
- `Attack`: what to derive from for an attack of your own; `__call__` is all it needs.
- `norms`: the geometry they share. `ascent`: starting points and gradients.
"""

from advtrain.attacks import ascent, norms
from advtrain.attacks.apgd import APGD
from advtrain.attacks.free import Free
from advtrain.attacks.n_fgsm import NFGSM
from advtrain.attacks.pgd import PGD
from advtrain.attacks.schedules import Scheduled
from advtrain.types import Attack

__all__ = ["APGD", "NFGSM", "PGD", "Attack", "Free", "Scheduled", "ascent", "norms"]
