"""Names beside points, without two of them on top of each other."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.text import Annotation

FONT_SIZE = 8  # points
DISTANCES = (8, 16, 26, 38, 52, 68, 86, 106, 130)  # points between a point and its name
DIRECTIONS = 16
GAP = 3  # pixels that stay free around a name
POINT = 5  # pixels, radius of a point

Box = tuple[float, float, float, float]  # left, bottom, right, top in pixels


@dataclass(frozen=True)
class Label:
    """A name and the point, in data units, that it belongs to."""

    text: str
    x: float
    y: float
    color: str
    bold: bool = False


@dataclass(frozen=True)
class Spot:
    """Where a name may stand, from its point: right and up in points, and which edge of the text is there."""

    right: float
    up: float
    distance: float

    @property
    def horizontal(self) -> str:
        return _edge(self.right, self.distance, "left", "right")

    @property
    def vertical(self) -> str:
        return _edge(self.up, self.distance, "bottom", "top")


SPOTS = [
    Spot(r * math.cos(2 * math.pi * i / DIRECTIONS), r * math.sin(2 * math.pi * i / DIRECTIONS), r)
    for r in DISTANCES
    for i in range(DIRECTIONS)
]


def place(axes: "Axes", labels: Sequence[Label], points: Sequence[tuple[float, float]]) -> "list[Annotation]":
    """Writes each label at the nearest free spot: inside the axes, over no other label, over as few points as possible.

    Greedy, in the order given: the important ones come first. A thin line leads from a name that had to move away.

    Args:
        axes: with their final limits; the figure's layout must not change afterwards.
        labels: to write.
        points: that the names shall not hide, in data units.
    """
    pixels = [(float(x), float(y)) for x, y in axes.transData.transform(list(points))] if points else []
    frame = axes.get_window_extent()
    inside: Box = (frame.x0, frame.y0, frame.x1, frame.y1)
    taken: list[Box] = []
    placed = []
    for label in labels:
        size = _size(axes, label)
        lines = [_line(axes, label, spot) for spot in SPOTS]
        boxes = [_box(lines[i][-1], size, spot) for i, spot in enumerate(SPOTS)]
        costs = [
            spot.distance + _cost(boxes[i], inside, taken, pixels) + 300 * _crossings(lines[i], taken)
            for i, spot in enumerate(SPOTS)
        ]
        best = min(range(len(SPOTS)), key=costs.__getitem__)
        taken.append(boxes[best])
        if SPOTS[best].distance > DISTANCES[0]:
            pixels += lines[best][1:-1]  # later names do not stand on the line either
        placed.append(_write(axes, label, SPOTS[best]))
    return placed


def _edge(along: float, distance: float, low: str, high: str) -> str:
    return low if along > 0.3 * distance else high if along < -0.3 * distance else "center"


def _size(axes: "Axes", label: Label) -> tuple[float, float]:
    """Width and height of the written name in pixels."""
    text = axes.text(0, 0, label.text, fontsize=FONT_SIZE, fontweight="bold" if label.bold else "normal")
    box = text.get_window_extent()
    text.remove()
    return box.width, box.height


def _line(axes: "Axes", label: Label, spot: Spot) -> list[tuple[float, float]]:
    """Points in pixels on the way from the point to its name."""
    scale = axes.figure.dpi / 72
    x, y = (float(value) for value in axes.transData.transform((label.x, label.y)))
    steps = range(9)
    return [(x + scale * spot.right * i / 8, y + scale * spot.up * i / 8) for i in steps]


def _box(anchor: tuple[float, float], size: tuple[float, float], spot: Spot) -> Box:
    before = {"left": 0.0, "bottom": 0.0, "center": 0.5, "right": 1.0, "top": 1.0}
    left = anchor[0] - before[spot.horizontal] * size[0]
    bottom = anchor[1] - before[spot.vertical] * size[1]
    return left - GAP, bottom - GAP, left + size[0] + GAP, bottom + size[1] + GAP


def _crossings(line: Sequence[tuple[float, float]], taken: Sequence[Box]) -> int:
    return sum(any(left <= x <= right and low <= y <= top for x, y in line) for left, low, right, top in taken)


def _cost(box: Box, inside: Box, taken: Sequence[Box], pixels: Sequence[tuple[float, float]]) -> float:
    left, bottom, right, top = box
    outside = left < inside[0] or bottom < inside[1] or right > inside[2] or top > inside[3]
    overlaps = sum(left < r and l < right and bottom < t and b < top for l, b, r, t in taken)  # noqa: E741
    hidden = sum(left - POINT < x < right + POINT and bottom - POINT < y < top + POINT for x, y in pixels)
    return 10_000 * outside + 3_000 * overlaps + 80 * hidden


def _write(axes: "Axes", label: Label, spot: Spot) -> "Annotation":
    line = {"arrowstyle": "-", "color": label.color, "linewidth": 0.6, "alpha": 0.7, "shrinkA": 1, "shrinkB": 3}
    return axes.annotate(
        label.text,
        (label.x, label.y),
        xytext=(spot.right, spot.up),
        textcoords="offset points",
        ha=spot.horizontal,
        va=spot.vertical,
        color=label.color,
        fontsize=FONT_SIZE,
        fontweight="bold" if label.bold else "normal",
        arrowprops=line if spot.distance > DISTANCES[0] else None,
        zorder=6,
    )
