"""Which function attacks a batch: the one place where an engine of ours is chosen."""

from functools import partial

import torch
from torch import nn

from advtrain.evaluation.autoattack.exact import Execution, Found, perturb
from advtrain.evaluation.autoattack.fast import GPU_BLOCK, FastAttack
from advtrain.evaluation.autoattack.job import BatchAttack
from advtrain.evaluation.autoattack.plan import AttackPlan
from advtrain.types import Images, Labels


def batch_attack(
    engine: str, model: nn.Module, device: torch.device | str, compiled: bool | None = None
) -> BatchAttack:
    """The attack of an engine, "exact" or "fast", on a batch.

    Args:
        engine: its word.
        model: images to logits, eager, in eval mode, frozen, on `device`.
        device: of the model and of the batches to come.
        compiled: of engine=fast, whether its passes are compiled; not when None.
    """
    device = torch.device(device)
    if engine == "fast":
        return FastAttack(model, device, compiled)
    return partial(_exact, model, Execution(block=1 if device.type == "cpu" else GPU_BLOCK))


def _exact(model: nn.Module, execution: Execution, x: Images, y: Labels, plan: AttackPlan, seed: int) -> Found:
    return perturb(model, x, y, plan, seed, execution)
