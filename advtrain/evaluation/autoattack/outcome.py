"""What comes out of AutoAttack, whichever engine ran."""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from advtrain.types import Images

ROBUST, MISCLASSIFIED = -1, -2  # in `broken_by`


@dataclass(frozen=True)
class AutoAttackOutcome:
    """What AutoAttack found.

    Attributes:
        x_adv: adversarial images, on the CPU; the clean image where none was found.
        robust: its verdict per image, bool.
        broken_by: int8 per image: the index in `attack_names` of what broke it, ROBUST or MISCLASSIFIED.
        attack_names: the attacks of the sequence, in order.
        closest: the smallest margin (logit of the true class minus the largest other one) seen of each image in the
            search, float32; ∞ where no attack kept account of it.
        after: correct and accuracy after each attack, the first entry without any.
        flags: its warnings, by name.
        settings: what ran, in full.
    """

    x_adv: Images
    robust: Tensor
    broken_by: Tensor
    attack_names: tuple[str, ...]
    closest: Tensor
    after: list[dict[str, Any]]
    flags: list[dict[str, str | int]]
    settings: dict[str, Any]

    def extended(self, rows: Tensor, further: "AutoAttackOutcome", suffix: str) -> "AutoAttackOutcome":
        """This and what further attacks made of some of the images that are robust here.

        Args:
            rows: of those images.
            further: of them.
            suffix: to the names of the further attacks.
        """
        x_adv, broken_by, closest = self.x_adv.clone(), self.broken_by.clone(), self.closest.clone()
        broken = further.broken_by >= 0
        x_adv[rows[broken]] = further.x_adv[broken]
        broken_by[rows[broken]] = further.broken_by[broken] + len(self.attack_names)
        closest[rows] = torch.minimum(closest[rows], further.closest)
        after, n, correct = list(self.after), len(broken_by), self.after[-1]["correct"]
        for before, entry in pairwise(further.after):
            correct -= before["correct"] - entry["correct"]
            after.append(entry | {"attack": entry["attack"] + suffix, "correct": correct, "accuracy": correct / n})
        return AutoAttackOutcome(
            x_adv,
            broken_by == ROBUST,
            broken_by,
            self.attack_names + tuple(name + suffix for name in further.attack_names),
            closest,
            after,
            self.flags,
            self.settings,
        )


def title(settings: Mapping[str, Any]) -> str:
    """What a record with these `settings` may be called: only the engines with upstream's verdicts are AutoAttack."""
    if settings.get("version") == "screen":
        return "screen (" + " + ".join(name.upper() for name in settings["attacks"]) + ")"
    suffix = "-fast" if settings.get("engine") == "fast" else ""
    return f"AutoAttack{suffix} ({settings['version']})"
