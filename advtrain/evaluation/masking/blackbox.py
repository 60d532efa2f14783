"""Attacks without the model's gradient: what they alone break, the gradient hid."""

import torch
from torch import Tensor, nn

from advtrain.attacks import APGD, PGD
from advtrain.evaluation.autoattack.plan import AttackPlan
from advtrain.evaluation.masking.check import Check
from advtrain.evaluation.masking.evidence import AutoAttackEvidence
from advtrain.evaluation.masking.iterative import share
from advtrain.evaluation.masking.subject import Subject, objective_of
from advtrain.evaluation.masking.whitebox import WhiteBox, planned
from advtrain.evaluation.modes import frozen
from advtrain.losses.objectives import CrossEntropy

ALONE = 0.02
QUERIES = 300  # of Square, where AutoAttack's 5,000 did not run
TRANSFER_STEPS = 10
BLACK_BOX_SOURCE = (
    "Athalye, Carlini & Wagner, arXiv:1802.00420, section 3.1: black-box attacks must not beat white-box ones; Square: "
    "Andriushchenko et al., arXiv:1912.00049; Uesato et al., arXiv:1802.05666; passes up to 2 % of the images that it "
    "alone breaks and what a binomial test at 0.001 adds"
)
TRANSFER_SOURCE = (
    "Papernot et al., arXiv:1602.02697, and Carlini et al., arXiv:1902.06705: images made on another model must not "
    "beat white-box attacks; passes up to 2 % of the images that they alone break and what a binomial test at 0.001 "
    "adds"
)


def black_box(subject: Subject, white: WhiteBox, autoattack: AutoAttackEvidence | None) -> Check:
    """Images that Square breaks and no attack with gradients does."""
    if autoattack is not None and autoattack.ran("square"):
        alone, queries = white.robust & autoattack.broken("square"), "AutoAttack's Square"
    else:
        plan = AttackPlan("square", subject.norm, subject.eps, iterations=QUERIES)
        _, correct = subject.attack("square", planned(subject, plan), white.robust)
        alone, queries = white.robust & ~correct, f"Square with {QUERIES} queries"
    count = int(alone.sum())
    reason = f"{queries} breaks {count} of the {int(white.robust.sum())} that white-box attacks left"
    return share("black_box", count, len(subject), ALONE, reason, BLACK_BOX_SOURCE)


def transfer(subject: Subject, white: WhiteBox, surrogate: nn.Module | None) -> Check:
    """Images that an attack on another, ordinary model breaks and no white-box attack does."""
    if surrogate is None:
        return Check("transfer", None, None, None, "there is no other model to attack", TRANSFER_SOURCE)
    if subject.norm == "l1":
        attack = PGD(norm="l1", eps=subject.eps, steps=TRANSFER_STEPS)
    else:
        attack = APGD(norm=subject.norm, eps=subject.eps, steps=TRANSFER_STEPS)

    def on_surrogate(x: Tensor, y: Tensor, generator: torch.Generator) -> Tensor:
        return attack(objective_of(surrogate, CrossEntropy(y)), x, generator=generator)

    with frozen(surrogate):
        _, correct = subject.attack("transfer", on_surrogate, white.robust)
    count = int((white.robust & ~correct).sum())
    reason = f"images made on the other model break {count} of the {int(white.robust.sum())} that white-box left"
    return share("transfer", count, len(subject), ALONE, reason, TRANSFER_SOURCE)
