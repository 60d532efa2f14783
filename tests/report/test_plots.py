"""The pictures hold what the record says: as many points, bars and bands, and names that do not cover each other."""

from collections.abc import Callable
from itertools import combinations
from typing import Any

import pytest

from advtrain.report import Measured, load, plots, position
from advtrain.report.style import DARK, LIGHT, Theme

BOARDS = [
    ("cifar10", "linf", 8 / 255),
    ("cifar10", "l2", 0.5),
    ("cifar100", "linf", 8 / 255),
    ("imagenet", "linf", 4 / 255),
]


def is_png(figure: Any) -> bool:
    content = plots.png(figure)
    return content.startswith(b"\x89PNG\r\n") and len(content) > 5_000


def points(axes: Any) -> list[Any]:
    """The points of every scatter, in data units."""
    from matplotlib.collections import PathCollection

    return [collection.get_offsets() for collection in axes.collections if isinstance(collection, PathCollection)]


@pytest.mark.parametrize(("dataset", "norm", "eps"), BOARDS)
def test_the_board_has_a_point_for_every_entry_and_one_star(dataset: str, norm: str, eps: float) -> None:
    entries = load().board(dataset, norm)
    middle = entries[len(entries) // 2]
    place = position(Measured(dataset, norm, eps, middle.clean / 100, middle.robust / 100 + 2e-4, interval=(0.3, 0.7)))
    figure = plots.board_plot(place, name="mine")
    (axes,) = figure.axes
    without, with_extra, star = points(axes)
    drawn = sorted((float(x), float(y)) for x, y in [*without, *with_extra])
    assert drawn == sorted((entry.clean, entry.robust) for entry in entries)
    assert len(with_extra) == sum(entry.additional_data for entry in entries)
    assert [tuple(map(float, point)) for point in star] == [(middle.clean, pytest.approx(middle.robust + 0.02))]
    names = [text.get_text() for text in axes.texts]
    assert place.above is not None and place.below is not None
    for entry in (place.above, place.below, *entries[:3]):
        assert f"{entry.model_id}  {entry.robust:.2f}" in names
    assert any(name.startswith("mine  ") for name in names)
    assert is_png(figure)


@pytest.mark.parametrize(("dataset", "norm", "eps"), BOARDS)
def test_names_cover_neither_each_other_nor_the_frame(dataset: str, norm: str, eps: float) -> None:
    entries = load().board(dataset, norm)
    for entry in (entries[0], entries[len(entries) // 2], entries[-3]):
        place = position(Measured(dataset, norm, eps, entry.clean / 100, entry.robust / 100 + 1e-4))
        figure = plots.board_plot(place, name="a model of ours")
        (axes,) = figure.axes
        figure.draw_without_rendering()
        frame = axes.get_window_extent()
        boxes = [_letters(text) for text in axes.texts]
        boxes = [box for box in boxes if box.overlaps(frame)]  # the others belong to entries outside the view
        assert len(boxes) >= 4
        assert not any(a.overlaps(b) for a, b in combinations(boxes, 2))
        assert all(frame.x0 <= box.x0 and box.x1 <= frame.x1 and frame.y0 <= box.y0 for box in boxes)


def _letters(text: Any) -> Any:
    """Where a name stands, without the line that leads to its point."""
    from matplotlib.text import Text

    return Text.get_window_extent(text)


def test_the_interval_is_the_error_bar() -> None:
    place = position(Measured("cifar10", "linf", 8 / 255, 0.85, 0.57, 1000, (0.54, 0.6)))
    (axes,) = plots.board_plot(place).axes
    (bar,) = axes.containers
    (segment,) = bar.lines[2][0].get_segments()
    assert [tuple(point) for point in segment] == [(85.0, pytest.approx(54.0)), (85.0, pytest.approx(60.0))]


def test_a_model_off_the_board_is_not_marked() -> None:
    (axes,) = plots.board_plot(position(Measured("cifar10", "linf", 4 / 255, 0.85, 0.7))).axes
    assert sum(len(group) for group in points(axes)) == 99


def test_the_descent_has_a_bar_for_every_stage(old: dict[str, Any]) -> None:
    figure = plots.descent_plot(old["autoattack"])
    (axes,) = figure.axes
    heights = [patch.get_height() for patch in axes.patches]
    assert heights == pytest.approx([67.6, 35.0, 32.0, 32.0, 32.0])
    assert [label.get_text() for label in axes.get_xticklabels()] == [
        "no attack",
        "apgd-ce",
        "apgd-t",
        "fab-t",
        "square",
    ]
    assert is_png(figure)


def test_the_curve_is_sorted_and_has_its_band() -> None:
    curve = {
        "norm": "linf",
        "eps": ["8/255", "2/255"],
        "accuracy": [0.3, 0.6],
        "interval": [[0.25, 0.35], [0.55, 0.65]],
    }
    figure = plots.curve_plot(curve, 8 / 255)
    (axes,) = figure.axes
    line, threat = axes.lines
    assert list(line.get_xdata()) == pytest.approx([2 / 255, 8 / 255])
    assert list(line.get_ydata()) == pytest.approx([60, 30])
    assert threat.get_xdata()[0] == pytest.approx(8 / 255)
    (band,) = axes.collections
    assert {round(float(y)) for _, y in band.get_paths()[0].vertices} == {25, 35, 55, 65}
    assert [label.get_text() for label in axes.get_xticklabels()] == ["2/255", "8/255"]


@pytest.mark.parametrize("families", [
    {"fog": {"1": 0.6, "2": 0.4}, "snow": {"1": 0.3}},
    {"fog": [0.6, 0.4], "snow": 0.3},
    {"fog": {"severities": {"1": {"accuracy": 0.6}, "2": {"accuracy": 0.4}}}, "snow": {"1": {"accuracy": 0.3}}},
])  # fmt: skip
def test_corruptions_are_read_in_any_form(families: dict[str, Any]) -> None:
    (axes,) = plots.corruptions_plot({"families": families}).axes
    assert [patch.get_width() for patch in axes.patches] == pytest.approx([30, 50])
    assert [label.get_text() for label in axes.get_yticklabels()] == ["snow", "fog"]


@pytest.mark.parametrize("classes", [10, 100])
def test_classes_are_sorted(classes: int) -> None:
    counts = {str(i): [(7 * i) % classes, 2 * classes] for i in range(classes)}
    figure = plots.classes_plot(counts)
    (axes,) = figure.axes
    assert [bar.get_height() for bar in axes.patches] == pytest.approx([50 * i / classes for i in range(classes)])
    assert is_png(figure)


def test_training_curves_average_the_steps_of_an_epoch(metrics: list[dict[str, Any]]) -> None:
    (axes,) = plots.training_plot(metrics, {"detected": True, "epoch": 3}).axes
    clean, robust, training, collapse = axes.lines
    assert list(clean.get_ydata()) == pytest.approx([20, 40, 60, 80])
    assert list(robust.get_ydata()) == pytest.approx([10, 20, 30, 40])
    assert list(training.get_ydata()) == pytest.approx([11, 21, 31, 41])
    assert collapse.get_xdata()[0] == 3
    (healthy,) = plots.training_plot(metrics, {"detected": False, "epoch": None}).axes
    assert len(healthy.lines) == 3


@pytest.mark.parametrize("theme", [LIGHT, DARK])
def test_colours_stand_out_from_the_ground(theme: Theme) -> None:
    """Contrast by WCAG 2.1: 4.5 for words (1.4.3), 3 for marks (1.4.11); light bars have their number beside them."""
    ground = _luminance(theme.ground)
    for color, least in (
        (theme.ink, 4.5),
        (theme.muted, 4.5),
        (theme.ours, 3),
        (theme.others, 3),
        (theme.extra, 3),
        (theme.robust, 3),
    ):
        pair = sorted([ground, _luminance(color)])
        assert (pair[1] + 0.05) / (pair[0] + 0.05) >= least, color


def _luminance(color: str) -> float:
    parts = [int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def test_settings_of_the_user_stay(old: dict[str, Any]) -> None:
    import matplotlib

    before = dict(matplotlib.rcParams)
    draw: Callable[..., Any] = plots.descent_plot
    draw(old["autoattack"], DARK)
    assert dict(matplotlib.rcParams) == before
