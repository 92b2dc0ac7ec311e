"""Bar charts: a row is a label, its number and its bar; all text is the page's, so it fits paper and phone."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

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
