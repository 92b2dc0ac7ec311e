"""The few HTML elements that a report is made of. Cells and texts are HTML: `text` what comes from outside."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from html import escape

WIDE = 6  # columns; with more a table keeps a width in which it can be read


def text(value: object, most: int | None = None) -> str:
    """What comes from outside, as HTML that shows it and does nothing else.

    Args:
        value: its text is shown; control characters and lone surrogates, which no page can hold, as escapes.
        most: characters after which it is cut off, with an ellipsis.
    """
    whole = str(value)
    cut = whole if most is None or len(whole) <= most else whole[: most - 1] + "…"
    return escape("".join(_held(letter) for letter in cut))


def _held(letter: str) -> str:
    if unicodedata.category(letter) in ("Cc", "Cs") and letter != "\n":
        return letter.encode("unicode_escape").decode()
    return letter


def section(title: str, text: str, body: str) -> str:
    """A titled part of a page."""
    return f"<section><h2>{title}</h2><p>{text}</p>{body}</section>"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table that scrolls where the page is narrow; a column whose name starts with * holds numbers."""
    classes = [' class="n"' if name.startswith("*") else "" for name in head]
    top = "".join(f"<th{cls}>{name.lstrip('*')}</th>" for cls, name in zip(classes, head))
    body = "".join(
        "<tr>" + "".join(f"<td{cls}>{cell}</td>" for cls, cell in zip(classes, row)) + "</tr>" for row in rows
    )
    kind = ' class="wide"' if len(head) > WIDE else ""
    return f'<div class="scroll"><table{kind}><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table></div>'


def chart(svg: str) -> str:
    """A plot that scrolls where the page is too narrow to read it."""
    return f'<div class="scroll chart">{svg}</div>' if svg else ""


def notes(lines: Sequence[str]) -> str:
    """Remarks below a table, each once; plain text."""
    return "".join(f'<p class="note">{text(line)}</p>' for line in dict.fromkeys(lines))


def alerts(lines: Sequence[str]) -> str:
    """What a reader must see before anything else; plain text."""
    return "".join(f'<p class="alert" role="alert">{text(line)}</p>' for line in dict.fromkeys(lines))


def css_class(verdict: str) -> str:
    """The class of a verdict's colour."""
    return verdict.replace(" ", "")


def badge(verdict: str, words: str) -> str:
    """A verdict in its colour."""
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
