"""Perturbations of the weights during the loss; `base` holds the interface."""

from advtrain.engine.weight_perturbations.asam import ASAM
from advtrain.engine.weight_perturbations.awp import AWP
from advtrain.engine.weight_perturbations.base import AscentStep, NoPerturbation, WeightPerturbation
from advtrain.engine.weight_perturbations.sam import SAM

__all__ = ["ASAM", "AWP", "SAM", "AscentStep", "NoPerturbation", "WeightPerturbation"]
