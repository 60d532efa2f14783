"""Losses for adversarial training.

`advtrain.losses.functional` holds the pure tensor functions (`kl`, `dkl`, `ikl`, `gkl`), for images, dense outputs and
sequences; `advtrain.losses.divergences` holds a few more. Use them in any code: docs/losses.md. The classes here add
what training needs around them: what the attack maximises, the cross-entropy, the class prior.

    loss = advtrain.losses.IKL(num_classes=10, wmse_weight=20, ce_weight=4, temperature=4)
    x_adv = attack(loss.inner(model, x, y), x)
    total, parts = loss.outer(model, x, x_adv, y)
    total.backward()

Distillation is a loss that holds a teacher: `advtrain.losses.KD().hold(Teacher(network))`, then as above with x in
place of x_adv; its pure functions are in `advtrain.losses.transfer`. Robust distillation has an attack, too:
`advtrain.losses.RSLAD().hold(Teacher(network))` is used as IKL above.
"""

from advtrain.losses import divergences, functional, transfer
from advtrain.losses.adaad import AdaAD
from advtrain.losses.ard import ARD
from advtrain.losses.base import Loss
from advtrain.losses.class_prior import ClassPrior
from advtrain.losses.distillation import CleanDistillation, Distillation, taught_beside
from advtrain.losses.dkd import DKD
from advtrain.losses.dkl import DKL
from advtrain.losses.gkl import GKL
from advtrain.losses.gkl_kd import GKLKD
from advtrain.losses.iad import IAD
from advtrain.losses.ikl import IKL
from advtrain.losses.ikl_kd import IKLKD
from advtrain.losses.kd import KD
from advtrain.losses.kl import KL
from advtrain.losses.mart import MART
from advtrain.losses.pgd_at import PGDAT
from advtrain.losses.robust_distillation import RobustDistillation
from advtrain.losses.rslad import RSLAD
from advtrain.losses.standard import Standard
from advtrain.losses.teacher import Teacher
from advtrain.losses.trades import TRADES

__all__ = [
    "ARD",
    "DKD",
    "DKL",
    "GKL",
    "GKLKD",
    "IAD",
    "IKL",
    "IKLKD",
    "KD",
    "KL",
    "MART",
    "PGDAT",
    "RSLAD",
    "TRADES",
    "AdaAD",
    "ClassPrior",
    "CleanDistillation",
    "Distillation",
    "Loss",
    "RobustDistillation",
    "Standard",
    "Teacher",
    "divergences",
    "functional",
    "taught_beside",
    "transfer",
]
