"""The few HTML elements that a report is made of. Cells and texts are HTML: `text` what comes from outside."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

FOLDED = 3  # columns; from so many a narrow screen shows each row as a block of label and value
TURNING = ("LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI")  # Unicode's names of them
WIDE = 6  # columns; with more that happens on screens of middle width too


def text(value: object, most: int | None = None) -> str:
    """What comes from outside, as HTML that shows it and does nothing else.

    Args:
        value: its text is shown; control characters and lone surrogates, which no page can hold, as escapes, and so
            are characters that turn the direction of what follows them.
        most: characters after which it is cut off, with an ellipsis.
    """
    whole = str(value)
    cut = whole if most is None or len(whole) <= most else whole[: most - 1] + "…"
    return escape("".join(_held(letter) for letter in cut))


def _held(letter: str) -> str:
    turns = unicodedata.bidirectional(letter) in TURNING
    if turns or (unicodedata.category(letter) in ("Cc", "Cs") and letter != "\n"):
        return letter.encode("unicode_escape").decode()
    return letter


@dataclass(frozen=True)
class Section:
    """A titled part of a page, which the contents link to.

    Attributes:
        title: plain text.
        words: a sentence or two below it, HTML.
        body: what follows, HTML.
    """

    title: str
    words: str
    body: str = ""

    @property
    def anchor(self) -> str:
        """The name that links use."""
        return re.sub(r"[^a-z0-9]+", "-", self.title.lower())

    @property
    def html(self) -> str:
        """The section as HTML."""
        return f'<section id="{self.anchor}"><h2>{text(self.title)}</h2><p>{self.words}</p>{self.body}</section>'


def contents(sections: Sequence[Section]) -> str:
    """Links to the sections of a page."""
    links = "".join(f'<li><a href="#{one.anchor}">{text(one.title)}</a></li>' for one in sections)
    return f'<nav class="contents" aria-label="Contents"><ul>{links}</ul></nav>'


def table(head: Sequence[str], rows: Sequence[Sequence[str]], titled: bool = True) -> str:
    """A table; a column whose name starts with * holds numbers, and one that is empty in all rows is left out.

    On a narrow screen a row becomes a block of lines, each with the column's name before the value, so that nothing is
    out of sight. The roles keep it a table for who hears the page, whatever the style makes of it.

    Args:
        head: names of the columns, HTML.
        rows: their cells, HTML; an empty one takes no line.
        titled: whether the first two, a verdict and what it is about, speak for themselves without a name before them.
    """
    kept = [column for column in range(len(head)) if any(row[column] for row in rows)]
    head, rows = [head[column] for column in kept], [[row[column] for column in kept] for row in rows]
    classes = [' class="n"' if name.startswith("*") else "" for name in head]
    names = [name.lstrip("*") for name in head]
    labels = [re.sub(r'<span class="marks">.*', "", name) for name in names]
    top = "".join(f'<th{kind} scope="col" role="columnheader">{name}</th>' for kind, name in zip(classes, names))
    body = "".join(
        '<tr role="row">'
        + "".join(
            f'<td{kind} role="cell" data-label="{label}">{cell}</td>' for kind, label, cell in zip(classes, labels, row)
        )
        + "</tr>"
        for row in rows
    )
    fold = "" if len(head) < FOLDED else "fold" if len(head) <= WIDE else "fold wide"
    fold += " titled" if titled else ""
    return (
        f'<div class="scroll"><table class="{fold.strip()}" role="table">'
        f'<thead role="rowgroup"><tr role="row">{top}</tr></thead>'
        f'<tbody role="rowgroup">{body}</tbody></table></div>'
    )


class Footnotes:
    """Remarks on cells of a table: a small number in the cell, and below the table what it stands for, each once."""

    def __init__(self, name: str) -> None:
        """Take the table's name, which no other on the page has."""
        self._name = name
        self._numbers: dict[str, int] = {}

    def mark(self, *remarks: str) -> str:
        """The numbers of some remarks, as links to them; plain text, empty ones are none."""
        links = "".join(self._link(remark) for remark in dict.fromkeys(remarks) if remark)
        return f'<span class="marks">{links}</span>' if links else ""

    def _link(self, remark: str) -> str:
        first = remark not in self._numbers
        number = self._numbers.setdefault(remark, len(self._numbers) + 1)
        name = f"{self._name}-note-{number}"
        here = f' id="{name}-from"' if first else ""
        return f'<sup{here}><a href="#{name}" aria-label="note {number}">{number}</a></sup>'

    @property
    def html(self) -> str:
        """The list below the table; empty where nothing was remarked."""
        if not self._numbers:
            return ""
        items = []
        for remark, number in self._numbers.items():
            name = f"{self._name}-note-{number}"
            back = f'<a href="#{name}-from" aria-label="back to where note {number} stands">↑</a>'
            items.append(f'<li id="{name}">{text(remark)} {back}</li>')
        return f'<ol class="footnotes">{"".join(items)}</ol>'


def details(summary: str, body: str, kind: str = "") -> str:
    """What opens on demand.

    Args:
        summary: the line that opens it, HTML.
        body: what it shows, HTML.
        kind: "long" for what paper leaves out; else it is printed.
    """
    return f'<details class="{kind}"><summary>{summary}</summary>{body}</details>'


def notes(lines: Sequence[str]) -> str:
    """Remarks on a whole section, each once; plain text."""
    return "".join(f'<p class="note">{text(line)}</p>' for line in dict.fromkeys(lines))


def alerts(lines: Sequence[str]) -> str:
    """What a reader must see before anything else; plain text."""
    return "".join(f'<p class="alert" role="alert">{text(line)}</p>' for line in dict.fromkeys(lines))


def command(line: str) -> str:
    """A command line to paste; plain text."""
    return f"<code>{text(line)}</code>"


def css_class(verdict: str) -> str:
    """The class of a verdict's colour."""
    return verdict.replace(" ", "")


def badge(verdict: str, words: str) -> str:
    """A verdict in its colour; words are plain text."""
    return f'<span class="badge {css_class(verdict)}">{text(words)}</span>'


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
