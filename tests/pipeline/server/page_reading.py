"""What the page shows in a browser: its answers as a person reads them, and whether all of it can be read."""

from __future__ import annotations

from typing import Any
from urllib.parse import urlsplit

from tests.pipeline.server.browser import Tab

ANSWERS = "document.querySelectorAll('.answer')"
READ = """[...document.querySelectorAll('.answer')].map((item) => {
  const visible = (selector) => [...item.querySelectorAll(selector)].filter((e) => e.checkVisibility());
  const shown = (selector) => visible(selector).map((e) => e.innerText);
  const first = (selector) => shown(selector)[0] ?? null;
  const track = (line) => line.querySelector('.track').getBoundingClientRect().width;
  const bar = (line) => line.querySelector('.bar').getBoundingClientRect().width;
  return {
    name: first('.name'), pixels: first('.pixels'), best: first('.best-class'), share: first('.best-share'),
    classes: shown('.bars .label'), values: shown('.bars .value'),
    bars: [...item.querySelectorAll('.bars li')].map((line) => bar(line) / track(line)),
    by: first('.by .badge'), file: first('.answering'), alerts: shown('.alert'), error: first('.error'),
    times: Object.fromEntries(shown('dt').map((name, i) => [name, shown('dd')[i]])), again: shown('.again').length,
    preview: visible('img')[0]?.naturalWidth ?? null, placeholder: shown('.placeholder').length,
  };
})"""
# Texts that leave a window of a width, or that something cuts.
CLIPPED = """((width) => [...document.querySelectorAll('body *')].flatMap((element) => {
  const texts = [...element.childNodes].filter((node) => node.nodeType === Node.TEXT_NODE && node.data.trim());
  if (!texts.length || !element.checkVisibility() || element.closest('.unseen')) return [];
  const range = document.createRange();
  const rects = texts.flatMap((node) => (range.selectNodeContents(node), [...range.getClientRects()]));
  const outside = rects.some((rect) => rect.left < -0.5 || rect.right > width + 0.5);
  const cut = (e) => e && (getComputedStyle(e).overflowX !== 'visible'
    && (e.scrollWidth > e.clientWidth + 1 || e.scrollHeight > e.clientHeight + 1) || cut(e.parentElement));
  return outside || cut(element.closest('main, header, footer') && element) ? [element.outerHTML.slice(0, 200)] : [];
}))"""
# Texts whose contrast with what lies behind them is below 4.5, as WCAG wants it.
FAINT = """[...document.querySelectorAll('main *, footer')].flatMap((element) => {
  if (![...element.childNodes].some((node) => node.nodeType === Node.TEXT_NODE && node.data.trim())) return [];
  if (!element.checkVisibility() || element.closest('.unseen')) return [];
  const light = (colour) => colour.match(/[\\d.]+/g).slice(0, 3).map((part) => part / 255)
    .map((part) => part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4)
    .reduce((sum, part, i) => sum + part * [0.2126, 0.7152, 0.0722][i], 0);
  const behind = (e) => getComputedStyle(e).backgroundColor.endsWith(', 0)') ? behind(e.parentElement) : e;
  const [a, b] = [getComputedStyle(element).color, getComputedStyle(behind(element)).backgroundColor].map(light);
  const contrast = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
  return contrast < 4.5 ? [`${contrast.toFixed(2)} ${element.outerHTML.slice(0, 120)}`] : [];
})"""


def read(tab: Tab, number: int = 1) -> list[dict[str, Any]]:
    """What the answers show, from the top, as soon as there are so many and none is awaited."""
    tab.until(f"{ANSWERS}.length === {number} && !document.querySelector('[aria-busy=true]')")
    tab.until("[...document.images].every((image) => image.complete)")
    return tab.value(READ)


def check_layout(tab: Tab) -> None:
    """All of the page can be read without scrolling sideways; a phone's `innerWidth` grows with what is too wide."""
    assert tab.value("document.documentElement.scrollWidth") <= tab.width
    assert tab.value(f"{CLIPPED}({tab.width})") == []
    assert tab.value(FAINT) == []


def check_nothing_ran(tab: Tab, url: str) -> None:
    """No script failed, none was refused, and only the server was asked."""
    assert tab.events("Runtime.exceptionThrown") == []
    assert [entry for entry in tab.events("Log.entryAdded") if entry["entry"]["source"] != "network"] == []
    asked = {urlsplit(event["request"]["url"]) for event in tab.events("Network.requestWillBeSent")}
    assert {part.netloc for part in asked if part.scheme not in ("blob", "data")} == {urlsplit(url).netloc}
