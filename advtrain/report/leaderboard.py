"""Where a model would stand on RobustBench's board.

    position(Measured.from_record(record, dataset="cifar10")).text
    # would be rank 34 of 100 on CIFAR-10 Linf; between <ID> (57.09 %) and <ID> (56.94 %)

The rule is RobustBench's (its leaderboard/template.py): entries by `external` where present, else by `autoattack_acc`,
downwards; `unreliable` is shown nowhere in that ranking. It leaves the order of equal accuracies to chance; here
they share a rank, one more than the number of entries strictly above. The total counts the model in: of 99 entries and
ours, the last one is rank 100 of 100. A model that is on the board already is ranked without its own row.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from advtrain.report.board import THREATS, Entry, Snapshot, in_words, load, same_radius
from advtrain.report.reading import dataset_of, interval_of, percent_range, radius_text

ZOO_PREFIX = "robustbench:"
FULL_SETS = {"cifar10": 10_000, "cifar100": 10_000, "imagenet": 5_000}  # images that the board's numbers are over


@dataclass(frozen=True)
class Measured:
    """What an evaluation found, as far as a board asks for it.

    Attributes:
        dataset: as leaderboards write it: cifar10.
        norm, eps: threat model; eps in units of pixels in [0, 1].
        clean, robust: accuracies as fractions; robust is None where no AutoAttack ran.
        n_examples: images attacked; None: the board's full set.
        interval: of the robust accuracy, as fractions.
        caveats: why the number is not what the board would list, a clause each.
        upper_bound: whether the full AutoAttack could be lower, so that the rank is the best possible.
        model_id: its row, when it is on the board.
    """

    dataset: str | None
    norm: str
    eps: float
    clean: float
    robust: float | None
    n_examples: int | None = None
    interval: tuple[float, float] | None = None
    caveats: tuple[str, ...] = ()
    upper_bound: bool = False
    model_id: str | None = None

    @classmethod
    def from_record(cls, record: Mapping[str, Any], dataset: str | None = None) -> "Measured":
        """From the content of evaluation.json; `dataset` where the record does not say."""
        threat, attacked = record["threat"], record.get("autoattack")
        source = record.get("source")
        model = str(source.get("model", "")) if isinstance(source, Mapping) else ""
        settings = (attacked or {}).get("settings") or {}
        dataset = dataset or dataset_of(record)
        return cls(
            dataset=dataset,
            norm=threat["norm"],
            eps=float(threat["eps"]),
            clean=record["clean"]["accuracy"],
            robust=attacked["accuracy"] if attacked else None,
            n_examples=attacked["n_examples"] if attacked else None,
            interval=interval_of(attacked) if attacked else None,
            caveats=_caveats(record, settings, dataset),
            upper_bound=settings.get("version") == "custom",
            model_id=model.removeprefix(ZOO_PREFIX) if model.startswith(ZOO_PREFIX) else None,
        )


@dataclass(frozen=True)
class Position:
    """A place on a board, or the reason why there is none.

    Attributes:
        measured: what is placed.
        rank: counted from 1; one more than the number of entries strictly above. None when not comparable.
        total: entries and the model itself; 0 where there is no board.
        above, below: the nearest entries with a higher and a lower accuracy.
        level: entries with the same accuracy, to the hundredth of a percent.
        span: first and last rank within the interval, of a subset.
        reason: why there is no rank.
        listed: the model's own row, which is not counted.
        source: of the board.
    """

    measured: Measured
    rank: int | None
    total: int
    above: Entry | None
    below: Entry | None
    level: tuple[Entry, ...]
    span: tuple[int, int] | None
    reason: str | None
    listed: Entry | None
    source: str

    @property
    def board(self) -> str:
        """In words: CIFAR-10 Linf."""
        return f"{in_words(self.measured.dataset or 'unknown data')} {THREATS.get(self.measured.norm, '')}".strip()

    @property
    def text(self) -> str:
        """The position in one line."""
        if self.rank is None:
            return f"not comparable: {self.reason}"
        best = "at best rank" if self.measured.upper_bound else "rank"
        parts = [f"would be {best} {self.rank} of {self.total} on {self.board}", self._neighbours()]
        if self.listed is not None:
            parts.append(f"RobustBench lists it with {self.listed.robust:.2f} %")
        if self.span is not None and self.measured.interval is not None:
            first, last = self.span
            ranks = f"spans ranks {first} to {last}" if first < last else f"lies within rank {first}"
            parts.append(
                f"a subset of {self.measured.n_examples:,} images; the interval "
                f"{percent_range(self.measured.interval)} {ranks}"
            )
        return "; ".join([*(part for part in parts if part), *self.measured.caveats])

    def _neighbours(self) -> str:
        above, below = _named(self.above), _named(self.below)
        if above and below:
            words = f"between {above} and {below}"
        else:
            words = f"below {above}" if above else f"above {below}" if below else ""
        if not self.level:
            return words
        level = f"level with {' and '.join(entry.model_id for entry in self.level)} ({self.level[0].robust:.2f} %)"
        return f"{level}, {words}" if words else level

    def record(self) -> dict[str, Any]:
        """The entry `leaderboard` of evaluation.json."""
        return {
            "board": self.board,
            "rank": self.rank,
            "total": self.total,
            "above": _row(self.above),
            "below": _row(self.below),
            "level": [entry.model_id for entry in self.level],
            "span": list(self.span) if self.span else None,
            "reason": self.reason,
            "caveats": list(self.measured.caveats),
            "source": self.source,
            "text": self.text,
        }


def position(measured: Measured | Mapping[str, Any], snapshot: Snapshot | None = None) -> Position:
    """Where a model would stand.

    Args:
        measured: of the model; or the content of evaluation.json that names its dataset.
        snapshot: of the boards; the packaged one when None.
    """
    measured = measured if isinstance(measured, Measured) else Measured.from_record(measured)
    snapshot = snapshot or load()
    rows = snapshot.board(measured.dataset or "", measured.norm)
    others = [entry for entry in rows if entry.model_id != measured.model_id]
    listed = next((entry for entry in rows if entry.model_id == measured.model_id), None)
    reason = _reason(measured, snapshot)
    if reason is not None or measured.robust is None:
        return Position(
            measured, None, len(others) + 1 if rows else 0, None, None, (), None, reason, listed, snapshot.source
        )
    ours = _hundredths(measured.robust)
    higher = [entry for entry in others if entry.hundredths > ours]
    lower = [entry for entry in others if entry.hundredths < ours]
    return Position(
        measured=measured,
        rank=len(higher) + 1,
        total=len(others) + 1,
        above=higher[-1] if higher else None,
        below=lower[0] if lower else None,
        level=tuple(entry for entry in others if entry.hundredths == ours),
        span=_span(measured, others),
        reason=None,
        listed=listed,
        source=snapshot.source,
    )


def _reason(measured: Measured, snapshot: Snapshot) -> str | None:
    """Why the board has no place for it."""
    if measured.dataset is None:
        return "the record does not say which dataset was evaluated"
    words = f"{in_words(measured.dataset)} {THREATS.get(measured.norm, measured.norm)}"
    written = snapshot.eps(measured.dataset, measured.norm)
    if written is None:
        return f"RobustBench has no board for {words}"
    if not same_radius(measured.eps, written):
        return f"evaluated at ε = {radius_text(measured.eps, measured.norm)}, where the {words} board has ε = {written}"
    return None if measured.robust is not None else "no AutoAttack ran"


def _span(measured: Measured, others: Sequence[Entry]) -> tuple[int, int] | None:
    full = FULL_SETS.get(measured.dataset or "", 0)
    if measured.n_examples is None or measured.interval is None or measured.n_examples >= full:
        return None
    low, high = (_hundredths(bound) for bound in measured.interval)
    return sum(e.hundredths > high for e in others) + 1, sum(e.hundredths > low for e in others) + 1


def _caveats(record: Mapping[str, Any], settings: Mapping[str, Any], dataset: str | None) -> tuple[str, ...]:
    caveats = []
    version = settings.get("version", "standard")
    if version == "custom":
        attacks = ", ".join(settings.get("attacks") or [])
        caveats.append(f"only {attacks} ran: the standard AutoAttack may find less")
    elif version != "standard":
        caveats.append(f"AutoAttack's version {version}, where the board has standard")
    if settings.get("engine") == "fast":
        caveats.append("by the fast engine, which is not AutoAttack by name")
    if (record.get("masking") or {}).get("verdict") == "doubtful":
        caveats.append("the masking checks doubt the number")
    elif (record.get("autoattack") or {}).get("flags"):
        caveats.append("AutoAttack itself warns about the model")
    if dataset == "imagenet":
        caveats.append("the board's 5,000 images are a list of its own")
    return tuple(caveats)


def _hundredths(fraction: float) -> int:
    return round(10_000 * fraction)


def _named(entry: Entry | None) -> str:
    return f"{entry.model_id} ({entry.robust:.2f} %)" if entry else ""


def _row(entry: Entry | None) -> dict[str, Any] | None:
    return {"model_id": entry.model_id, "robust": entry.robust, "clean": entry.clean} if entry else None
