"""AutoAttack's own warnings."""

from collections.abc import Callable
from typing import Any

from advtrain.evaluation.autoattack.attack_log import Flags
from advtrain.evaluation.autoattack.upstream import check_model
from advtrain.evaluation.masking.check import Check
from advtrain.evaluation.masking.evidence import AutoAttackEvidence
from advtrain.evaluation.masking.subject import Subject

SOURCE = (
    "AutoAttack's flags (Croce & Hein, arXiv:2003.01690, and flags_doc.md of its code; RobustBench, arXiv:2010.09670): "
    "none is raised"
)
SQUARE = 4  # 0.2 points, from which AutoAttack flags Square, are less than one image of 500: the least that counts


def flags(subject: Subject, autoattack: AutoAttackEvidence | None, report: Callable[[str], None]) -> Check:
    """Randomised or dynamic models and outputs that are no logits, tested here; the rest from AutoAttack if it ran.

    AutoAttack flags any image whose DLR gradient is zero, and Square when it lowers the accuracy by more than 0.2
    points beyond the other attacks; of few images that is one, so here Square's flag counts from four images on.
    """
    log = Flags(report)
    x, y = (part[: subject.batch_size].to(subject.device) for part in (subject.x, subject.y))
    check_model(subject.model, x, y, log)
    raised: dict[str, Any] = {name: flag["message"] for name, flag in log.found.items()}
    if autoattack is not None:
        raised = {str(flag["name"]): flag["message"] for flag in autoattack.flags if _counts(flag, autoattack)} | raised
    ran = "tested here" if autoattack is None else "tested here and raised by AutoAttack"
    reason = "; ".join(f"{name}: {message}" for name, message in raised.items()) or f"none of those {ran}"
    return Check("flags", not raised, None, None, reason, SOURCE, {"raised": sorted(raised)})


def _counts(flag: Any, autoattack: AutoAttackEvidence) -> bool:
    return flag["name"] != "square" or autoattack.whole()[1] >= SQUARE
