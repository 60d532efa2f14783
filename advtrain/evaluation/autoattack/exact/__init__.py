"""AutoAttack's attacks with upstream's numbers, and less work: engine=exact, and with `Execution.shrink` engine=fast.

    found = perturb(model, x, y, AttackPlan("apgd-ce", "linf", 8 / 255), seed=0)

For the same batch and seed each draws what upstream draws, in the same order, and on a CPU its images are upstream's,
bit for bit. apgd.py, fab.py and square.py each have a function `perturb` with the arguments of the one here.
"""

from advtrain.evaluation.autoattack.exact import apgd, fab, square
from advtrain.evaluation.autoattack.exact.execution import UPSTREAM, Execution, Forward, Found
from advtrain.evaluation.autoattack.exact.memory import kept_memory
from advtrain.evaluation.autoattack.plan import AttackPlan
from advtrain.types import Images, Labels

_ATTACKS = {
    "apgd-ce": apgd.perturb,
    "apgd-dlr": apgd.perturb,
    "apgd-t": apgd.perturb,
    "fab": fab.perturb,
    "fab-t": fab.perturb,
    "square": square.perturb,
}

__all__ = ["UPSTREAM", "Execution", "Forward", "Found", "perturb"]


@kept_memory()
def perturb(
    forward: Forward, x: Images, y: Labels, plan: AttackPlan, seed: int, execution: Execution = UPSTREAM
) -> Found:
    """The plan's attack on one batch.

    Args:
        forward: images to logits, deterministic unless plan.eot > 1; its parameters take no gradient.
        x: images in [0, 1], contiguous; those that are not classified as `y` are returned as they are.
        y: labels.
        plan: which attack, with which numbers.
        seed: of its random draws.
        execution: how it runs.

    Raises:
        SettingError: the plan does not fit the model or the images.
    """
    return _ATTACKS[plan.name](forward, x, y, plan, seed, execution)
