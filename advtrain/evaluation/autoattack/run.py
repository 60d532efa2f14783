"""AutoAttack and its screen, by whichever engine the settings name."""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from advtrain import distributed
from advtrain.evaluation.autoattack import fast
from advtrain.evaluation.autoattack.engines import batch_attack
from advtrain.evaluation.autoattack.job import Job
from advtrain.evaluation.autoattack.outcome import AutoAttackOutcome
from advtrain.evaluation.autoattack.plan import AttackPlan, describe, plans, screen_plans
from advtrain.evaluation.autoattack.stages import run_in_stages
from advtrain.evaluation.autoattack.unfinished import Unfinished, fingerprint
from advtrain.evaluation.autoattack.upstream import run_whole
from advtrain.evaluation.settings import AutoAttackSettings, ScreenSettings
from advtrain.types import Images, Labels

AGAIN = 0.02  # of the images: how many survivors engine=fast attacks once more


def run_autoattack(
    model: nn.Module,
    x: Images,
    y: Labels,
    *,
    norm: str,
    eps: float,
    settings: AutoAttackSettings,
    device: torch.device | str,
    report: Callable[[str], None],
    unfinished: Path | None = None,
) -> AutoAttackOutcome:
    """Attacks `x` with every attack of the version, each on the images that are still classified correctly.

    The same settings give the same images; random number generators are left as they were. In a group of processes
    all call it alike; exact and fast share the batches out, upstream runs on the main one.

    Args:
        model: images to logits, eager, in eval mode, on `device`.
        x: images in [0, 1], shape (n, c, h, w), contiguous, on the CPU.
        y: labels, on the CPU.
        norm, eps: the threat model.
        settings: which attacks, by which engine.
        device: where the attacks run.
        report: takes lines of progress.
        unfinished: folder for finished batches, so that a killed call goes on where it was; none: nothing is kept.
            engine=upstream keeps nothing.

    Raises:
        SettingError: version=custom names an attack that needs more classes than there are.
    """
    num_classes = _num_classes(model, x, device)
    planned, fallback = plans(settings.version, settings.attacks, norm=norm, eps=eps, num_classes=num_classes)
    job = Job(model, x, y, planned, settings.seed, settings.batch_size, device, report)
    used = _used(settings.engine, settings.version, planned, fallback, job)
    if settings.engine == "upstream":
        return distributed.on_main(lambda: run_whole(job, settings, used))
    if settings.engine == "exact":
        return _staged(job, used, num_classes, unfinished)
    used["search"] = fast.describe(torch.device(device), settings.compile)
    outcome = _staged(job, used, num_classes, unfinished, settings.compile)
    return _once_more(job, outcome, num_classes, unfinished)


def run_screen(
    model: nn.Module,
    x: Images,
    y: Labels,
    *,
    norm: str,
    eps: float,
    settings: ScreenSettings,
    device: torch.device | str,
    report: Callable[[str], None],
    unfinished: Path | None = None,
) -> AutoAttackOutcome:
    """APGD-CE and APGD-T with the exact engine: as `run_autoattack`, for choosing among models."""
    num_classes = _num_classes(model, x, device)
    planned = screen_plans(norm=norm, eps=eps, num_classes=num_classes)
    job = Job(model, x, y, planned, settings.seed, settings.batch_size, device, report, name="screen")
    return _staged(job, _used("exact", "screen", planned, None, job), num_classes, unfinished)


def _once_more(job: Job, outcome: AutoAttackOutcome, num_classes: int, unfinished: Path | None) -> AutoAttackOutcome:
    """Attacks the survivors with the lowest margins in float32 with what engine=fast searched in bfloat16."""
    planned = [plan for plan in job.planned if plan.name in fast.SEARCHES_IN_BFLOAT16]
    survivors = outcome.robust.nonzero().flatten()
    if not planned or not len(survivors):
        return outcome
    n = math.ceil(AGAIN * len(job.x))
    rows = survivors[outcome.closest[survivors].argsort(stable=True)[:n]].sort().values
    again = replace(job, x=job.x[rows], y=job.y[rows], planned=planned, name=f"{job.name} again in float32")
    folder = None if unfinished is None else unfinished.with_name(f"{unfinished.name}-again")
    found = _staged(again, {"engine": "exact", "version": "custom"}, num_classes, folder)
    return outcome.extended(rows, found, " again in float32")


def _staged(
    job: Job, used: dict[str, Any], num_classes: int, unfinished: Path | None, compiled: bool | None = None
) -> AutoAttackOutcome:
    kept = Unfinished(unfinished)
    distributed.on_main(lambda: kept.claim(fingerprint(job, used["engine"]), job.report) if unfinished else None)
    return run_in_stages(
        job,
        batch_attack(used["engine"], job.model, job.device, compiled),
        kept,
        num_classes=num_classes,
        randomised=used["version"] == "rand",
        used=used,
    )


def _used(engine: str, version: str, planned: Sequence[AttackPlan], fallback: str | None, job: Job) -> dict[str, Any]:
    """The `settings` of a record."""
    return {
        "engine": engine,
        "implementation": "pyautoattack" if engine == "upstream" else "advtrain",
        "version": version,
        **describe(planned),
        "fallback": fallback,
        "seed": job.seed,
        "batch_size": job.batch_size,
    }


@torch.no_grad()
def _num_classes(model: nn.Module, x: Images, device: torch.device | str) -> int:
    return model(x[:1].to(device)).shape[1]
