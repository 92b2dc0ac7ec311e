"""The HTML of a page: templates that escape every value, tables with footnotes, bar charts.

All text of a chart is text of the page, so that it fits paper and phone.
"""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from itertools import chain, compress
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from export.words import count, listed, percent, sentence

TEMPLATES = Path(__file__).parent / "templates"
# Control characters, characters that change the direction of the text after them, and lone surrogates.
_UNSEEN = re.compile(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def render(template: str, **values: object) -> Markup:
    """Render a template.

    Args:
        template: name of a file in ``templates/``.
        values: the template's variables; a missing one is an error.
    """
    return Markup(environment().get_template(template).render(values))


@cache
def environment(templates: Path = TEMPLATES) -> Environment:
    """Return the environment of the templates: values are escaped, missing ones are errors.

    Args:
        templates: their folder. Defaults to that of the report.
    """
    jinja = Environment(
        loader=FileSystemLoader(templates),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_visible,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    jinja.filters |= {"anchor": anchor, "count": count, "cut": cut, "listed": listed, "sentence": sentence}
    return jinja


def _visible(value: object) -> object:
    """A value with invisible characters as escapes; HTML stays as it is."""
    if isinstance(value, Markup):
        return value
    return _UNSEEN.sub(lambda letter: letter[0].encode("unicode_escape").decode(), str(value))


def cut(value: str, most: int) -> str:
    """Shorten a text to at most so many characters, with an ellipsis for the rest."""
    return value if len(value) <= most else value[: most - 1] + "…"


def anchor(words: str) -> str:
    """Return the ID that links to a title, or to a term, refer to."""
    return re.sub(r"[^a-z0-9]+", "-", words.lower())


@dataclass(frozen=True)
class Section:
    """A part of a page with a title, which the table of contents links to.

    Attributes:
        title: plain text.
        html: the content below the title.
        terms: words of `pipeline.reporting.glossary` that it uses, linked beside the title.
    """

    title: str
    html: Markup
    terms: Sequence[str] = ()

    @property
    def anchor(self) -> str:
        """The ID that links refer to."""
        return anchor(self.title)


@dataclass(frozen=True)
class Cell:
    """A cell of a table; plain text.

    Attributes:
        text: the content.
        verdict: shown as a badge in this verdict's colour; "": no badge.
        remarks: footnotes, as sentences; empty ones do not count.
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
        head: names of the columns; a name with a leading * is of a column of numbers. A column that is empty in all
            rows is left out.
        rows: the cells.
        name: prefix of the footnotes' IDs, unique on the page.
        titled: whether a narrow screen shows the first two columns, a verdict and its subject, without their names.
    """

    head: Sequence[str | Cell]
    rows: Sequence[Sequence[str | Cell]]
    name: str = ""
    titled: bool = True

    @cached_property
    def lines(self) -> list[list[Cell]]:
        """The names of the columns and then the rows, without empty columns."""
        filled = [any(_cell(row[column]).text for row in self.rows) for column in range(len(self.head))]
        return [[_cell(cell) for cell in compress(line, filled)] for line in (self.head, *self.rows)]

    @cached_property
    def notes(self) -> dict[str, Cell]:
        """The footnotes in the order of their numbers, each with the first cell that refers to it."""
        cells: dict[str, Cell] = {}
        head, *rows = self.lines
        for cell in chain(*rows, head):
            for remark in filter(None, cell.remarks):
                cells.setdefault(remark, cell)
        return cells

    def number(self, note: str) -> int:
        """Return the number of a footnote."""
        return list(self.notes).index(note) + 1


def section(title: str, template: str, terms: Sequence[str] = (), **values: object) -> Section:
    """Make a section from its template; see `render`."""
    return Section(title, render(template, **values), terms)


def _cell(content: str | Cell) -> Cell:
    return Cell(content) if isinstance(content, str) else content


def badge(verdict: str, words: str = "") -> Cell:
    """Make a cell with a verdict as a badge, with other words if they are passed."""
    return Cell(words or verdict, verdict)


def number(value: float | None, form: str) -> str:
    """Format a number; "" for None."""
    return "" if value is None else format(value, form)


def share(value: float | None) -> str:
    """Format a fraction in percent, never rounded up to 100 %; "" for None."""
    return "" if value is None else percent(value)


def size(count: int) -> str:
    """Format a number of bytes in kB or MB."""
    return f"{count / 1e6:.1f} MB" if count >= 1e5 else f"{count / 1e3:.1f} kB"


LARGEST_DRAWN = 1e12  # larger values are drawn as this; the number beside the bar is exact


@dataclass(frozen=True)
class Bar:
    """A row of a chart.

    Attributes:
        label: what the row shows; plain text, as all others.
        value: length of the bar, in the units of the chart; infinite: the full width, NaN: no bar.
        shown: the number as text, or a text in its place.
        kind: "keras", "fp32", "fp16" or "int8", which sets the colour; the label has it too.
        mark: position of a line across the row, in the same units; None: no line.
        more: the value of the mark, or another remark, in small print.
    """

    label: str
    value: float
    shown: str
    kind: str
    mark: float | None = None
    more: str = ""


@dataclass(frozen=True)
class Chart:
    """A bar chart; without bars it is not shown.

    Attributes:
        title: quantity and unit; plain text.
        bars: from the top.
        mark: meaning of the marks, for the legend; plain text.
        reach: how far marks may stretch the scale, as a multiple of the longest bar, so that one late call does not
            shorten all bars. A mark beyond is an arrow at the end of its row, which the legend explains.
        kind: CSS classes of the figure.
    """

    title: str
    bars: Sequence[Bar]
    mark: str = ""
    reach: float = math.inf
    kind: str = "plot"

    @cached_property
    def ends(self) -> tuple[float, float]:
        """The numbers at the left and the right end of the scale."""
        values = [limited(bar.value) for bar in self.bars if math.isfinite(bar.value)]
        longest = max(map(abs, values), default=0.0)
        limit = self.reach * longest if longest else math.inf
        high = max([0.0, *values, *(min(mark, limit) for mark in self._marks)]) or 1.0
        return min([0.0, *values, *self._marks]), high

    @property
    def _marks(self) -> list[float]:
        return [limited(bar.mark) for bar in self.bars if bar.mark is not None]

    @property
    def legend(self) -> list[tuple[str, str]]:
        """The signs on the bars, as (CSS class, meaning)."""
        marks = [("mark", self.mark)] if self._marks and self.mark else []
        beyond = any(map(self.is_beyond, self._marks))
        return [*marks, ("beyond", "it lies beyond the scale")] if beyond else marks

    def is_beyond(self, mark: float) -> bool:
        """Return whether a mark is beyond the scale."""
        return limited(mark) > self.ends[1]

    def place(self, value: float) -> float:
        """Return the position of a number in percent of the width; an end of the scale where it is beyond."""
        low, high = self.ends
        return 100 * (max(low, min(limited(value), high)) - low) / (high - low)

    def span(self, bar: Bar) -> tuple[float, float] | None:
        """Return start and width of a bar in percent of the chart's width; None where there is no bar."""
        if math.isnan(bar.value):
            return None
        start, end = sorted((self.place(0.0), self.place(bar.value)))
        return start, end - start


def limited(value: float) -> float:
    """Limit a number to what a chart can draw."""
    return max(-LARGEST_DRAWN, min(value, LARGEST_DRAWN))
