"""Which acceleration a run uses: the one that is asked for, or the fastest of those that pass the parity gate."""

import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch

from advtrain.attacks.ascent import Eager
from advtrain.config import TrainerSettings
from advtrain.engine.acceleration import cache
from advtrain.engine.acceleration.measuring import Event, Task, measurement
from advtrain.engine.acceleration.passes import OFF, Acceleration
from advtrain.engine.acceleration.subject import Subject
from advtrain.engine.numerics import Numerics
from advtrain.types import Attack

SECONDS = 60.0  # that measuring may take
ENOUGH = 3  # timed blocks of an alternative that counts
NOISE = 0.02  # of the time of a step: what is less is no gain

Measure = Callable[[Task, float], list[Event]]


def asked_for(settings: TrainerSettings) -> Acceleration | None:
    """The acceleration that the settings name; None where it is to be measured."""
    return None if settings.compile == "auto" else Acceleration(settings.compile, bool(settings.cuda_graph))


def takes_passes(attack: Attack, acceleration: Acceleration, epochs: int) -> bool:
    """Whether the acceleration reaches the attack: one that runs its own passes knows nothing of compiled steps.

    With compile=model it is the model that is compiled, whoever calls it.
    """
    if acceleration == Acceleration("model"):
        return True
    first = attack.for_epoch(1, epochs)
    return first.using(Eager()) is not first


def alternatives(subject: Subject, numerics: Numerics) -> tuple[Acceleration, ...]:
    """What there is to choose from, in the order in which it is measured, plain passes first.

    Whatever reaches only the attack is left out where there is none, or one that runs its own passes.
    """
    attack, settings = subject.attack, subject.settings
    # An attack step that is one graph keeps the activations that checkpointing would forget.
    whole = not settings.activation_checkpointing
    reached = whole and attack is not None and takes_passes(attack, Acceleration("step"), 1)
    graphs = [False]
    if numerics.device.type == "cuda" and reached:
        graphs = [False, True] if settings.cuda_graph is None else [settings.cuda_graph]
    words = ["off", "step", "model"] if reached else ["off", "model"]
    return tuple(Acceleration(word, graph) for graph in graphs for word in words)


@dataclass
class Row:
    """What was found of an alternative.

    Attributes:
        seconds: per step, of each timed block, by the number of the round.
        gate: the verdict's record; None before there is one.
        note: why it is out, where it is.
        late: whether it is out because the time was over.
    """

    acceleration: Acceleration
    seconds: dict[int, float] = field(default_factory=dict)
    gate: dict[str, Any] | None = None
    note: str = ""
    late: bool = False

    @property
    def finished(self) -> bool:
        return not self.note and len(self.seconds) >= ENOUGH

    @property
    def median(self) -> float | None:
        return statistics.median(self.seconds.values()) if self.seconds else None

    def record(self, images: int) -> dict[str, Any]:
        median = self.median
        return {
            **asdict(self.acceleration),
            "ms": None if median is None else round(1000 * median, 3),
            "images_per_second": None if median is None else round(images / median, 1),
            "blocks": len(self.seconds),
            "gate": self.gate,
            "note": self.note,
        }


def rows(alternatives: Sequence[Acceleration], reported: Iterable[Event], seconds: float) -> list[Row]:
    """The events of a measurement, by alternative."""
    found = {str(one): Row(one) for one in alternatives}
    ended = ""
    for event in reported:
        row = found.get(event.get("name", ""))
        if event["event"] == "ended":
            ended = f"measuring ended: {event['reason']}"
        elif row is not None and event["event"] == "refused":
            row.note, row.gate = event["reason"], event["gate"]
        elif row is not None and event["event"] == "ready":
            row.gate = event["gate"]
        elif row is not None and event["event"] == "timed":
            row.seconds[event["round"]] = event["seconds"]
    for row in found.values():
        if not row.note and not row.finished:
            row.note, row.late = ended or f"not finished in {seconds:g} s", not ended
    return list(found.values())


def fastest(found: Sequence[Row]) -> Acceleration:
    """The fastest of the finished alternatives; of two that noise cannot tell apart the simpler one.

    A gain counts when at least three of four rounds show more than NOISE of it. Simpler is what compiles less, and what
    needs no CUDA graph.
    """
    order = [Acceleration(word, graph) for graph in (False, True) for word in ("off", "model", "step")]
    finished = sorted((row for row in found if row.finished), key=lambda row: order.index(row.acceleration))
    best = finished[0] if finished else None
    for row in finished[1:]:
        assert best is not None
        ratios = [row.seconds[i] / best.seconds[i] for i in row.seconds.keys() & best.seconds.keys()]
        gains = sum(ratio < 1 - NOISE for ratio in ratios)
        if len(ratios) >= ENOUGH and gains >= 0.75 * len(ratios):
            best = row
    return OFF if best is None else best.acceleration


def table(records: Sequence[Mapping[str, Any]]) -> list[str]:
    """The rows for people."""
    lines = [f"{'compile':<18}{'ms/step':>9}{'images/s':>10}  gate    note"]
    for row in records:
        name = str(Acceleration(row["compile"], row["cuda_graph"]))
        ms = "–" if row["ms"] is None else f"{row['ms']:.4g}"
        speed = "–" if row["images_per_second"] is None else f"{row['images_per_second']:.0f}"
        gate = "–" if row["gate"] is None else "passed" if row["gate"]["passed"] else "failed"
        lines.append(f"{name:<18}{ms:>9}{speed:>10}  {gate:<6}  {row['note']}".rstrip())
    return lines


@dataclass(frozen=True)
class Choice:
    """What was chosen.

    Attributes:
        why: in words.
        table: a record per alternative.
    """

    acceleration: Acceleration
    why: str
    table: list[dict[str, Any]]


def name_of(subject: Subject, numerics: Numerics) -> str:
    """What the choice for such steps on this machine is remembered by."""
    return cache.key(subject.facts(numerics) | cache.machine(numerics.device))


def remembered_choice(name: str) -> Choice | None:
    """The choice that an earlier run measured."""
    known = cache.remembered(name)
    if known is None:
        return None
    why = f"measured by an earlier run, remembered in {cache.cache_path()}"
    return Choice(Acceleration(known["compile"], known["cuda_graph"]), why, known["table"])


def measured_choice(
    subject: Subject, numerics: Numerics, name: str, *, seconds: float = SECONDS, measure: Measure | None = None
) -> Choice:
    """The fastest alternative for this run on this machine, measured now, and remembered where no time was short.

    Args:
        subject: what a step is made of.
        numerics: of the run.
        name: to be remembered by.
        seconds: that measuring may take.
        measure: `measurement`, or what a test has in its place.
    """
    offered = alternatives(subject, numerics)
    task = Task(subject, numerics, offered, torch.get_num_threads())
    found = rows(offered, (measure or measurement)(task, seconds), seconds)
    images = len(subject.batch.y)
    records, chosen = [row.record(images) for row in found], fastest(found)
    finished = sum(row.finished for row in found)
    if not finished:
        return Choice(chosen, "no alternative was measured to the end", records)
    why = f"the fastest of {finished} that were measured"
    if any(row.late for row in found):
        # What was compiled lies in the compiler's cache: another start gets further, and must not be kept from it.
        return Choice(chosen, f"{why}; the others again at the next start of a run like this", records)
    cache.remember(name, asdict(chosen) | {"table": records})
    return Choice(chosen, why, records)
