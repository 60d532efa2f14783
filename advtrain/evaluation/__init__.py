"""How robust is it? Clean accuracy, PGD and AutoAttack, with the images that prove it.

    result = evaluate(model, dataset.split("test"), norm="linf", eps=8 / 255, settings=EvaluationSettings())
    result.save(Path("runs/mine"))  # evaluation.json and adversarial.npz

- `evaluate` → `Evaluation`, made of a `Result` per attack and the `Evidence` for the strongest one.
- `EvaluationSettings`, `PGDSettings`, `AutoAttackSettings`: what runs; configs/eval has the same keys.
- `EvaluationError`: a verdict that its image does not bear out.
- `recheck`: confirms every verdict of a saved evaluation from its images.
- `robustbench`: RobustBench's zoo models, and its code on top of today's AutoAttack package.
"""

from advtrain.evaluation.autoattack import title
from advtrain.evaluation.evaluate import evaluate
from advtrain.evaluation.recheck import Recheck, load_evidence, plain_check, recheck
from advtrain.evaluation.records import Evaluation, Evidence, Result, write_record
from advtrain.evaluation.settings import (
    AutoAttackSettings,
    CorruptionSettings,
    CurveSettings,
    EvaluationSettings,
    MaskingSettings,
    PGDSettings,
    ScreenSettings,
)
from advtrain.evaluation.verify import EvaluationError

__all__ = [
    "AutoAttackSettings",
    "CorruptionSettings",
    "CurveSettings",
    "Evaluation",
    "EvaluationError",
    "EvaluationSettings",
    "Evidence",
    "MaskingSettings",
    "PGDSettings",
    "Recheck",
    "Result",
    "ScreenSettings",
    "evaluate",
    "load_evidence",
    "plain_check",
    "recheck",
    "title",
    "write_record",
]
