"""Adversarial weight perturbation."""

from collections.abc import Mapping

import torch
from torch import Tensor

from advtrain import checks
from advtrain.distributed import own_part
from advtrain.engine.foreach import norms
from advtrain.engine.weight_perturbations.base import TINY, AscentStep


class AWP(AscentStep):
    """Adversarial weight perturbation: one normalised ascent step per weight tensor.

    Wu et al., "Adversarial Weight Perturbation Helps Robust Generalization", NeurIPS 2020, arXiv:2004.05884. Each
    parameter w of more than one dimension (convolutions, linear layers, and the tokens and position embeddings of
    transformers) moves by γ·‖w‖·g/‖g‖, with g its gradient of the training loss and the L2 norm of the tensor. Biases
    and the weights of normalisation layers stay.

    How the published code differs (that of AWP, which IKL's follows):

    - It takes an SGD step, without momentum, on a copy of the model and normalises the difference. The proxy's
      learning rate cancels: the direction is the gradient's, as here, up to rounding.
    - It lets the optimiser step on the perturbed weights and then subtracts the perturbation. Here the weights come
      back first, exactly. So there the weight decay acts on w + v and here on w: a difference of lr · wd · γ‖w‖ in
      length. Subtracting also leaves rounding errors in the weights.
    - It moves parameters whose name contains "weight". In convolutional networks these are the same.
    - It starts in epoch 10 (`awp_warmup`), counted from 1 in TRADES-AWP and IKL; `start_epoch` is that number.

    Args:
        gamma: γ, the relative size of the perturbation.
        start_epoch: the first epoch, counted from 1, in which weights are perturbed.
    """

    def __init__(self, *, gamma: float = 0.005, start_epoch: int = 1) -> None:
        super().__init__(start_epoch=start_epoch)
        self.gamma = checks.number("weight_perturbation.gamma", gamma, low=0)

    def moves(self, weights: Mapping[str, Tensor], gradients: dict[str, Tensor]) -> dict[str, Tensor]:
        moving = {name: gradients[name] for name, weight in weights.items() if weight.dim() > 1}
        if not moving:
            return moving
        sizes = norms([weights[name] for name in moving])
        slopes = norms(list(moving.values()))
        torch._foreach_mul_(sizes, self.gamma)
        torch._foreach_clamp_min_(slopes, TINY)
        torch._foreach_div_(sizes, slopes)
        # Each gradient by a factor of its own, which stays on the device: on a GPU one launch each.
        torch._foreach_mul_([own_part(gradient) for gradient in moving.values()], sizes)
        return moving
