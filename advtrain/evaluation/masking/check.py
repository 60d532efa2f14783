"""What a check says, and what all of them say together."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

WORDS = {True: "pass", False: "FAIL", None: "not run"}


@dataclass(frozen=True)
class Check:
    """One question about the model, its answer and the evidence.

    Attributes:
        name: one word.
        passed: the answer; None where the check could not be made.
        value: what was measured, as a fraction of the images.
        threshold: the largest value that passes, chance included; see `statistics`.
        reason: the numbers in words, or why the check was not made.
        source: where the check and its threshold come from.
        details: further numbers.
    """

    name: str
    passed: bool | None
    value: float | None
    threshold: float | None
    reason: str
    source: str
    details: Mapping[str, Any] = field(default_factory=dict)

    def record(self) -> dict[str, Any]:
        """What goes into evaluation.json."""
        content = {
            "name": self.name,
            "passed": self.passed,
            "value": self.value,
            "threshold": self.threshold,
            "reason": self.reason,
            "source": self.source,
        }
        return content | ({"details": dict(self.details)} if self.details else {})

    def __str__(self) -> str:
        measured = ""
        if self.value is not None and self.threshold is not None:
            measured = f"{self.value:.1%} {'>' if self.value > self.threshold else '≤'} {self.threshold:.1%}"
        return f"{self.name:<14} {WORDS[self.passed]:<7} {measured:<15} {self.reason}"


@dataclass(frozen=True)
class MaskingReport:
    """Whether the robust accuracy can be believed, and why.

    Attributes:
        checks: all of them, also those that were not run.
        n_examples: images they looked at.
        seconds: they took.
    """

    checks: Sequence[Check]
    n_examples: int
    seconds: float

    @property
    def verdict(self) -> str:
        """ "believable" when no check failed, otherwise "doubtful"."""
        return "doubtful" if self.failed else "believable"

    @property
    def failed(self) -> list[str]:
        """The names of the checks that failed."""
        return [check.name for check in self.checks if check.passed is False]

    def record(self) -> dict[str, Any]:
        """The "masking" part of evaluation.json."""
        return {
            "verdict": self.verdict,
            "checks": [check.record() for check in self.checks],
            "n_examples": self.n_examples,
            "seconds": round(self.seconds, 3),
        }

    def lines(self) -> list[str]:
        """For the terminal: the verdict, then one line per check."""
        counts = [sum(check.passed is answer for check in self.checks) for answer in WORDS]
        numbers = ", ".join(f"{count} {word}" for count, word in zip(counts, WORDS.values(), strict=True))
        head = f"Masking checks on {self.n_examples} images: the number is {self.verdict} ({numbers})"
        return [head, *(f"  {check}" for check in self.checks)]
