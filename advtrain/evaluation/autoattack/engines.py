"""Which function attacks a batch: the one place where an engine of ours is chosen."""

from functools import partial

from torch import nn

from advtrain.evaluation.autoattack import upstream
from advtrain.evaluation.autoattack.job import BatchAttack
from advtrain.types import SettingError


def batch_attack(engine: str, model: nn.Module) -> BatchAttack:
    """The attack of an engine, "exact" or "fast", on a batch.

    Args:
        engine: its word.
        model: images to logits, eager, in eval mode, frozen, on the device of the batches to come.
    """
    if engine == "exact":  # upstream's attack classes, until ours take their place attack by attack
        return partial(upstream.attack_batch, model)
    raise SettingError(f"eval.autoattack.engine: expected exact or upstream, got {engine}; choose one of them")
