"""How the pictures look: colours that colour-blind readers can tell apart, on a light and on a dark page."""

import io
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

DPI = 160
WIDTH = 7.2  # inches: about 1150 pixels, shown at half of that or more


@dataclass(frozen=True)
class Theme:
    """Colours of one picture; the data's are of Okabe and Ito's set, lightened for the dark page.

    Attributes:
        ground, ink, muted, grid: of page, text, lesser text and lines.
        clean, robust: of the two accuracies.
        ours: of the model that the picture is about.
        others, extra: of entries trained without and with additional data.
        warning: of what went wrong.
    """

    ground: str
    ink: str
    muted: str
    grid: str
    clean: str
    robust: str
    ours: str
    others: str
    extra: str
    warning: str


LIGHT = Theme(
    ground="#ffffff",
    ink="#1b2430",
    muted="#5b6675",
    grid="#e3e7ec",
    clean="#56b4e9",
    robust="#0072b2",
    ours="#d55e00",
    others="#0072b2",
    extra="#009e73",
    warning="#d55e00",
)
DARK = Theme(
    ground="#151b23",
    ink="#e6ebf1",
    muted="#9aa7b5",
    grid="#2a333e",
    clean="#8cc8ee",
    robust="#3d9be0",
    ours="#ff9a4d",
    others="#5aaae6",
    extra="#3fc79a",
    warning="#ff9a4d",
)


@contextmanager
def styled(theme: Theme) -> Iterator[None]:
    """Matplotlib's settings for a picture, restored afterwards; DejaVu Sans comes with it on every machine."""
    import matplotlib

    settings: Any = {
        "font.family": "DejaVu Sans",
        "font.size": 10,
        "axes.titlesize": 11,
        "axes.titleweight": "bold",
        "axes.titlelocation": "left",
        "axes.titlepad": 10,
        "axes.labelsize": 10,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.axisbelow": True,
        "axes.grid": True,
        "axes.facecolor": theme.ground,
        "axes.edgecolor": theme.muted,
        "axes.labelcolor": theme.ink,
        "axes.titlecolor": theme.ink,
        "figure.facecolor": theme.ground,
        "savefig.facecolor": theme.ground,
        "grid.color": theme.grid,
        "text.color": theme.ink,
        "xtick.color": theme.muted,
        "ytick.color": theme.muted,
        "xtick.labelcolor": theme.ink,
        "ytick.labelcolor": theme.ink,
        "legend.frameon": False,
        "legend.fontsize": 9,
    }
    with matplotlib.rc_context(settings):
        yield


def canvas(height: float, width: float = WIDTH) -> "tuple[Figure, Axes]":
    """A figure with one pair of axes, known to no global state; to be called while `styled`."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained", dpi=DPI)
    return figure, figure.add_subplot()


def png(figure: "Figure") -> bytes:
    """The picture as a PNG file without a date, so that the same record gives the same bytes."""
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=DPI, metadata={"Software": None})
    return file.getvalue()
