"""Validation on the held-out part of the training set, by an attack that is not the training attack."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from advtrain import distributed
from advtrain.attacks import PGD
from advtrain.config import ThreatSettings, ValidationSettings
from advtrain.data.base import Split
from advtrain.engine.modes import evaluating
from advtrain.losses.objectives import Margin, ModelObjective
from advtrain.random import seeded_generator


@dataclass(frozen=True)
class Accuracy:
    """Fractions of held-out images that are classified correctly, clean and under attack."""

    clean: float
    robust: float
    n_examples: int


def margin_attack(threat: ThreatSettings, settings: ValidationSettings) -> PGD:
    """PGD on the margin loss from uniform starts: independent of whatever attack trains the model."""
    return PGD(
        norm=threat.norm,
        eps=threat.radius,
        steps=settings.steps,
        init="uniform",
        restarts=settings.restarts,
    )


def validate(
    model: nn.Module,
    split: Split,
    attack: PGD,
    settings: ValidationSettings,
    *,
    seed: int,
    device: torch.device,
    dtype: torch.dtype,
    memory_format: torch.memory_format,
) -> Accuracy:
    """Clean and robust accuracy of `model` on `split`.

    Processes take turns over the batches; each batch has its own random stream, so the result does not depend on how
    many processes there are. The same images and starts are used after every epoch.
    """
    chosen = split.subset(settings.n_examples)
    counts = torch.zeros(2, dtype=torch.int64, device=device)
    with evaluating(model):
        for batch, indices in enumerate(chosen.split(settings.batch_size)):
            if batch % distributed.world_size() == distributed.rank():
                x = split.fetch(indices, device).to(dtype=dtype, memory_format=memory_format)
                y = split.labels[indices].to(device)
                generator = seeded_generator(seed, "validation", batch, device=device)
                counts += _correct(model, x, y, attack, generator)
    clean, robust = distributed.all_reduce_sum(counts).tolist()
    return Accuracy(clean / len(chosen), robust / len(chosen), len(chosen))


def _correct(model: nn.Module, x: Tensor, y: Tensor, attack: PGD, generator: torch.Generator) -> Tensor:
    x_adv = attack(ModelObjective(model, Margin(y)), x, generator=generator)
    with torch.no_grad():
        clean = model(x).argmax(1) == y
        robust = clean & (model(x_adv).argmax(1) == y)
    return torch.stack([clean.sum(), robust.sum()])
