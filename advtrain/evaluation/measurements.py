"""The measurements of one evaluation: each takes images of the split, attacks them and has every verdict re-checked.

Batches are shared out among the processes, and every process has all results.
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from advtrain import distributed
from advtrain.data.base import Split
from advtrain.evaluation.autoattack import AutoAttackOutcome, run_autoattack, run_screen, title
from advtrain.evaluation.autoattack.outcome import MISCLASSIFIED, ROBUST
from advtrain.evaluation.pgd import attack_batch, pgd_attack
from advtrain.evaluation.records import Evidence, Result
from advtrain.evaluation.settings import EvaluationSettings
from advtrain.evaluation.statistics import per_class
from advtrain.evaluation.verify import judge, logits_of
from advtrain.types import Images, Labels


class Measured(NamedTuple):
    """One measurement.

    Attributes:
        result: the number.
        evidence: the images behind it; none of the clean accuracy.
        outcome: of AutoAttack or the screen, in full.
    """

    result: Result
    evidence: Evidence | None = None
    outcome: AutoAttackOutcome | None = None


class Attacked(NamedTuple):
    """Images under attack, on the CPU, and what came of it: `broken_by` as in `Evidence`, before it is re-checked."""

    indices: Labels
    x: Images
    y: Labels
    x_adv: Images
    broken_by: Tensor
    attack_names: tuple[str, ...]
    closest: Tensor | None = None


@dataclass(frozen=True)
class Measurements:
    """A model, in eval mode and frozen, with all that its measurements share.

    Attributes:
        model: images to logits, eager, on `device`.
        split: labelled images.
        norm, eps: the threat model.
        settings: of all measurements.
        device: where the model is.
        report: takes lines of progress.
        unfinished: folder for what is worth keeping of a measurement that is not over; none: nothing is kept.
        surrogate: makes an ordinary model for the same classes; see `evaluation.masking`.
        dataset: what the images are of, as leaderboards write it; "" where nobody says.
    """

    model: nn.Module
    split: Split
    norm: str
    eps: float
    settings: EvaluationSettings
    device: torch.device | str
    report: Callable[[str], None]
    unfinished: Path | None = None
    surrogate: Callable[[], nn.Module | None] = lambda: None
    dataset: str = ""

    def clean(self) -> Measured:
        started = time.monotonic()
        indices = self.indices(None)

        def correct(part: Labels) -> Tensor:
            (logits,) = logits_of(self.model, self.split.fetch(part, self.device), len(part), self.device)
            return logits.argmax(1).cpu() == self.split.labels[part]

        right = torch.cat(distributed.share(indices.split(self.settings.batch_size), correct))
        settings = {"batch_size": self.settings.batch_size}
        details = {"per_class": per_class(right, self.split.labels[indices])}
        result = Result(int(right.sum()), len(indices), time.monotonic() - started, settings, details)
        self.report(f"clean: {result}")
        return Measured(result)

    def pgd(self) -> Measured:
        started = time.monotonic()
        settings, size = self.settings.pgd, self.settings.batch_size
        name = f"PGD-{settings.steps}"
        attack = pgd_attack(settings, self.norm, self.eps)
        indices, x, y = self.images(settings.n_examples)
        left, seen = distributed.SharedCounter(), distributed.SharedCounter()

        def attacked(batch: int) -> tuple[Tensor, Tensor, Tensor]:
            rows = slice(batch * size, (batch + 1) * size)
            images, labels = x[rows].to(self.device), y[rows].to(self.device)
            x_adv, clean, robust = attack_batch(
                self.model, images, labels, attack, settings.restarts, seed=self.settings.seed, batch=batch
            )
            robust_so_far, done = left.add(int(robust.sum())), seen.add(len(labels))
            self.report(f"{name}: {robust_so_far} robust of {done} attacked ({len(x)} in all)")
            return x_adv.cpu(), clean.cpu(), robust.cpu()

        batches = distributed.share(range(-(-len(x) // size)), attacked)
        x_adv, clean, robust = (torch.cat(parts) for parts in zip(*batches, strict=True))
        broken_by = torch.where(robust, ROBUST, torch.where(clean, 0, MISCLASSIFIED)).to(torch.int8)
        used = {
            "objective": "ce",
            "init": "uniform",
            "steps": settings.steps,
            "restarts": settings.restarts,
            "step_size": attack.step_size,
            "seed": self.settings.seed,
            "batch_size": size,
        }
        return self._measured("pgd", name, started, Attacked(indices, x, y, x_adv, broken_by, (name,)), used, {})

    def screen(self) -> Measured:
        """APGD-CE and APGD-T alone."""
        return self._attacks("screen", run_screen)

    def autoattack(self) -> Measured:
        return self._attacks("autoattack", run_autoattack)

    def indices(self, n_examples: int | None) -> Labels:
        """Of the images that stand for the split."""
        return self.split.subset(self.settings.n_examples if n_examples is None else n_examples)

    def images(self, n_examples: int | None) -> tuple[Labels, Images, Labels]:
        """Their indices, the images and their labels, on the CPU."""
        indices = self.indices(n_examples)
        parts = [self.split.fetch(part, "cpu") for part in indices.split(self.settings.batch_size)]
        # Contiguous, because AutoAttack takes views of gradients that have the layout of the images.
        return indices, torch.cat(parts).contiguous(), self.split.labels[indices]

    def _attacks(self, name: str, run: Callable[..., AutoAttackOutcome]) -> Measured:
        started = time.monotonic()
        settings = getattr(self.settings, name)
        indices, x, y = self.images(settings.n_examples)
        outcome = run(
            self.model,
            x,
            y,
            norm=self.norm,
            eps=self.eps,
            settings=settings,
            device=self.device,
            report=self.report,
            unfinished=None if self.unfinished is None else self.unfinished / name,
        )
        attacked = Attacked(indices, x, y, outcome.x_adv, outcome.broken_by, outcome.attack_names, outcome.closest)
        details = {"after": outcome.after, "flags": outcome.flags}
        measured = self._measured(name, title(outcome.settings), started, attacked, outcome.settings, details)
        return measured._replace(outcome=outcome)

    def _measured(
        self,
        attack: str,
        shown: str,
        started: float,
        attacked: Attacked,
        settings: Mapping[str, Any],
        details: Mapping[str, Any],
    ) -> Measured:
        """Re-checks the images of an attack and makes the number and its evidence from them."""
        size, threat = self.settings.batch_size, {"norm": self.norm, "eps": self.eps}
        indices, x, y, x_adv, broken_by, names, closest = attacked
        how = {**threat, "batch_size": size, "device": self.device, "closest": closest}
        verdicts = judge(self.model, x, x_adv, y, broken_by == ROBUST, **how)
        # Where rounding turned a verdict, the attack that broke the image did not, or nothing but rounding did.
        broken_by = torch.where(verdicts.robust, ROBUST, broken_by)
        broken_by = torch.where(~verdicts.robust & (broken_by == ROBUST), MISCLASSIFIED, broken_by).to(torch.int8)
        counts = {"ties": verdicts.ties, "near_boundary": verdicts.near}
        if verdicts.unstable:
            counts["unstable"] = verdicts.unstable
        details = {**details, **counts, "per_class": per_class(verdicts.robust, y)}
        result = Result(int(verdicts.robust.sum()), len(x), time.monotonic() - started, settings, details)
        self.report(f"{shown}: {result}")
        predictions = torch.cat([logits.argmax(1).cpu() for logits in logits_of(self.model, x, size, self.device)])
        closest = verdicts.margins if closest is None else torch.minimum(closest, verdicts.margins)
        verdict = (verdicts.robust, broken_by, names, verdicts.margins, closest)
        return Measured(result, Evidence(attack, indices, x, y, predictions, x_adv, *verdict, size, **threat))
