"""What AutoAttack's code says while it works, read from its log: progress, verdicts per attack, warnings."""

import logging
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

BATCH = re.compile(r"(?P<attack>\S+) - (?P<batch>\d+)/(?P<batches>\d+) - (?P<broken>\d+) out of \d+ successfully")
ZERO_GRADIENTS = re.compile(r"there are (\d+) points with zero gradient")

# Names for upstream's warnings, by words in them. They mean that the number may be too high.
FLAGS = {
    "randomized defense": "randomized",
    "probability distribution": "probabilities",
    "zero gradient": "zero_gradients",
    "Square Attack has decreased": "square",
    "dynamic defense": "dynamic",
}
SETTLED = "not possible to use the targeted DLR loss"  # said of three classes even where apgd-t does not run


class Flags(logging.Handler):
    """Upstream's warnings, each kind once, with the number of times it came.

    Args:
        report: takes a line when a kind comes for the first time.
    """

    def __init__(self, report: Callable[[str], None]) -> None:
        super().__init__(logging.WARNING)
        self.report = report
        self.found: dict[str, dict[str, str | int]] = {}

    def emit(self, record: logging.LogRecord) -> None:
        self.add(record.getMessage())

    def add(self, message: str) -> None:
        if SETTLED in message:
            return
        text = message.split(" See flags_doc")[0]
        name = next((name for words, name in FLAGS.items() if words in text), "other")
        if name not in self.found:
            self.report(f"AutoAttack warns: {text}")
        flag = self.found.setdefault(name, {"name": name, "message": text, "count": 0})
        flag["count"] = int(flag["count"]) + 1

    def zero_gradients(self, points: int) -> None:
        """As upstream's check says it of one start on the DLR loss: nothing of a start without such points."""
        if points:
            self.add(
                f"there are {points} points with zero gradient! This might lead to unreliable evaluation with "
                "gradient-based attacks."
            )


class ZeroGradients(logging.Handler):
    """Collects of how many points each warning about zero gradients was."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.points: list[int] = []

    def emit(self, record: logging.LogRecord) -> None:
        if match := ZERO_GRADIENTS.match(record.getMessage()):
            self.points.append(int(match[1]))


@dataclass
class Stage:
    """One attack of the sequence: how many images it broke and how long it took."""

    attack: str
    started: float
    broken: int = 0
    seconds: float = 0.0


class AttackLog(logging.Handler):
    """Reads one run.

    Args:
        n_examples: images under attack.
        correct: of them, those classified correctly without an attack.
        report: takes a line of progress after each batch.
    """

    def __init__(self, n_examples: int, correct: int, report: Callable[[str], None]) -> None:
        super().__init__(logging.DEBUG)
        self.n_examples = n_examples
        self.robust = correct
        self.report = report
        self.stages: list[Stage] = []
        self.flags = Flags(report)
        self._started = time.monotonic()

    def emit(self, record: logging.LogRecord) -> None:
        message = record.getMessage()
        if record.levelno >= logging.WARNING:
            self.flags.emit(record)
        elif message.startswith("running "):
            self.stages.append(Stage(message.removeprefix("running "), time.monotonic()))
        elif message.startswith("no robust datapoints left"):
            self.stages.pop()  # announced, but there is nothing to attack
        elif match := BATCH.match(message):
            self._batch(match)

    def _batch(self, match: re.Match[str]) -> None:
        stage = self.stages[-1]
        stage.broken += int(match["broken"])
        stage.seconds = time.monotonic() - stage.started
        self.robust -= int(match["broken"])
        self.report(
            f"AutoAttack {match['attack']} batch {match['batch']}/{match['batches']}: {self.robust}/{self.n_examples} "
            f"robust so far ({self.robust / self.n_examples:.2%}), {time.monotonic() - self._started:.0f} s"
        )


@contextmanager
def listening(*handlers: logging.Handler, name: str = "auto-attack") -> Iterator[logging.Logger]:
    """Sends everything that upstream logs to `handlers`, and nowhere else; gives its logger."""
    logger = logging.getLogger(name)
    before = (logger.handlers, logger.level, logger.propagate)
    try:
        logger.handlers, logger.propagate = list(handlers), False
        logger.setLevel(logging.DEBUG)
        yield logger
    finally:
        logger.handlers, logger.propagate = before[0], before[2]
        logger.setLevel(before[1])
