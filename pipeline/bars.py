"""Bar charts as HTML: a row is a label, its number and its bar; all text is the page's, so it fits paper and phone."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from pipeline.html import text

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


def bar_chart(title: str, rows: Sequence[Bar], mark: str = "", reach: float = math.inf, kind: str = "plot") -> str:
    """A chart as HTML; empty without rows.

    Args:
        title: what the bars are, with the unit; plain text.
        rows: from the top.
        mark: what a mark is, for the legend; plain text.
        reach: how far marks may stretch the scale, as a multiple of the longest bar. What lies beyond is an arrow at
            the end of its row, and the legend says so: one late call must not squash all bars.
        kind: the classes of the figure.
    """
    if not rows:
        return ""
    values = [_drawn(row.value) for row in rows if math.isfinite(row.value)]
    marks = [_drawn(row.mark) for row in rows if row.mark is not None]
    longest = max((abs(value) for value in values), default=0.0)
    limit = reach * longest if longest else math.inf
    low = min([0.0, *values, *marks])
    high = max([0.0, *values, *(min(place, limit) for place in marks)]) or 1.0
    beyond = any(place > high for place in marks)
    items = "".join(_row(row, low, high) for row in rows)
    legend = f'<span><span class="key mark"></span>{text(mark)}</span>' if marks and mark else ""
    legend += '<span><span class="key beyond"></span>it lies beyond the scale</span>' if beyond else ""
    legend = f'<p class="legend">{legend}</p>' if legend else ""
    return (
        f'<figure class="{kind}"><figcaption>{text(title)}</figcaption>{legend}<ul class="bars">{items}</ul></figure>'
    )


def _row(row: Bar, low: float, high: float) -> str:
    def place(value: float) -> float:
        return 100 * (value - low) / (high - low)

    drawn = f'<span class="zero" style="left:{place(0.0):.2f}%"></span>'
    if not math.isnan(row.value):
        ends = sorted((place(0.0), place(max(low, min(_drawn(row.value), high)))))
        drawn += f'<span class="bar {row.kind}" style="left:{ends[0]:.2f}%;width:{ends[1] - ends[0]:.2f}%"></span>'
    if row.mark is not None:
        mark = _drawn(row.mark)
        where = f'class="mark" style="left:{place(mark):.2f}%"' if mark <= high else 'class="beyond"'
        drawn += f"<span {where}></span>"
    more = f" <small>{text(row.more)}</small>" if row.more else ""
    return (
        f'<li><span class="label" dir="auto">{text(row.label)}</span>'
        f'<span class="value"><b>{text(row.shown)}</b>{more}</span>'
        f'<span class="track" aria-hidden="true">{drawn}</span></li>'
    )


def _drawn(value: float) -> float:
    return max(-MOST, min(value, MOST))
