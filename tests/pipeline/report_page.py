"""Reads a report as a person does: cards, tables with their footnotes, charts and pictures of a page."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from html.parser import HTMLParser

from pipeline.reporting.html import environment

VOID = {"meta", "img", "br", "link", "input"}


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
        return [n for n in self.walk() if n.tag == tag and (not kind or kind in n.kinds)]

    @property
    def text(self) -> str:
        words = [c if isinstance(c, str) else c.text for c in self.children if isinstance(c, str) or c.tag != "style"]
        return re.sub(r"\s+", " ", " ".join(words)).strip()

    @property
    def unmarked(self) -> str:
        """The text without the numbers of footnotes."""
        kept = [c for c in self.children if isinstance(c, str) or "marks" not in c.kinds]
        return Node(self.tag, {}, kept).text

    @property
    def kinds(self) -> set[str]:
        return set(self.attrs.get("class", "").split())


@dataclass(frozen=True)
class Bar:
    """A row of a chart; places in percent of its width."""

    label: str
    shown: str
    more: str
    kind: str
    start: float | None  # None: no bar
    end: float | None
    mark: float | None
    beyond: bool


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
    def certainty(self) -> str:
        return " ".join(node.text for node in self.root.all("header")[0].all("p", "certainty"))

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
        """A table of a section, cells by the name of their column, without the numbers of footnotes."""
        node = self.section(title).all("table")[table]
        head = [cell.unmarked for cell in node.all("th")]
        return [dict(zip(head, [c.unmarked for c in r.all("td")], strict=True)) for r in node.all("tr") if r.all("td")]

    def remarks(self, title: str, row: int, table: int = 0) -> list[str]:
        """The footnotes that a row of a table refers to, in the order of their numbers there."""
        rows = [node for node in self.section(title).all("table")[table].all("tr") if node.all("td")]
        return [self.note(link.attrs["href"]) for link in rows[row].all("a")]

    def note(self, link: str) -> str:
        """The text of the one element that a link within the page leads to, without its arrow back."""
        (found,) = [node for node in self.root.walk() if f"#{node.attrs.get('id')}" == link]
        return found.text.removesuffix(" ↑")

    def chart(self, words: str) -> list[Bar]:
        """The rows of the one chart whose title holds these words."""
        (found,) = [node for node in self.root.all("figure", "plot") if words in node.all("figcaption")[0].text]
        return [_bar(item) for item in found.all("li")]

    def legend(self, words: str) -> str:
        """The legend of that chart; empty where it has none."""
        (found,) = [node for node in self.root.all("figure", "plot") if words in node.all("figcaption")[0].text]
        return " ".join(node.text for node in found.all("p", "legend"))


def element(macro: str, *values: object) -> Page:
    """Some of what pages are made of, each as a macro of `elements.html.j2` makes it."""
    source = (
        f'{{% from "elements.html.j2" import {macro} %}}{{% for one in values %}}{{{{ {macro}(one) }}}}{{% endfor %}}'
    )
    return Page(environment().from_string(source).render(values=values))


def _bar(item: Node) -> Bar:
    def percent(node: Node, name: str) -> float:
        return float(re.search(rf"(?:^|;){name}:(-?[\d.]+)%", node.attrs["style"])[1])  # type: ignore[index]

    bars, marks = item.all("span", "bar"), item.all("span", "mark")
    (value,) = item.all("span", "value")
    start = percent(bars[0], "left") if bars else None
    return Bar(
        label=item.all("span", "label")[0].text,
        shown=value.all("b")[0].text,
        more=" ".join(node.text for node in value.all("small")),
        kind=" ".join(bars[0].kinds - {"bar"}) if bars else "",
        start=start,
        end=None if start is None else start + percent(bars[0], "width"),
        mark=percent(marks[0], "left") if marks else None,
        beyond=bool(item.all("span", "beyond")),
    )
