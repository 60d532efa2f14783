"""Which acceleration a run uses."""

from advtrain.attacks.ascent import Eager
from advtrain.config import TrainerSettings
from advtrain.engine.acceleration import OFF, Acceleration
from advtrain.types import Attack


def asked_for(settings: TrainerSettings) -> Acceleration:
    """The acceleration that the settings name."""
    if settings.compile == "auto":
        return OFF
    return Acceleration(settings.compile, bool(settings.cuda_graph))


def takes_passes(attack: Attack, acceleration: Acceleration, epochs: int) -> bool:
    """Whether the acceleration reaches the attack: one that runs its own passes knows nothing of compiled steps.

    With compile=model it is the model that is compiled, whoever calls it.
    """
    if acceleration == Acceleration("model"):
        return True
    first = attack.for_epoch(1, epochs)
    return first.using(Eager()) is not first
