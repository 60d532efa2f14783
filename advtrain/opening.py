"""What a person reads before a run starts: what is about to happen, with the resolved objective as a formula."""

from pathlib import Path
from typing import Any

import advtrain
from advtrain import distributed
from advtrain.engine import Trainer, epoch_cycle
from advtrain.engine.acceleration import OFF
from advtrain.engine.acceleration.choice import takes_passes
from advtrain.losses import objectives
from advtrain.teachers import Examination


def opening(trainer: Trainer, parts: dict[str, Any], directory: Path, examination: Examination | None = None) -> str:
    """The lines, for a trainer that has not begun and a teacher, where there is one, that was examined."""
    data, loss, settings = parts["data"], parts["loss"], parts["trainer"]
    parameters = sum(p.numel() for p in trainer.model.parameters())
    sizes = ", ".join(f"{len(data.split(s)):,} {word}" for s, word in (("train", "train"), ("validation", "held out")))
    lines = [
        f"advtrain {advtrain.__version__}  →  {directory}",
        f"data      {data.name}: {sizes}, {data.num_classes} classes, {'×'.join(map(str, data.image_shape))}",
        *(f"          {remark}" for remark in data.remarks()),
        f"model     {type(trainer.model).__name__.removeprefix('FSDP')}, {parameters:,} parameters",
        *([] if examination is None else examination.lines()),
        f"minimise  {loss.formula()}",
    ]
    if loss.needs_attack:
        lines.append(f"where x'  maximises {objectives.formula(loss.inner_objective)}, {parts['attack'].describe()}")
        mode = f"{settings.attack_batchnorm} mode" if trainer.warm_start is None else "train mode, as in the step"
        lines.append(f"          with BatchNorm in {mode}")
    elif parts["attack"] is not None:
        lines.append("          no attack: the configured one is not used by this loss")
    lines += _selection(trainer)
    lines.append(
        f"numerics  {trainer.numerics} on {trainer.device} × {distributed.world_size()}{trainer.sharding}, "
        f"batch {settings.images_per_step}, {settings.epochs} epochs of {trainer.train_loader.steps_per_epoch} steps"
    )
    lines.append(f"compile   {_compiled(trainer)}")
    lines += epoch_cycle.remarks(settings)
    return "\n".join(lines)


def _compiled(trainer: Trainer) -> str:
    """How the passes are run, and whether that reaches the attack."""
    acceleration, attack = trainer.start.acceleration, trainer.parts.attack
    attacked = trainer.parts.loss.needs_attack and trainer.warm_start is None  # a free attack has no passes of its own
    why = f" ({trainer.start.why})" if trainer.start.why else ""
    if acceleration == OFF or not attacked or attack is None:
        return f"{acceleration}{why}"
    if takes_passes(attack, acceleration, trainer.settings.epochs):
        return f"{acceleration}{why}"
    return f"{acceleration}{why}, of the training loss alone: {type(attack).__name__} runs its own passes as written"


def _selection(trainer: Trainer) -> list[str]:
    """What chooses best.pt, and what watches an attack of one step."""
    settings, attack, chosen = trainer.settings.validation, trainer.parts.attack, trainer.selection
    images = f"{len(trainer.held_out.subset(settings.n_examples)):,} held-out images"
    how = f": {chosen.describe()}" if chosen.by == "robust" else ""
    lines = [f"select    best.pt by {chosen.by} accuracy on {images}{how}", f"          because {chosen.reason}"]
    if trainer.parts.loss.needs_attack and attack is not None and attack.single_step:
        blind = "" if settings.steps > 1 else "; one step sees little: set trainer.validation.steps=10"
        told = f"a warning names the epoch{blind}" if chosen.by == "robust" else "clean accuracy does not show it"
        lines.append(f"watch     one-step attacks can overfit catastrophically; {told}")
    return lines
