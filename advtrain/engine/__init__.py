"""Training: the loop and what the configs of its groups name."""

from advtrain.engine.averaging import EMA, SWA, EpochEMA, NoAveraging
from advtrain.engine.ingredients import Diverged, Ingredients
from advtrain.engine.interrupts import Interrupted
from advtrain.engine.loggers import NoLogger, TensorBoard, WandB
from advtrain.engine.optimizers import SGD, AdamW
from advtrain.engine.schedules import Constant, Cosine, OneCycle, Step
from advtrain.engine.trainer import Trainer
from advtrain.engine.weight_perturbations import ASAM, AWP, SAM, NoPerturbation

__all__ = [
    "ASAM",
    "AWP",
    "EMA",
    "SAM",
    "SGD",
    "SWA",
    "AdamW",
    "Constant",
    "Cosine",
    "Diverged",
    "EpochEMA",
    "Ingredients",
    "Interrupted",
    "NoAveraging",
    "NoLogger",
    "NoPerturbation",
    "OneCycle",
    "Step",
    "TensorBoard",
    "Trainer",
    "WandB",
]
