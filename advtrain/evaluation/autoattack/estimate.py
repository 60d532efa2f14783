"""How long the rest of AutoAttack will take: a model of its cost, calibrated by what has been measured so far."""

from collections.abc import Sequence

from advtrain.evaluation.autoattack.plan import AttackPlan


def forward_equivalents(plan: AttackPlan, num_classes: int = 10) -> int:
    """Forward passes that an attack costs for an image that stays robust; an input gradient counts as one more.

    Two are the prediction before and the verdict after; then each start takes, for the standard version,
    APGD 2 per iteration and one more such pair; APGD-T a choice of target besides; FAB 4 per iteration (a forward, a
    gradient of one difference of logits and the weights' gradients, which it does not need, and a check); Square 1 per
    query. Untargeted FAB differentiates all logits.
    """
    starts = plan.restarts * max(plan.target_classes, 1)
    if plan.name == "square":
        return starts * plan.iterations + 2
    if plan.name.startswith("fab"):
        gradients = 1 if plan.target_classes else num_classes
        return starts * ((2 + 2 * gradients) * plan.iterations + 3) + 2
    phases = 3 if plan.large_eps else 1  # each with a gradient before its first step
    per_start = 2 * plan.eot * (plan.iterations + phases) + (1 if plan.target_classes else 0)
    return starts * per_start + 2


class Estimate:
    """Seconds left of a sequence of attacks, if no image more is broken.

    Args:
        planned: the sequence.
        num_classes: of the model.
        processes: that work at the same time.
    """

    def __init__(self, planned: Sequence[AttackPlan], num_classes: int, processes: int = 1) -> None:
        self._costs = [forward_equivalents(plan, num_classes) for plan in planned]
        self._processes = processes
        self._done, self._seconds = 0.0, 0.0

    def worked(self, number: int, images: int, seconds: float) -> None:
        """Attack `number` took `seconds` for a batch of so many images."""
        self._done += self._costs[number] * images
        self._seconds += seconds

    def left(self, number: int, images: int, robust: int) -> float:
        """Seconds until the end, when attack `number` has `images` to go and `robust` are left for those after it.

        0 before anything was measured.
        """
        cost = self._costs[number] * images + sum(self._costs[number + 1 :]) * robust
        return cost * self._seconds / max(self._done, 1) / self._processes
