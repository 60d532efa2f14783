"""AutoAttack (Croce & Hein, arXiv:2003.01690)."""

from advtrain.evaluation.autoattack.plan import AttackPlan, attacks_for
from advtrain.evaluation.autoattack.upstream import NORM_WORDS, AutoAttackOutcome, run_autoattack

__all__ = ["NORM_WORDS", "AttackPlan", "AutoAttackOutcome", "attacks_for", "run_autoattack"]
