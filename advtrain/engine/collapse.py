"""Whether robustness collapsed or decayed in the course of a run, read from its metrics.

Catastrophic overfitting: the model learns to defeat the training attack instead of resisting attacks. Accuracy under
that attack goes up, accuracy under another one drops to almost nothing, often within one epoch (Wong et al.,
arXiv:2001.03994, section 5.4; Andriushchenko & Flammarion, arXiv:2007.02617). Robust overfitting: held-out robust
accuracy slowly decays from its best while the training set is learnt ever better (Rice et al., arXiv:2002.11569).

Held-out accuracies are shares of n images. A difference counts only where it is several standard errors of two such
shares: the best of many validations is lucky by two or three, and the findings must not be.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from advtrain.config import ThreatSettings
from advtrain.types import Attack

FALLEN = 0.5  # share of its best that robust accuracy must have lost. Wong et al. stop at 0.2 below, of about 0.4
NEAR_ZERO = 0.1  # of the clean accuracy: what is left of robust accuracy under an attack that training did not see
SOLVED = 0.5  # of the clean accuracy: from here on the training attack counts as resisted
COLLAPSE_ERRORS, OVERFITTING_ERRORS = 4.5, 3.0  # standard errors that a difference must have


@dataclass(frozen=True)
class Point:
    """One validation.

    Attributes:
        epoch: completed epochs.
        training: robust accuracy on the training images of that epoch under the training attack, as fractions are.
        clean, robust: accuracies on the held-out images.
        n_examples: held-out images.
    """

    epoch: int
    training: float
    clean: float
    robust: float
    n_examples: int


@dataclass(frozen=True)
class Collapse:
    """Catastrophic overfitting, or none.

    Attributes:
        epoch: of the first validation that shows it; None where there is none.
        training_robust, held_out_robust: accuracies then; of the last validation where there is none.
        best_held_out: the best held-out robust accuracy up to then.
        reason: one line for people.
    """

    epoch: int | None
    training_robust: float | None
    held_out_robust: float | None
    best_held_out: float | None
    reason: str

    @property
    def detected(self) -> bool:
        return self.epoch is not None

    def __str__(self) -> str:
        where = f", seen after epoch {self.epoch}" if self.detected else ""
        return f"catastrophic overfitting{where}: {self.reason}"


@dataclass(frozen=True)
class Overfitting:
    """Robust overfitting: the gap between the best and the last held-out robust accuracy.

    Attributes:
        detected: the gap is more than noise, and the training images are resisted better than at the best epoch.
        gap: best minus last, ≥ 0.
        best_epoch, last_epoch: where the two were measured.
        reason: one line for people.
    """

    detected: bool
    gap: float
    best_epoch: int | None
    last_epoch: int | None
    reason: str


@dataclass(frozen=True)
class Findings:
    """What a run's metrics say; `record` is the entry "collapse" of evaluation.json."""

    collapse: Collapse
    overfitting: Overfitting

    def record(self) -> dict[str, Any]:
        kind = "catastrophic_overfitting" if self.collapse.detected else None
        return {
            "detected": self.collapse.detected,
            "kind": kind,
            **vars(self.collapse),
            "robust_overfitting": dict(vars(self.overfitting)),
        }


def findings(
    records: Iterable[Mapping[str, Any]], attack: Attack | None, threat: ThreatSettings, epochs: int
) -> Findings:
    """What the records of metrics.jsonl say about collapse and overfitting.

    Args:
        records: in their order; validations of versions that did not log `validation_examples` are passed over.
        attack: of the training.
        threat: of the validations.
        epochs: of the run.
    """
    points = curve(records)
    return Findings(collapse(points, full_radius_from(attack, threat, epochs)), overfitting(points))


def curve(records: Iterable[Mapping[str, Any]]) -> list[Point]:
    """The validations, each with the mean training robust accuracy of the epoch that it ends.

    Empty for runs without a training attack, or whose validations have none. A record of training holds the mean since
    the one before it, so each counts by its steps.
    """
    points: list[Point] = []
    epoch, weighted, steps, last_step = 0, 0.0, 0, 0
    for record in records:
        if "robust_accuracy" in record:
            if record["epoch"] != epoch:
                epoch, weighted, steps = record["epoch"], 0.0, 0
            weighted += record["robust_accuracy"] * (record["step"] - last_step)
            steps += record["step"] - last_step
            last_step = record["step"]
        elif record.keys() >= {"validation_examples", "validation_robust"} and record["epoch"] == epoch and steps:
            clean, robust = record["validation_clean"], record["validation_robust"]
            points.append(Point(epoch, weighted / steps, clean, robust, record["validation_examples"]))
    return points


