"""Adaptive sharpness-aware minimisation."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from advtrain import checks
from advtrain.engine.foreach import copies, scale_all
from advtrain.engine.weight_perturbations.base import TINY, AscentStep


class ASAM(AscentStep):
    """Adaptive sharpness-aware minimisation: SAM in coordinates that are relative to the size of each weight.

    Kwon et al., "ASAM: Adaptive Sharpness-Aware Minimization for Scale-Invariant Learning of Deep Neural Networks",
    ICML 2021, arXiv:2102.11600: ε = ρ·T²g/‖T·g‖₂, so that ‖T⁻¹ε‖₂ = ρ, with the element-wise operator T = |w| + η for
    weights and T = 1 for the rest. As in the published code, weights are the parameters whose name ends in a word with
    "weight": convolutions, linear layers, scales of normalisation layers. Biases, and tokens of transformers, have
    T = 1. The norm is over every parameter that has a gradient, and all of them move.

    Args:
        rho: ρ, the length of the step in units of T (0.5 on CIFAR-10 and 1 on CIFAR-100, without attacks).
        eta: η, which lets weights near zero move, too.
        start_epoch: the first epoch, counted from 1, in which weights are perturbed.
    """

    def __init__(self, *, rho: float = 0.5, eta: float = 0.01, start_epoch: int = 1) -> None:
        super().__init__(start_epoch=start_epoch)
        self.rho = checks.number("weight_perturbation.rho", rho, low=0)
        self.eta = checks.number("weight_perturbation.eta", eta, low=0)

    def moves(self, weights: Mapping[str, Tensor], gradients: dict[str, Tensor]) -> dict[str, Tensor]:
        scaled = [name for name in gradients if "weight" in name.rpartition(".")[2]]
        own = [gradients[name] for name in scaled]
        scale = copies(weights[name] for name in scaled)
        if scaled:  # T, and T·g in the place of g
            torch._foreach_abs_(scale)
            torch._foreach_add_(scale, self.eta)
            torch._foreach_mul_(own, scale)
        length = nn.utils.get_total_norm(gradients.values())
        if scaled:
            torch._foreach_mul_(own, scale)
        scale_all(gradients.values(), self.rho / length.clamp_min(TINY))
        return gradients
