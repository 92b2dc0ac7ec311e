"""The HTML of a page: templates fill in typed values; bar charts are text of the page.

The HTML of a page: templates fill in typed values, and everything from outside is shown and does nothing else.

Bar charts: a row is a label, its number and its bar; all text is the page's, so it fits paper and phone.
"""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from itertools import chain
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from export.words import count, listed, sentence

TEMPLATES = Path(__file__).parent / "templates"
# Control characters, characters that turn the direction of what follows them, and lone surrogates.
_UNSEEN = re.compile(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def render(template: str, **values: object) -> Markup:
    """Fill in a template.

    Args:
        template: name of a file in ``templates/``.
        values: what it is given by name; a name that it asks for and is not given is an error.
    """
    return Markup(environment().get_template(template).render(values))


@cache
def environment() -> Environment:
    """What templates are read and filled in by."""
    made = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_visible,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters |= {"count": count, "cut": cut, "listed": listed, "sentence": sentence}
    return made


def _visible(value: object) -> object:
    """A value with what no reader sees as escapes; what is HTML already stays."""
    if isinstance(value, Markup):
        return value
    return _UNSEEN.sub(lambda letter: letter[0].encode("unicode_escape").decode(), str(value))


def cut(value: str, most: int) -> str:
    """A text of at most so many characters; what is cut off leaves an ellipsis."""
    return value if len(value) <= most else value[: most - 1] + "…"


@dataclass(frozen=True)
class Section:
    """A titled part of a page, which the contents link to.

    Attributes:
        title: plain text.
        html: what stands below it.
    """

    title: str
    html: Markup

    @property
    def anchor(self) -> str:
        """The name that links use."""
        return re.sub(r"[^a-z0-9]+", "-", self.title.lower())


@dataclass(frozen=True)
class Cell:
    """A cell of a table; plain text.

    Attributes:
        text: what it shows.
        verdict: whose colour it has as a badge; "" for none.
        remarks: footnotes, as sentences; empty ones are none.
        code: whether it is shown as code.
    """

    text: str
    verdict: str = ""
    remarks: Sequence[str] = ()
    code: bool = False


@dataclass(frozen=True)
class Table:
    """A table with the footnotes of its cells; without rows it is not shown.

    Attributes:
        head: names of the columns; one that starts with * holds numbers, one that is empty in all rows is left out.
        rows: their cells.
        name: that footnotes are called by; no other table on the page has it.
        titled: whether the first two, a verdict and what it is about, speak for themselves without a name before them.
    """

    head: Sequence[str | Cell]
    rows: Sequence[Sequence[str | Cell]]
    name: str = ""
    titled: bool = True

    @cached_property
    def lines(self) -> list[list[Cell]]:
        """The names of the columns and then the rows, without empty columns."""
        filled = [any(_cell(row[column]).text for row in self.rows) for column in range(len(self.head))]
        return [[_cell(cell) for cell, kept in zip(line, filled) if kept] for line in (self.head, *self.rows)]

    @cached_property
    def notes(self) -> dict[str, Cell]:
        """The footnotes in the order of their numbers, each with the cell that it is first marked in."""
        found: dict[str, Cell] = {}
        head, *rows = self.lines
        for cell in chain(*rows, head):
            for remark in filter(None, cell.remarks):
                found.setdefault(remark, cell)
        return found

    def number(self, note: str) -> int:
        """The number of a footnote."""
        return list(self.notes).index(note) + 1


def section(title: str, template: str, **values: object) -> Section:
    """A part of a page by its template; see `render`."""
    return Section(title, render(template, **values))


def _cell(content: str | Cell) -> Cell:
    return Cell(content) if isinstance(content, str) else content


def badge(verdict: str, words: str = "") -> Cell:
    """A verdict in its colour, in other words where some are given."""
    return Cell(words or verdict, verdict)


def number(value: float | None, form: str) -> str:
    """A number in a format; empty for None."""
    return "" if value is None else format(value, form)


def share(value: float | None) -> str:
    """A share in percent, never rounded up to all; empty for None."""
    if value is None:
        return ""
    shown = f"{value:.2%}"
    return "99.99%" if shown == "100.00%" and value < 1 else shown


def size(count: int) -> str:
    """Bytes for people."""
    return f"{count / 1e6:.1f} MB" if count >= 1e5 else f"{count / 1e3:.1f} kB"


MOST = 1e12  # what is more is drawn as this; its number stands beside it


@dataclass(frozen=True)
class Bar:
    """A row of a chart.

    Attributes:
        label: what it is; plain text, as all that follow.
        value: how long the bar is, in the units of the chart; infinite: as long as the chart is wide, NaN: no bar.
        shown: the number as a reader sees it, or what there is in its place.
        kind: "keras", "fp32", "fp16" or "int8", which gives the colour; the label says it too.
        mark: where a line crosses the row, in the same units; None: nowhere.
        more: what the mark stands at, in words, or another remark; small.
    """

    label: str
    value: float
    shown: str
    kind: str
    mark: float | None = None
    more: str = ""


@dataclass(frozen=True)
class Chart:
    """A chart; without bars it is not shown.

    Attributes:
        title: what the bars are, with the unit; plain text.
        bars: from the top.
        mark: what a mark is, for the legend; plain text.
        reach: how far marks may stretch the scale, as a multiple of the longest bar. What lies beyond is an arrow at
            the end of its row, and the legend says so: one late call must not squash all bars.
        kind: the classes of the figure.
    """

    title: str
    bars: Sequence[Bar]
    mark: str = ""
    reach: float = math.inf
    kind: str = "plot"

    @cached_property
    def ends(self) -> tuple[float, float]:
        """The numbers at the left and the right end of the scale."""
        values = [drawn(bar.value) for bar in self.bars if math.isfinite(bar.value)]
        longest = max(map(abs, values), default=0.0)
        limit = self.reach * longest if longest else math.inf
        high = max([0.0, *values, *(min(mark, limit) for mark in self._marks)]) or 1.0
        return min([0.0, *values, *self._marks]), high

    @property
    def _marks(self) -> list[float]:
        return [drawn(bar.mark) for bar in self.bars if bar.mark is not None]

    @property
    def legend(self) -> list[tuple[str, str]]:
        """What the signs on the bars mean: the kind of each, and the words."""
        marks = [("mark", self.mark)] if self._marks and self.mark else []
        beyond = any(map(self.is_beyond, self._marks))
        return [*marks, ("beyond", "it lies beyond the scale")] if beyond else marks

    def is_beyond(self, mark: float) -> bool:
        """Whether a mark lies beyond the scale."""
        return drawn(mark) > self.ends[1]

    def place(self, value: float) -> float:
        """Where a number stands, in percent of the width; at an end where it lies beyond."""
        low, high = self.ends
        return 100 * (max(low, min(drawn(value), high)) - low) / (high - low)

    def span(self, bar: Bar) -> tuple[float, float] | None:
        """Where a bar begins and how wide it is, in percent; None where there is none."""
        if math.isnan(bar.value):
            return None
        start, end = sorted((self.place(0.0), self.place(bar.value)))
        return start, end - start


def drawn(value: float) -> float:
    """A number as long as a chart can hold."""
    return max(-MOST, min(value, MOST))
