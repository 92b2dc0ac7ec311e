"""The few HTML elements that a report is made of. Cells and texts are HTML: escape what comes from outside."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape


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
    return f'<div class="scroll"><table><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table></div>'


def badge(verdict: str, text: str) -> str:
    """A verdict in its colour."""
    return f'<span class="badge {verdict.replace(" ", "")}">{escape(text)}</span>'


def number(value: float | None, form: str) -> str:
    """A number in a format; empty for None."""
    return "" if value is None else format(value, form)


def size(count: int) -> str:
    """Bytes for people."""
    return f"{count / 1e6:.1f} MB" if count >= 1e5 else f"{count / 1e3:.1f} kB"
