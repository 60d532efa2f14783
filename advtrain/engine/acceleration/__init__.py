"""How the passes of a training step are run: the same mathematics, compiled or replayed.

`Acceleration` says what is wanted, `Passes` does it.
"""

from advtrain.engine.acceleration.passes import OFF, Acceleration, Passes

__all__ = ["OFF", "Acceleration", "Passes"]
