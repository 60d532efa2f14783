"""Sharpness-aware minimisation."""

from collections.abc import Mapping

from torch import Tensor, nn

from advtrain import checks
from advtrain.engine.foreach import scale_all
from advtrain.engine.weight_perturbations.base import TINY, AscentStep


class SAM(AscentStep):
    """Sharpness-aware minimisation: one ascent step of length ρ over all parameters together.

    Foret et al., "Sharpness-Aware Minimization for Efficiently Improving Generalization", ICLR 2021,
    arXiv:2010.01412, equation 2 with p = 2: ε = ρ·g/‖g‖₂. The norm is the L2 norm over every parameter that has a
    gradient, and all of them move: weights, biases, scales and shifts of normalisation layers. Weight decay is not
    part of the loss that is ascended.

    Args:
        rho: ρ, the length of the step in weight space (0.05 on CIFAR-10 and 0.1 on CIFAR-100, without attacks).
        start_epoch: the first epoch, counted from 1, in which weights are perturbed.
    """

    def __init__(self, *, rho: float = 0.05, start_epoch: int = 1) -> None:
        super().__init__(start_epoch=start_epoch)
        self.rho = checks.number("weight_perturbation.rho", rho, low=0)

    def moves(self, weights: Mapping[str, Tensor], gradients: dict[str, Tensor]) -> dict[str, Tensor]:
        scale_all(gradients.values(), self.rho / nn.utils.get_total_norm(gradients.values()).clamp_min(TINY))
        return gradients
