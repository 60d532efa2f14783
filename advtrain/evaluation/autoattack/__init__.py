"""AutoAttack (Croce & Hein, arXiv:2003.01690).

plan.py says what a version runs; job.py what it runs on; stages.py runs it batch by batch on any number of processes,
unfinished.py keeps what is done, engines.py chooses what attacks a batch. upstream.py is the authors' own code.
"""

from advtrain.evaluation.autoattack.outcome import AutoAttackOutcome, title
from advtrain.evaluation.autoattack.plan import AttackPlan, attacks_for
from advtrain.evaluation.autoattack.run import run_autoattack, run_screen
from advtrain.evaluation.autoattack.upstream import NORM_WORDS

__all__ = ["NORM_WORDS", "AttackPlan", "AutoAttackOutcome", "attacks_for", "run_autoattack", "run_screen", "title"]
