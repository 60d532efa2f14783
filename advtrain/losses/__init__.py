"""Losses for adversarial training.

`advtrain.losses.functional` holds the pure tensor functions (`kl`, `dkl`, `ikl`, `gkl`), for images, dense outputs and
sequences; `advtrain.losses.divergences` holds a few more. Use them in any code: docs/losses.md. The classes here add
what training needs around them: what the attack maximises, the cross-entropy, the class prior.

    loss = advtrain.losses.IKL(num_classes=10, wmse_weight=20, ce_weight=4, temperature=4)
    x_adv = attack(loss.inner(model, x, y), x)
    total, parts = loss.outer(model, x, x_adv, y)
    total.backward()
"""

from advtrain.losses import divergences, functional
from advtrain.losses.base import Loss
from advtrain.losses.class_prior import ClassPrior
from advtrain.losses.dkl import DKL
from advtrain.losses.gkl import GKL
from advtrain.losses.ikl import IKL
from advtrain.losses.kl import KL
from advtrain.losses.mart import MART
from advtrain.losses.pgd_at import PGDAT
from advtrain.losses.standard import Standard
from advtrain.losses.trades import TRADES

__all__ = [
    "DKL",
    "GKL",
    "IKL",
    "KL",
    "MART",
    "PGDAT",
    "TRADES",
    "ClassPrior",
    "Loss",
    "Standard",
    "divergences",
    "functional",
]
