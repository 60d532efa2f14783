"""Clean accuracy, PGD and AutoAttack of one model on one split, in float32, each verdict re-checked from its image."""

from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

from advtrain import checks, distributed
from advtrain.data.base import Split
from advtrain.evaluation.autoattack import NORM_WORDS
from advtrain.evaluation.measurements import Measurements
from advtrain.evaluation.modes import eager, exact_float32, frozen
from advtrain.evaluation.parts import PARTS
from advtrain.evaluation.records import UNFINISHED, Evaluation
from advtrain.evaluation.settings import EvaluationSettings

# Accuracies, in the order they are measured; the strongest attack last. Batches are shared out among the processes.
ATTACKS = ("pgd", "screen", "autoattack")


def evaluate(
    model: nn.Module,
    split: Split,
    *,
    norm: str,
    eps: float,
    settings: EvaluationSettings,
    device: torch.device | str = "cpu",
    progress: Callable[[str], None] | None = None,
    folder: Path | None = None,
    surrogate: Callable[[], nn.Module | None] = lambda: None,
    dataset: str = "",
) -> Evaluation:
    """Measures `model` on `split`: clean accuracy, then the attacks and checks that `settings` enable.

    In a group of processes all call it alike and share the work; the result of the main one is complete. The model's
    modes, its parameters' `requires_grad` and the global random generators are as before on return.

    Args:
        model: images in [0, 1], shape (n, c, h, w), to logits; float32, on `device`.
        split: labelled images; a part of them when the settings say so (`Split.subset`).
        norm: "linf", "l2" or "l1".
        eps: radius in units of pixels in [0, 1].
        settings: what to run. `enabled` and `checkpoint` are for the caller to obey.
        device: where the model is.
        progress: takes readable lines as the work goes on.
        folder: where the result will be saved. What is finished of an attack is kept there until then, so that the
            same call goes on after a kill; nothing is kept when None. For a result that becomes a part of another
            record, `folder / UNFINISHED / name` of that record, which goes when the record is saved.
        surrogate: makes an ordinary model for the same classes, on which the masking checks make images that shall
            transfer; asked for when they run.
        dataset: what the images are of, as leaderboards write it, e.g. "cifar10": for its corrupted test set.

    Raises:
        SettingError: a setting does not fit the model.
        EvaluationError: an attack's verdict is not backed by its image.
    """
    checks.choice("threat.norm", norm, tuple(NORM_WORDS))
    radius = checks.radius("threat.eps", eps, norm)
    unfinished = None if folder is None else folder / UNFINISHED
    run = Measurements(
        eager(model), split, norm, radius, settings, device, progress or _silent, unfinished, surrogate, dataset
    )
    with frozen(model), exact_float32():
        measured = {"clean": run.clean()}
        for name in ATTACKS:
            if getattr(settings, name).enabled:
                measured[name] = getattr(run, name)()
        parts = {}
        for name, part in PARTS.items() if distributed.is_main() else ():
            if getattr(settings, name).enabled:
                parts[name] = part(run, measured)
    seeds = {"screen": settings.screen.seed} if "screen" in measured else {}
    return Evaluation(
        norm=norm,
        eps=radius,
        results={name: one.result for name, one in measured.items()},
        parts=parts,
        evidence=list(measured.values())[-1].evidence,
        seeds={"pgd": settings.seed, **seeds, "autoattack": settings.autoattack.seed},
        device=str(device),
    )


def _silent(line: str) -> None:
    pass
