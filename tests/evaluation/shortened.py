"""Versions of AutoAttack that end in seconds: the same attacks with small numbers, for every engine alike."""

import dataclasses
from typing import Any

from advtrain.evaluation.autoattack.plan import AttackPlan, plans


def shortened(*version: Any, iterations: int = 4, queries: int = 30, most: int = 2, **threat: Any) -> Any:
    """As `plans`, with so many iterations and queries, and at most `most` restarts, target classes and EOT samples."""

    def short(plan: AttackPlan) -> AttackPlan:
        return dataclasses.replace(
            plan,
            iterations=queries if plan.name == "square" else iterations,
            restarts=min(plan.restarts, most),
            target_classes=min(plan.target_classes, most),
            eot=min(plan.eot, most),
        )

    planned, fallback = plans(*version, **threat)
    return [short(plan) for plan in planned], fallback
