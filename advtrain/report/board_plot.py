"""Clean against robust accuracy of everything on a board, with one model marked."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from advtrain.report.board import Entry, Snapshot, load
from advtrain.report.labelling import Label, place
from advtrain.report.leaderboard import Position
from advtrain.report.style import LIGHT, Theme, canvas, styled

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

LEADERS = 3
MARGIN = 4.0  # percentage points around what is shown


def board_plot(
    position: Position, snapshot: Snapshot | None = None, *, name: str = "this model", theme: Theme = LIGHT
) -> "Figure":
    """The board of the model's dataset and threat model as points, the model as a star with its interval.

    Labelled are the model, its neighbours on the board and the first three. Entries far from all else, which no view
    could show without squeezing the rest, are counted in a corner.

    Args:
        position: of the model; its board must exist.
        snapshot: that the position was made of; the packaged one when None.
        name: of the model, as it shall be written.
        theme: colours.
    """
    measured = position.measured
    entries = (snapshot or load()).board(measured.dataset or "", measured.norm)
    others = [entry for entry in entries if entry is not position.listed]
    ours = None if measured.robust is None else (100 * measured.clean, 100 * measured.robust)
    with styled(theme):
        figure, axes = canvas(4.8)
        for extra, marker, color, words in (
            (False, "o", theme.others, "no additional real data"),
            (True, "s", theme.extra, "additional real data"),
        ):
            group = [entry for entry in others if entry.additional_data is extra]
            axes.scatter(
                [entry.clean for entry in group],
                [entry.robust for entry in group],
                s=22, marker=marker, color=color, alpha=0.75, linewidths=0, label=f"{words} ({len(group)})", zorder=3,
            )  # fmt: skip
        if ours is not None:
            _mark(axes, position, ours, theme)
        _limits(axes, others, ours)
        axes.set_xlabel("clean accuracy, %")
        axes.set_ylabel("robust accuracy, %")
        axes.set_title(f"{position.board}: {len(others)} entries ({position.source})", fontsize=10)
        figure.legend(loc="outside lower center", ncols=3, handletextpad=0.2, columnspacing=1.6)
        _hidden_note(axes, others, theme)
        figure.draw_without_rendering()
        figure.set_layout_engine("none")  # so that the labels stay where they were fitted
        points = [(entry.clean, entry.robust) for entry in others]
        place(axes, _labels(position, others, ours, name, theme), points + _own_points(position, ours))
    return figure


def _mark(axes: "Axes", position: Position, ours: tuple[float, float], theme: Theme) -> None:
    interval = position.measured.interval
    if interval is not None:
        low, high = (100 * bound for bound in interval)
        spread = [[max(0.0, ours[1] - low)], [max(0.0, high - ours[1])]]
        axes.errorbar(*ours, yerr=spread, fmt="none", ecolor=theme.ours, elinewidth=1.4, capsize=3, zorder=4)
    label = "this model, 95 % interval" if interval is not None else "this model"
    axes.scatter(
        *ours, s=170, marker="*", color=theme.ours, edgecolors=theme.ground, linewidths=0.8, zorder=5, label=label
    )


def _own_points(position: Position, ours: tuple[float, float] | None) -> list[tuple[float, float]]:
    """The star and its error bar, as points that names shall not hide."""
    if ours is None:
        return []
    low, high = (100 * bound for bound in position.measured.interval or (ours[1] / 100, ours[1] / 100))
    return [ours, *((ours[0], low + (high - low) * i / 8) for i in range(9))]


def _limits(axes: "Axes", others: Sequence[Entry], ours: tuple[float, float] | None) -> None:
    """All but stragglers: what lies more than two interquartile ranges below the quartile of either accuracy."""
    shown = [entry for entry in others if not _straggles(entry, others)] or list(others)
    xs = [entry.clean for entry in shown] + ([ours[0]] if ours else [])
    ys = [entry.robust for entry in shown] + ([ours[1]] if ours else [])
    axes.set_xlim(min(xs) - MARGIN / 2, min(100.0, max(xs) + MARGIN / 2))
    axes.set_ylim(max(-1.0, min(ys) - MARGIN), max(ys) + MARGIN)


def _straggles(entry: Entry, others: Sequence[Entry]) -> bool:
    return entry.robust < _fence([e.robust for e in others]) or entry.clean < _fence([e.clean for e in others])


def _fence(values: Sequence[float]) -> float:
    ordered = sorted(values)
    low, high = ordered[len(ordered) // 4], ordered[3 * len(ordered) // 4]
    return low - 2 * (high - low)


def _hidden_note(axes: "Axes", others: Sequence[Entry], theme: Theme) -> None:
    (left, right), (bottom, top) = axes.get_xlim(), axes.get_ylim()
    hidden = sum(not (left <= entry.clean <= right and bottom <= entry.robust <= top) for entry in others)
    if hidden:
        words = f"{hidden} entr{'y' if hidden == 1 else 'ies'} outside this view"
        axes.text(0.99, 0.015, words, transform=axes.transAxes, ha="right", color=theme.muted, fontsize=8)


def _labels(
    position: Position, others: Sequence[Entry], ours: tuple[float, float] | None, name: str, theme: Theme
) -> list[Label]:
    named = [entry for entry in (position.above, position.below, *others[:LEADERS]) if entry is not None]
    labels = [Label(f"{name}  {ours[1]:.2f} %", *ours, theme.ours, bold=True)] if ours else []
    labels += [Label(f"{e.model_id}  {e.robust:.2f}", e.clean, e.robust, theme.ink) for e in dict.fromkeys(named)]
    return labels
