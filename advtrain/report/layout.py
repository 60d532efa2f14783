"""What the page is made of, as plain data: headline, sections, tables, pictures."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from advtrain.report.style import Theme

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Table:
    """Rows of texts; `right` names the columns of numbers, `marks` the kind of each row: good, bad, open."""

    headings: Sequence[str]
    rows: Sequence[Sequence[str]]
    right: Sequence[int] = ()
    marks: Sequence[str] = ()
    caption: str = ""


@dataclass(frozen=True)
class Picture:
    """A figure in any theme, and what it shows for those who cannot see it."""

    draw: "Callable[[Theme], Figure]"
    text: str


@dataclass(frozen=True)
class Section:
    """One part of the page.

    Attributes:
        title: heading.
        lead: paragraphs at its top.
        pictures, tables: what follows, in this order.
        notes: a list below.
        code: commands, as they are typed.
    """

    title: str
    lead: Sequence[str] = ()
    pictures: Sequence[Picture] = ()
    tables: Sequence[Table] = ()
    notes: Sequence[str] = ()
    code: str = ""


@dataclass(frozen=True)
class Number:
    """One number of the headline."""

    name: str
    value: str
    note: str = ""
    mark: str = ""


@dataclass(frozen=True)
class Headline:
    """What the page says first."""

    numbers: Sequence[Number] = field(default_factory=list)
    sentence: str = ""
    source: str = ""
