"""What comes out of AutoAttack, whichever engine ran."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

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
        after: correct and accuracy after each attack, the first entry without any.
        flags: its warnings, by name.
        settings: what ran, in full.
    """

    x_adv: Images
    robust: Tensor
    broken_by: Tensor
    attack_names: tuple[str, ...]
    after: list[dict[str, Any]]
    flags: list[dict[str, str | int]]
    settings: dict[str, Any]


def title(settings: Mapping[str, Any]) -> str:
    """What a record with these `settings` may be called: only the engines with upstream's verdicts are AutoAttack."""
    if settings.get("version") == "screen":
        return "screen (" + " + ".join(name.upper() for name in settings["attacks"]) + ")"
    suffix = "-fast" if settings.get("engine") == "fast" else ""
    return f"AutoAttack{suffix} ({settings['version']})"
