"""A sequence of attacks in stages: batches shared out among the processes, each finished one kept on disk.

Upstream seeds the generators anew for every batch, so a batch depends on its images and the seed alone: batches may
run in any order on any process. Between two attacks all processes wait, because the second attacks the images that
the first left robust, cut into batches in the order of their indices. For the same batches and seed the verdicts
are therefore those of one process, and upstream's where the attacks are.
"""

import time
from typing import Any

import torch
from pyautoattack import checks as upstream_checks
from torch import Tensor

from advtrain import distributed
from advtrain.evaluation.autoattack.attack_log import Flags, listening
from advtrain.evaluation.autoattack.estimate import Estimate
from advtrain.evaluation.autoattack.job import BatchAttack, Job
from advtrain.evaluation.autoattack.outcome import MISCLASSIFIED, ROBUST, AutoAttackOutcome
from advtrain.evaluation.autoattack.unfinished import Batch, Unfinished
from advtrain.evaluation.autoattack.upstream import check_model, undisturbed


def run_in_stages(
    job: Job, attack: BatchAttack, unfinished: Unfinished, *, num_classes: int, randomised: bool, used: dict[str, Any]
) -> AutoAttackOutcome:
    """Attacks the images of `job` with every attack of its plan, each on those that are still classified correctly.

    Args:
        job: images and attacks.
        attack: what attacks a batch.
        unfinished: where finished batches are.
        num_classes: logits of the model.
        randomised: the model is known to be, and is not to be warned about.
        used: what the outcome shall say ran.
    """
    flags = Flags(job.report)
    first = slice(job.batch_size)
    check_model(job.model, job.x[first].to(job.device), job.y[first].to(job.device), flags, randomised=randomised)
    clean = distributed.on_main(job.clean)
    x_adv, closest = job.x.clone(), torch.full((len(job.x),), torch.inf)
    broken_by = torch.where(clean, ROBUST, MISCLASSIFIED).to(torch.int8)
    after: list[dict[str, Any]] = [_entry("none", broken_by)]
    progress = _Progress(job, Estimate(job.planned, num_classes, distributed.world_size()))
    for number, plan in enumerate(job.planned):
        left = (broken_by == ROBUST).nonzero().flatten()
        if not len(left):
            break
        batches = _attacked(job, attack, unfinished, number, left, progress)
        for batch in batches:
            rows = batch.rows[batch.broken]
            broken_by[rows], x_adv[rows] = number, batch.images
            closest[batch.rows] = torch.minimum(closest[batch.rows], batch.margins)
            for points in batch.zero_gradients.tolist():
                flags.zero_gradients(points)
        after.append(_entry(plan.name, broken_by) | {"seconds": round(sum(batch.seconds for batch in batches), 3)})
    _check_square(after, flags)
    names = tuple(plan.name for plan in job.planned)
    found = list(flags.found.values())
    return AutoAttackOutcome(x_adv, broken_by == ROBUST, broken_by, names, closest, after, found, used)


def _attacked(
    job: Job, attack: BatchAttack, unfinished: Unfinished, number: int, left: Tensor, progress: "_Progress"
) -> list[Batch]:
    """One attack on the images `left`: its batches, from disk where they are there, the others attacked now."""
    plan, parts = job.planned[number], left.split(job.batch_size)

    def stored() -> dict[int, Batch]:
        found = {index: unfinished.read(number, plan.name, index, rows) for index, rows in enumerate(parts)}
        return {index: batch for index, batch in found.items() if batch is not None}

    batches = distributed.on_main(stored)
    progress.begin(number, len(left), batches)

    def work(index: int) -> Batch:
        batch = attack_and_judge(job, attack, number, parts[index])
        unfinished.commit(number, plan.name, index, batch)
        progress.finished(batch)
        return batch

    todo = [index for index in range(len(parts)) if index not in batches]
    batches |= dict(zip(todo, distributed.share(todo, work), strict=True))
    return [batches[index] for index in range(len(parts))]


def attack_and_judge(job: Job, attack: BatchAttack, number: int, rows: Tensor) -> Batch:
    """Attack `number` on the images `rows`. The eager model's prediction for the whole batch decides."""
    started = time.monotonic()
    x, y = job.x[rows].to(job.device), job.y[rows].to(job.device)
    # Seeded, so that a randomised model answers alike on any process and after a resume.
    with undisturbed(job.device), torch.no_grad():
        torch.manual_seed(job.seed)
        found = attack(x, y, job.planned[number], job.seed)
        broken = job.model(found.images).argmax(1) != y
        images = found.images[broken].detach().cpu()
    margins = torch.full((len(rows),), torch.inf) if found.margins is None else found.margins.float().cpu()
    return Batch(rows, broken.cpu(), images, found.zero_gradients.cpu(), margins, time.monotonic() - started)


def _check_square(after: list[dict[str, Any]], flags: Flags) -> None:
    """Upstream's check that Square finds nothing which attacks with gradients should have found."""
    accuracies = {"clean" if entry["attack"] == "none" else entry["attack"]: entry["accuracy"] for entry in after}
    with listening(flags) as logger:
        upstream_checks.check_square_sr(accuracies, logger=logger)


def _entry(attack: str, broken_by: Tensor) -> dict[str, Any]:
    correct = int((broken_by == ROBUST).sum())
    return {"attack": attack, "correct": correct, "accuracy": correct / len(broken_by)}


class _Progress:
    """A line after each batch of this process, with what all processes have found."""

    def __init__(self, job: Job, estimate: Estimate) -> None:
        self.job, self.estimate = job, estimate
        self._started = time.monotonic()

    def begin(self, number: int, images: int, stored: dict[int, Batch]) -> None:
        """Attack `number` goes over so many images, of which some are finished."""
        self._number, self._images = number, images
        self._batches = -(-images // self.job.batch_size)
        self._broken, self._attacked, self._done = (distributed.SharedCounter() for _ in range(3))
        if stored and distributed.is_main():
            for batch in stored.values():
                self.estimate.worked(number, len(batch.rows), batch.seconds)
                self._count(batch)
            self.job.report(f"{self._head(len(stored))} from an earlier call")

    def finished(self, batch: Batch) -> None:
        self.estimate.worked(self._number, len(batch.rows), batch.seconds)
        broken, attacked, done = self._count(batch)
        robust = self._images - broken
        left = self.estimate.left(self._number, self._images - attacked, robust)
        n = len(self.job.x)
        self.job.report(
            f"{self._head(done)}: {robust}/{n} robust so far ({robust / n:.2%}), "
            f"{clock(time.monotonic() - self._started)} elapsed, about {clock(left)} left"
        )

    def _count(self, batch: Batch) -> tuple[int, int, int]:
        return (
            self._broken.add(int(batch.broken.sum())),
            self._attacked.add(len(batch.rows)),
            self._done.add(1),
        )

    def _head(self, done: int) -> str:
        return f"{self.job.name} {self.job.planned[self._number].name} batch {done}/{self._batches}"


def clock(seconds: float) -> str:
    """Seconds as h:mm:ss."""
    minutes, seconds = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{seconds:02}"
