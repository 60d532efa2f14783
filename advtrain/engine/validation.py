"""Validation on the held-out part of the training set, by an attack that is not the training attack, or by none."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from advtrain import distributed
from advtrain.attacks import APGD, PGD
from advtrain.config import ThreatSettings, ValidationSettings
from advtrain.data.base import Split
from advtrain.engine.modes import evaluating
from advtrain.losses import Loss
from advtrain.losses.objectives import CLASSES_NEEDED, DLR, CrossEntropy, Margin, ModelObjective
from advtrain.random import seeded_generator
from advtrain.types import Attack, Labels, Logits, PerImage


@dataclass(frozen=True)
class Accuracy:
    """Fractions of held-out images that are classified correctly.

    Attributes:
        clean: without an attack.
        robust: under attack; None where none is run.
        n_examples: held-out images used.
    """

    clean: float
    robust: float | None
    n_examples: int

    @property
    def rank(self) -> tuple[float, float]:
        """What counts first, and what decides between equals; -1 in place of a robust accuracy that is not measured."""
        return (-1.0 if self.robust is None else self.robust, self.clean)

    def record(self) -> dict[str, float]:
        """The accuracies as metrics.jsonl has them."""
        named = {"validation_clean": self.clean}
        return named if self.robust is None else named | {"validation_robust": self.robust}


@dataclass(frozen=True)
class TargetedMargin:
    """o_t - o_y of a target class t: positive only where the prediction is wrong.

    Attributes:
        y, target: classes of the images, shape (n,).
        scale_free: divides by the spread o_1st - o_3rd of the logits, as DLR does.
    """

    y: Labels
    target: Labels
    scale_free: bool = False

    def __call__(self, logits: Logits) -> PerImage:
        margin = (logits.gather(1, self.target[:, None]) - logits.gather(1, self.y[:, None]))[:, 0]
        if not self.scale_free:
            return margin
        top = logits.topk(3, dim=1).values
        return margin / (top[:, 0] - top[:, 2]).clamp_min(torch.finfo(logits.dtype).tiny)


@dataclass(frozen=True)
class SelectionAttack:
    """What held-out robust accuracy is measured by: several searches, any of which may break an image.

    The first start maximises the margin of whichever wrong class is nearest; start r + 1 that of the class which the
    natural image ranks r-th behind it (targets as in Gowal et al., arXiv:1910.09338). Different directions find what
    more starts in one direction do not.

    Attributes:
        attack: one search.
        objective: margin, dlr (margin over the spread of the logits) or ce (the same for every start).
        starts: number of searches.
        reason: why this objective, for people.
    """

    attack: Attack
    objective: str
    starts: int
    reason: str

    by: ClassVar[str] = "robust"
    UNTARGETED: ClassVar[dict[str, Any]] = {"margin": Margin, "dlr": DLR, "ce": CrossEntropy}
    WORDS: ClassVar[dict[str, str]] = {"margin": "the margin", "dlr": "DLR", "ce": "the cross-entropy"}

    def measure(self, start: int, natural_logits: Logits, y: Labels) -> Callable[[Tensor], Tensor]:
        """What the search number `start`, from 0, maximises: logits → value per image."""
        rank = start % (natural_logits.shape[1] - 1)
        if rank == 0 or self.objective == "ce":
            return self.UNTARGETED[self.objective](y)
        others = natural_logits.scatter(1, y[:, None], -torch.inf)
        target = others.argsort(dim=1, descending=True, stable=True)[:, rank]
        return TargetedMargin(y, target, scale_free=self.objective == "dlr")

    def withstood(
        self, model: nn.Module, x: Tensor, y: Labels, natural_logits: Logits, generator: torch.Generator
    ) -> Tensor:
        """Whether no search broke the image, bool, shape (n,)."""
        held = torch.ones_like(y, dtype=torch.bool)
        for start in range(self.starts):
            objective = ModelObjective(model, self.measure(start, natural_logits, y))
            x_adv = self.attack(objective, x, generator=generator)
            with torch.no_grad():
                held &= model(x_adv).argmax(1) == y
        return held

    def describe(self) -> str:
        """The attack in one line, for people and records."""
        several = self.starts > 1
        towards = " of the nearest wrong class, then of the next" if several and self.objective != "ce" else ""
        steps = getattr(self.attack, "steps", 1)
        starts = f"{self.starts} start{'s' if several else ''} of {steps} step{'s' if steps > 1 else ''}"
        return f"{type(self.attack).__name__} on {self.WORDS[self.objective]}{towards}, {starts}"


@dataclass(frozen=True)
class CleanSelection:
    """In place of a `SelectionAttack` where clean accuracy chooses: nothing is run.

    Attributes:
        reason: why so, for people.
    """

    reason: str

    by: ClassVar[str] = "clean"

    def describe(self) -> str:
        """As for `SelectionAttack`."""
        return "clean accuracy"


Selection = SelectionAttack | CleanSelection


def selection(
    threat: ThreatSettings, settings: ValidationSettings, training: Attack | None, loss: Loss, num_classes: int | None
) -> Selection:
    """What chooses checkpoints: `selection_attack`, or clean accuracy where the settings or the loss say so."""
    if (settings.select or loss.selects_by) == "robust":
        return selection_attack(threat, settings, training, loss, num_classes)
    if settings.select == "clean":
        return CleanSelection("trainer.validation.select=clean")
    return CleanSelection(f"{type(loss).__name__} trains on natural images; trainer.validation.select=robust attacks")


def selection_attack(
    threat: ThreatSettings, settings: ValidationSettings, training: Attack | None, loss: Loss, num_classes: int | None
) -> SelectionAttack:
    """The attack that chooses checkpoints: neither its objective nor its search is that of the training attack.

    A model can learn to withstand the one attack that it meets in training. So the objective is the margin, the
    strongest per pass on the models of this project, or another where training maximises the margin itself; and the
    search is APGD where training does not use it. In L1, where there is no APGD, it is PGD with other starts.

    Args:
        threat: norm and radius.
        settings: steps and starts.
        training: the training attack; None for training without one.
        loss: knows whether that attack is used and what it maximises.
        num_classes: of the model; two where it is not known.
    """
    search = None if training is None or not loss.needs_attack else training.for_epoch(1, 1)
    objective = "margin"
    if search is None:
        reason = "training runs no attack"
    else:
        reason = f"training maximises {loss.inner_objective} by {type(search).__name__}"
        if loss.inner_objective == "margin":
            objective = "dlr" if (num_classes or 2) >= CLASSES_NEEDED["dlr"] else "ce"
    common: dict[str, Any] = {"norm": threat.norm, "eps": threat.radius, "steps": settings.steps, "init": "uniform"}
    attack = PGD(**common) if isinstance(search, APGD) or threat.norm == "l1" else APGD(**common)
    return SelectionAttack(attack, objective, settings.restarts, reason)


def validate(
    model: nn.Module,
    split: Split,
    selection: Selection,
    settings: ValidationSettings,
    *,
    seed: int,
    device: torch.device,
    dtype: torch.dtype,
    memory_format: torch.memory_format,
) -> Accuracy:
    """Clean accuracy of `model` on `split`, and robust accuracy where the selection has an attack.

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
                counts += _correct(model, x, y, selection, generator)
    clean, robust = (count / len(chosen) for count in distributed.all_reduce_sum(counts).tolist())
    return Accuracy(clean, robust if selection.by == "robust" else None, len(chosen))


def _correct(model: nn.Module, x: Tensor, y: Tensor, selection: Selection, generator: torch.Generator) -> Tensor:
    with torch.no_grad():
        natural_logits = model(x)
    clean = robust = natural_logits.argmax(1) == y
    if isinstance(selection, SelectionAttack):
        robust = clean & selection.withstood(model, x, y, natural_logits, generator)
    return torch.stack([clean.sum(), robust.sum()])
