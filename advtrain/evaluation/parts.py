"""Further entries of an evaluation's record, each made from the measurements: may the number be believed, and so on.

The main process makes them alone, so they call nothing that all processes take part in.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch

from advtrain.evaluation.corruptions import corruption_result
from advtrain.evaluation.curve import curve_result
from advtrain.evaluation.masking import AutoAttackEvidence, masking_report
from advtrain.evaluation.measurements import Measured, Measurements
from advtrain.types import Images, Labels

Part = Callable[[Measurements, Mapping[str, Measured]], Any]


def masking(run: Measurements, measured: Mapping[str, Measured]) -> dict[str, Any]:
    """The checks of `advtrain.evaluation.masking`, on images that AutoAttack has attacked where it ran."""
    x, y, evidence = _attacked_images(run, measured)
    report = masking_report(
        run.model,
        x,
        y,
        norm=run.norm,
        eps=run.eps,
        settings=run.settings.masking,
        device=run.device,
        autoattack=evidence,
        surrogate=run.surrogate(),
        report=run.report,
    )
    run.report(report.lines()[0])
    return report.record()


def _attacked_images(
    run: Measurements, measured: Mapping[str, Measured]
) -> tuple[Images, Labels, AutoAttackEvidence | None]:
    """Images for the checks, evenly spaced among AutoAttack's, with its verdicts; the split's first ones without it."""
    one, n = measured.get("autoattack"), run.settings.masking.n_examples
    if one is None or one.evidence is None or one.outcome is None:
        _, x, y = run.images(n)
        return x, y, None
    images, broken_by, names = one.evidence.images, one.evidence.broken_by, one.evidence.attack_names
    rows = torch.arange(min(n, len(images))) * len(images) // min(n, len(images))
    squares = [place for place, name in enumerate(names) if name == "square"]
    alone = int(torch.isin(broken_by, torch.tensor(squares, dtype=torch.int8)).sum())
    evidence = AutoAttackEvidence(one.outcome.flags, broken_by[rows], names, len(images), alone)
    return images[rows].contiguous(), one.evidence.labels[rows], evidence


def curve(run: Measurements, measured: Mapping[str, Measured]) -> dict[str, Any]:
    """Robust accuracy over radii; see `advtrain.evaluation.curve`."""
    settings = run.settings.curve
    _, x, y = run.images(_at_most(settings.n_examples, run))
    result = curve_result(
        run.model, x, y, norm=run.norm, eps=run.eps, settings=settings, device=run.device, report=run.report
    )
    run.report("\n".join(result.lines()))
    return result.record()


def corruptions(run: Measurements, measured: Mapping[str, Measured]) -> dict[str, Any]:
    """Accuracy under common corruptions; see `advtrain.evaluation.corruptions`."""
    n_examples = _at_most(run.settings.corruptions.n_examples, run)
    settings = replace(run.settings.corruptions, n_examples=n_examples)
    _, x, y = run.images(n_examples)
    result = corruption_result(
        run.model, x, y, dataset_name=run.dataset, settings=settings, device=run.device, report=run.report
    )
    run.report("\n".join(result.lines()))
    return result.record()


def _at_most(n_examples: int | None, run: Measurements) -> int | None:
    """The smaller of a part's number of images and the evaluation's; None where neither is limited."""
    limits = [n for n in (n_examples, run.settings.n_examples) if n is not None]
    return min(limits, default=None)


# In the order they are made; each runs where the settings of its name are enabled.
PARTS: dict[str, Part] = {"masking": masking, "curve": curve, "corruptions": corruptions}
