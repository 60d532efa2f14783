"""engine=exact: AutoAttack's attacks with upstream's numbers, and less work.

Every attack here is a function `perturb(forward, x, y, plan, seed, execution)` → `Found`. For the same batch and seed
it draws what upstream draws, in the same order, and on a CPU its images are upstream's, bit for bit.
"""

from advtrain.evaluation.autoattack.exact.execution import Execution, Forward, Found

__all__ = ["Execution", "Forward", "Found"]
