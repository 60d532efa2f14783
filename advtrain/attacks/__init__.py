"""Attacks that make training and evaluation examples.

    attack = PGD(norm="linf", eps=8 / 255, steps=10, step_size=2 / 255, init="uniform")
    x_adv = attack(objective, x, generator=generator)

`objective` maps images to a loss per image; an attack looks for nearby images on which it is large.

- `PGD`: projected gradient ascent in Linf or L2.
- `PGDSchedule`: PGD whose radius and steps change over the epochs.
- `norms`: the geometry they share.
"""

from advtrain.attacks import norms
from advtrain.attacks.pgd import PGD
from advtrain.attacks.schedules import PGDSchedule

__all__ = ["PGD", "PGDSchedule", "norms"]
