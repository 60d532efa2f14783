"""Clocks, turns and budgets of the GPU script. The same code runs with a GPU's events and with a CPU's process time."""

import gc
import math
import random
import signal
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch

Work = Callable[[], object]


class Clock(Protocol):
    """Tells how long work on a device takes.

    Attributes:
        measures: in words, for the record.
    """

    measures: str

    def seconds(self, work: Work, times: int = 1) -> float:
        """Seconds per call of `work`, over `times` calls in a row, until the device has done it all."""
        ...


class ProcessTime:
    """The CPU's: what this process used of it, whatever else runs on the machine."""

    measures = "process time"

    def seconds(self, work: Work, times: int = 1) -> float:
        started = time.process_time()
        for _ in range(times):
            work()
        return (time.process_time() - started) / times


class DeviceEvents:
    """The GPU's: between two events on the stream that the work is queued on."""

    measures = "device events"

    def seconds(self, work: Work, times: int = 1) -> float:
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize()
        start.record()
        for _ in range(times):
            work()
        end.record()
        end.synchronize()
        return start.elapsed_time(end) / 1e3 / times


def clock_of(device: torch.device) -> Clock:
    return DeviceEvents() if device.type == "cuda" else ProcessTime()


@dataclass(frozen=True)
class Effort:
    """How much is timed.

    Attributes:
        rounds: in which those entrants have a turn that the conclusion rests on.
        least_rounds: in which every entrant has one; fewer than that are no measurement.
        block_seconds: length of a turn, at least.
    """

    rounds: int = 7
    least_rounds: int = 3
    block_seconds: float = 1.0


@dataclass
class Entrants:
    """Works that take turns in random order.

    Attributes:
        works: by name.
        estimates: seconds per call, from the warm-up.
        lasting: those that take part in all rounds; all of them when None.
        times: seconds per call in each round.
        fallen: what ended an entrant, by its name.
    """

    works: Mapping[str, Work]
    estimates: Mapping[str, float]
    lasting: frozenset[str] | None = None
    times: dict[str, list[float]] = field(default_factory=dict)
    fallen: dict[str, str] = field(default_factory=dict)

    def of_round(self, number: int, effort: Effort) -> list[str]:
        """Who takes part in that round, counted from 0."""
        everybody = number < effort.least_rounds or self.lasting is None
        names = self.works if everybody else (name for name in self.works if name in (self.lasting or ()))
        return [name for name in names if name not in self.fallen]

    def seconds(self, number: int, effort: Effort) -> float:
        """What that round takes, about."""
        return sum(max(effort.block_seconds, self.estimates[name]) for name in self.of_round(number, effort))


def take_turns(
    entrants: Entrants, clock: Clock, effort: Effort, budget: "Deadline", after_round: Callable[[int], None]
) -> int:
    """Times the entrants against each other; returns the number of rounds, which the budget may cut short.

    An entrant that raises (out of memory, say) is out; the others go on.
    """
    order = random.Random(0)
    entrants.times.update({name: [] for name in entrants.works})
    with _without_collector():
        return _rounds(entrants, clock, effort, budget, after_round, order)


def _rounds(
    entrants: Entrants,
    clock: Clock,
    effort: Effort,
    budget: "Deadline",
    after_round: Callable[[int], None],
    order: random.Random,
) -> int:
    for number in range(effort.rounds):
        if number >= effort.least_rounds and budget.left() < entrants.seconds(number, effort):
            return number
        names = entrants.of_round(number, effort)
        for name in order.sample(names, len(names)):
            calls = max(1, math.ceil(effort.block_seconds / max(entrants.estimates[name], 1e-9)))
            try:
                entrants.times[name].append(clock.seconds(entrants.works[name], calls))
            except Exception as error:  # whatever a kernel, a compiler or the memory may come up with
                entrants.fallen[name] = one_line(error)
                del entrants.times[name]
        after_round(number + 1)
    return effort.rounds


@contextmanager
def _without_collector() -> Iterator[None]:
    """Keeps Python's garbage collector out of the turns: after a compiler it takes a good part of a second."""
    before = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if before:
            gc.enable()


def spread(values: list[float]) -> dict[str, Any]:
    """Median and range."""
    low, middle, high = (significant(v) for v in (min(values), statistics.median(values), max(values)))
    return {"median": middle, "range": [low, high]}


def ratio(slow: list[float], fast: list[float]) -> dict[str, Any]:
    """How many times as long `slow` takes as `fast` in the same round, over the rounds that both took part in."""
    return spread([a / b for a, b in zip(slow, fast, strict=False)])


def significant(value: float, digits: int = 4) -> float:
    return float(f"{value:.{digits}g}")


def one_line(error: BaseException) -> str:
    """The kind and the first line of what went wrong."""
    text = str(error).strip().splitlines()
    kind = "out of memory" if isinstance(error, torch.OutOfMemoryError) else type(error).__name__
    return f"{kind}: {text[0][:200]}" if text else kind


@dataclass(frozen=True)
class Deadline:
    """A moment, in seconds of `time.monotonic`."""

    at: float

    def left(self) -> float:
        return self.at - time.monotonic()

    def before(self, seconds: float) -> "Deadline":
        return Deadline(self.at - seconds)


class Budget:
    """Divides the minutes over the parts by their weights. What a part leaves over, the next ones have.

    Args:
        minutes: for all parts.
        weights: by part, in the order in which they run.
    """

    def __init__(self, minutes: float, weights: Mapping[str, float]) -> None:
        self._start, self._seconds, self._weights = time.monotonic(), 60 * minutes, dict(weights)

    def deadline(self, part: str) -> Deadline:
        """When `part` has to be over."""
        names = list(self._weights)
        until = names[: names.index(part) + 1]
        share = sum(self._weights[name] for name in until) / sum(self._weights.values())
        return Deadline(self._start + share * self._seconds)

    def used(self) -> float:
        return time.monotonic() - self._start


class OutOfTime(BaseException):
    """Not an Exception: those the compiler catches and wraps."""


@contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Raises OutOfTime inside of the block once `seconds` are over: the way out of a compilation that goes on and on.

    Works where the block runs Python, as the compiler does; a call into a library ends first. In the main thread only.
    """

    def give_up(*_: object) -> None:
        raise OutOfTime

    before = signal.signal(signal.SIGALRM, give_up)
    signal.setitimer(signal.ITIMER_REAL, max(seconds, 0.001))
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
