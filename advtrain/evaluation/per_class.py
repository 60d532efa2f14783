"""Which classes a model is weakest on, for people; the counts are those of `statistics.per_class`."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from advtrain.evaluation.statistics import wilson_interval


@dataclass(frozen=True)
class ClassAccuracy:
    """One class.

    Attributes:
        name: its number, or its name where that is known.
        correct: images that are still classified correctly.
        n: images of the class.
    """

    name: str
    correct: int
    n: int

    @property
    def accuracy(self) -> float:
        """As a fraction."""
        return self.correct / self.n

    @property
    def interval(self) -> tuple[float, float]:
        """Wilson's, of 95 %."""
        return wilson_interval(self.correct, self.n)


def worst_classes(
    counts: Mapping[str, Sequence[int]], names: Sequence[str] = (), how_many: int = 3
) -> list[ClassAccuracy]:
    """The classes of lowest accuracy, the lowest first; ties in the order of their numbers.

    Args:
        counts: correct images and all images of each class, by its number as a word.
        names: of all classes in their order; numbers are shown when empty.
        how_many: at most.
    """
    rows = [
        ClassAccuracy(names[int(label)] if names else label, correct, n)
        for label, (correct, n) in sorted(counts.items(), key=lambda item: int(item[0]))
    ]
    return sorted(rows, key=lambda row: row.accuracy)[:how_many]


def class_lines(counts: Mapping[str, Sequence[int]], names: Sequence[str] = ()) -> list[str]:
    """For people: the three worst classes with their intervals, one line; none where there are fewer than two."""
    if len(counts) < 2:
        return []
    words = []
    for row in worst_classes(counts, names):
        low, high = row.interval
        words.append(f"{row.name} {row.accuracy:.1%} [{low:.1%}, {high:.1%}] of {row.n}")
    return [f"worst classes: {'; '.join(words)}"]
