"""Is the number believable? Checks for masked gradients and for attacks that failed.

    report = masking_report(model, x, y, norm="linf", eps=8 / 255, settings=MaskingSettings())
    print("\\n".join(report.lines()))
    report.failed  # ["zero_gradients", "black_box"]

A robust accuracy is a bound from above: an attack that fails for a reason of its own leaves it too high. Every check
here asks a question that a model with honest gradients answers in one way: docs/masking.md has the table.

- `masking_report` → `MaskingReport`, made of `Check`s. `AutoAttackEvidence`: what AutoAttack has found already.
- `standard_surrogate`, `train_surrogate`: an ordinary model, on which transferred images are made.
- flags, gradients, iterative, radius, blackbox, precision: the checks, by kind. `whitebox`: the attacks they share.
"""

from advtrain.evaluation.masking.check import Check, MaskingReport
from advtrain.evaluation.masking.evidence import AutoAttackEvidence
from advtrain.evaluation.masking.report import masking_report
from advtrain.evaluation.masking.surrogate import standard_surrogate, train_surrogate

__all__ = [
    "AutoAttackEvidence",
    "Check",
    "MaskingReport",
    "masking_report",
    "standard_surrogate",
    "train_surrogate",
]
