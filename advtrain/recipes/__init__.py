"""The recipes of configs/experiment/: their evidence, what they cost, and the page that shows both."""

from advtrain.recipes.cost import passes_per_image, predicted_pflop, training_flop
from advtrain.recipes.evidence import evidence_of, settings_of

__all__ = ["evidence_of", "passes_per_image", "predicted_pflop", "settings_of", "training_flop"]
