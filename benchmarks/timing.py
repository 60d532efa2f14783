"""Times several ways of doing the same work against each other, so that the ratio can be believed.

All ways are built once in one process and take turns in random order; each round gives one ratio per way, and what is
told is their median with the range. The clock is the process's own, which other processes on the machine disturb
little; on one thread it is the time that the work would take on an idle core.
"""

import random
import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

Work = Callable[[], object]


def seconds(work: Work, repeats: int = 1) -> float:
    """Process time of one of so many runs of `work`."""
    started = time.process_time()
    for _ in range(repeats):
        work()
    return (time.process_time() - started) / repeats


def repeats_for(work: Work, least: float) -> int:
    """How many runs of `work` take at least `least` seconds together, by the second run; the first one warms up."""
    work()
    return max(1, round(least / max(seconds(work), 1e-9)))


def interleaved(ways: Mapping[str, Work], *, rounds: int, seed: int, least: float = 0.0) -> dict[str, list[float]]:
    """Seconds per run of each way in each round.

    Args:
        ways: by name; each has run before, or is run here twice before the first round.
        rounds: in each of which every way has one turn.
        seed: of the order of the turns.
        least: seconds that a turn shall take; a way that is quicker is run several times in one turn.
    """
    repeats = {name: repeats_for(work, least) if least else _once(work) for name, work in ways.items()}
    times: dict[str, list[float]] = {name: [] for name in ways}
    order = random.Random(seed)
    for _ in range(rounds):
        for name in order.sample(list(ways), len(ways)):
            times[name].append(seconds(ways[name], repeats[name]))
    return times


def compared(times: Mapping[str, list[float]], reference: str) -> dict[str, dict[str, Any]]:
    """Per way: milliseconds per run, and how many times as fast as `reference` it is, both as medians over the rounds.

    The ratio is that of one round, so that what slows the machine for a while slows both sides.
    """
    found = {}
    for name, values in times.items():
        speedups = [slow / fast for slow, fast in zip(times[reference], values, strict=True)]
        found[name] = {
            "milliseconds": significant(1e3 * statistics.median(values)),
            "ratio": significant(statistics.median(speedups)),
            "range": [significant(min(speedups)), significant(max(speedups))],
        }
    return found


def significant(value: float, digits: int = 4) -> float:
    """Rounded to so many significant digits: more would be noise."""
    return float(f"{value:.{digits}g}")


def _once(work: Work) -> int:
    work()
    return 1
