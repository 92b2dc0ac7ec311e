"""Reads a report as a person does: cards, tables, notes and pictures of a page, and the bars of a plot."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from dataclasses import dataclass, field
from html.parser import HTMLParser

VOID = {"meta", "img", "br", "link", "input"}
SVG = "{http://www.w3.org/2000/svg}"


@dataclass
class Node:
    """An element."""

    tag: str
    attrs: dict[str, str]
    children: list[Node | str] = field(default_factory=list)

    def walk(self) -> Iterator[Node]:
        yield self
        for child in self.children:
            if isinstance(child, Node):
                yield from child.walk()

    def all(self, tag: str, kind: str = "") -> list[Node]:
        return [n for n in self.walk() if n.tag == tag and (not kind or kind in n.attrs.get("class", "").split())]

    @property
    def text(self) -> str:
        words = [c if isinstance(c, str) else c.text for c in self.children if isinstance(c, str) or c.tag != "style"]
        return re.sub(r"\s+", " ", " ".join(words)).strip()

    @property
    def kinds(self) -> set[str]:
        return set(self.attrs.get("class", "").split())


class Page(HTMLParser):
    """A parsed page; every element must be closed in its turn."""

    def __init__(self, source: str) -> None:
        super().__init__(convert_charrefs=True)
        self.root = Node("", {})
        self._open = [self.root]
        self.feed(source)
        self.close()
        assert self._open == [self.root], [node.tag for node in self._open]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        node = Node(tag, {name: value or "" for name, value in attrs})
        self._open[-1].children.append(node)
        if tag not in VOID:
            self._open.append(node)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._open[-1].children.append(Node(tag, {name: value or "" for name, value in attrs}))

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop().tag == tag, tag

    def handle_data(self, data: str) -> None:
        self._open[-1].children.append(data)

    @property
    def badge(self) -> Node:
        (badge,) = self.root.all("header")[0].all("span", "badge")
        return badge

    @property
    def alerts(self) -> list[str]:
        return [node.text for node in self.root.all("p", "alert")]

    def card(self, words: str) -> tuple[str, str, set[str]]:
        """Value, words and classes of the one card whose words hold these."""
        found = [c for c in self.root.all("div", "card") if words in c.all("span")[0].text]
        assert len(found) == 1, [c.text for c in self.root.all("div", "card")]
        return found[0].all("b")[0].text, found[0].all("span")[0].text, found[0].kinds - {"card"}

    def section(self, title: str) -> Node:
        (found,) = [node for node in self.root.all("section") if node.all("h2")[0].text == title]
        return found

    def rows(self, title: str, table: int = 0) -> list[dict[str, str]]:
        """A table of a section, cells by the name of their column."""
        node = self.section(title).all("table")[table]
        head = [cell.text for cell in node.all("th")]
        return [dict(zip(head, [c.text for c in r.all("td")], strict=True)) for r in node.all("tr") if r.all("td")]


@dataclass(frozen=True)
class Bar:
    """A row of a plot: all lengths in the units of its axis."""

    label: str
    length: float
    text: str
    color: str
    marks: tuple[float, ...]  # the thresholds
    reach: float | None  # where the thin line ends
    inside: bool  # whether everything that is drawn lies within the axes


def read_bars(svg: str) -> list[list[Bar]]:
    """The rows of each pair of axes, from the top."""
    tree = ElementTree.fromstring(svg)
    axes = [g for g in tree.iter(f"{SVG}g") if re.fullmatch(r"axes_\d+", g.get("id", ""))]
    return [_rows(one) for one in axes]


def _rows(axes: ElementTree.Element) -> list[Bar]:
    groups = {g.get("id", ""): g for g in axes.iter(f"{SVG}g")}
    ticks = []
    for name, group in groups.items():
        if name.startswith("xtick_"):
            label = next(group.iter(f"{SVG}text"))
            ticks.append((float(label.get("x", "")), float((label.text or "").replace("\u2212", "-").replace(",", ""))))
    (x0, v0), (x1, v1) = ticks[0], ticks[-1]

    def value(x: float) -> float:
        return v0 + (x - x0) * (v1 - v0) / (x1 - x0)

    lines, bars, frame = [], [], (0.0, 0.0)
    for name, group in groups.items():
        path = group.find(f"{SVG}path")
        if path is None or not name.startswith(("patch_", "line2d_")):
            continue
        points = [(float(x), float(y)) for x, y in re.findall(r"[ML] (\S+) (\S+)", path.get("d", ""))]
        style = path.get("style", "")
        if name.startswith("patch_") and (fill := re.search(r"fill: (#\w{6})", style)):
            bars.append((points, fill[1]))
        elif name.startswith("line2d_") and path.get("clip-path") and (stroke := re.search(r"stroke: (#\w{6})", style)):
            lines.append((points, stroke[1]))
        elif name.startswith("patch_") and not frame[1]:
            frame = min(x for x, _ in points), max(x for x, _ in points)
    texts = [t for t in axes.iter(f"{SVG}text") if "text-anchor: start" in t.get("style", "")]
    rows: list[Bar] = []
    above = 0.0
    for name, group in groups.items():
        if not name.startswith("ytick_"):
            continue
        y = float(next(group.iter(f"{SVG}use")).get("y", ""))
        assert y > above, "the rows do not begin at the top"
        above = y
        (bar,) = [b for b in bars if abs(sum(p[1] for p in b[0]) / len(b[0]) - y) < 6]
        here = [line for line in lines if abs((line[0][0][1] + line[0][-1][1]) / 2 - y) < 3 and len(line[0]) == 2]
        marks = [line for line in here if line[0][0][0] == line[0][-1][0] and line[1] == "#c0392b"]
        reach = [line for line in here if line[0][0][1] == line[0][-1][1] and line[1] == "#1d2733"]
        words = [t.text or "" for t in texts if abs(float(t.get("y", "")) - y) < 6]
        xs = [x for x, _ in bar[0]]
        drawn = xs + [p[0] for line in here for p in line[0] if line[1] != "#e3e8ee"]
        length = value(max(xs)) if value(max(xs)) > 1e-6 else value(min(xs))
        label = "".join(next(group.iter(f"{SVG}text")).itertext())
        rows.append(
            Bar(
                re.sub(r"\s+", " ", label),
                length,
                words[0].strip() if words else "",
                bar[1],
                tuple(value(line[0][0][0]) for line in marks),
                value(reach[0][0][-1][0]) if reach else None,
                all(frame[0] - 0.1 <= x <= frame[1] + 0.1 for x in drawn),
            )
        )
    return rows