def collapse(points: list[Point], full_from: int | None) -> Collapse:
    """The first validation that shows catastrophic overfitting.

    It shows it in either of two ways. Robust accuracy on held-out images has lost half of its best, while robust
    accuracy on training images under the training attack is higher than it was then. Or the training attack, with the
    whole radius, is resisted, while less than a tenth of clean accuracy survives the other attack: collapsed before the
    first validation.
    """
    if not points:
        return Collapse(None, None, None, None, "not assessed: no validation of training under an attack is logged")
    best = points[0]
    for point in points:
        if point.robust >= best.robust:
            best = point
        reason = _fall(point, best) or _blindness(point, full_from)
        if reason is not None:
            recovered = max(points[points.index(point) :], key=lambda later: later.robust)
            if recovered.robust > FALLEN * best.robust:
                reason += f"; it was back at {recovered.robust:.2%} after epoch {recovered.epoch}"
            return Collapse(point.epoch, point.training, point.robust, best.robust, reason)
    last = points[-1]
    reason = f"none: held-out robust accuracy {last.robust:.2%} after epoch {last.epoch}, {best.robust:.2%} at its best"
    return Collapse(None, last.training, last.robust, best.robust, reason)


def overfitting(points: list[Point]) -> Overfitting:
    """How far the last validation is below the best one, and whether training went on to fit meanwhile."""
    if not points:
        return Overfitting(False, 0.0, None, None, "not assessed: no validation of training under an attack is logged")
    last, best = points[-1], max(reversed(points), key=lambda point: point.robust)
    gap = best.robust - last.robust
    noise = _errors(last.robust, best.robust, last.n_examples) <= OVERFITTING_ERRORS
    detected = last.training > best.training and not noise
    text = f"held-out robust accuracy {last.robust:.2%} after epoch {last.epoch}, {best.robust:.2%} at its best"
    if detected:
        text += f" (epoch {best.epoch}), on training images {_change(best.training, last.training)}"
    return Overfitting(detected, gap, best.epoch, last.epoch, f"{'' if detected else 'none: '}{text}")


def full_radius_from(attack: Attack | None, threat: ThreatSettings, epochs: int) -> int | None:
    """The first epoch from which on the training attack is as large as the threat model; None where it never is."""
    first = None
    for epoch in range(epochs, 0, -1):
        current = None if attack is None else attack.for_epoch(epoch, epochs)
        if current is None or current.norm != threat.norm or current.radius < threat.radius * (1 - 1e-6):
            break
        first = epoch
    return first


def _fall(point: Point, best: Point) -> str | None:
    if point.robust > FALLEN * best.robust or point.training <= best.training:
        return None
    if _errors(point.robust, best.robust, point.n_examples) <= COLLAPSE_ERRORS:
        return None
    return (
        f"held-out robust accuracy fell to {point.robust:.2%} (from {best.robust:.2%} after epoch {best.epoch}) while "
        f"that on training images {_change(best.training, point.training)}"
    )


def _blindness(point: Point, full_from: int | None) -> str | None:
    if full_from is None or point.epoch < full_from:
        return None
    if point.robust > NEAR_ZERO * point.clean or point.training < SOLVED * point.clean:
        return None
    if _errors(point.robust, SOLVED * point.clean, point.n_examples) <= COLLAPSE_ERRORS:
        return None
    return (
        f"held-out robust accuracy is {point.robust:.2%} (clean {point.clean:.2%}) while training images resist the "
        f"training attack at {point.training:.2%}"
    )


def _errors(low: float, high: float, n_examples: int) -> float:
    """The difference of two shares of n images in standard errors, by their pooled share."""
    pooled = (low + high) / 2
    variance = 2 * pooled * (1 - pooled) / n_examples
    return (high - low) / math.sqrt(variance) if variance else 0.0


def _change(before: float, now: float) -> str:
    return f"rose from {before:.2%} to {now:.2%}"
