"""The recipes of configs/experiment/: their evidence, what they cost, and the page that shows both."""

from advtrain.recipes.cost import passes_of_epoch, predicted_pflop, training_flop
from advtrain.recipes.evidence import evidence_of, settings_of

__all__ = ["evidence_of", "passes_of_epoch", "predicted_pflop", "settings_of", "training_flop"]
