"""The page in headless Chromium: a picture goes in, the answer stands there, whatever the server says."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from PIL import Image

from pipeline.inference.deployment import Deployment
from tests.pipeline.inference.deployments import make_deployment, make_photos
from tests.pipeline.server.browser import PROGRAM, Browser, Tab, browser
from tests.pipeline.server.page_server import Reply, answered, page_server, refused

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(PROGRAM is None, reason="there is no Chromium: apt-get install chromium"),
]
DESKTOP, PHONE = 1280, 390
CLASSES = [("tabby cat", 0.8425), ("dog", 0.1), ("owl", 0.0574), ("emu", 0.00009), ("eel", 0.00001)]
ANSWERS = "document.querySelectorAll('.answer')"
READ = """[...document.querySelectorAll('.answer')].map((item) => {
  const shown = (selector) => [...item.querySelectorAll(selector)].filter((e) => e.checkVisibility()).map((e) => e.innerText);
  const track = (line) => line.querySelector('.track').getBoundingClientRect().width;
  const bar = (line) => line.querySelector('.bar').getBoundingClientRect().width;
  return {
    name: shown('.name')[0], pixels: shown('.pixels')[0], best: shown('.best-class')[0], share: shown('.best-share')[0],
    classes: shown('.bars .label'), values: shown('.bars .value'),
    bars: [...item.querySelectorAll('.bars li')].map((line) => bar(line) / track(line)),
    by: shown('.by .badge')[0], file: shown('.answering')[0], alerts: shown('.alert'), error: shown('.error')[0],
    times: Object.fromEntries(shown('dt').map((name, i) => [name, shown('dd')[i]])), again: shown('.again').length,
    preview: shown('img').length === 1 && item.querySelector('img').naturalWidth, placeholder: shown('.placeholder').length,
  };
})"""
# Texts that leave the window, or that something cuts.
CLIPPED = """[...document.querySelectorAll('body *')].flatMap((element) => {
  const texts = [...element.childNodes].filter((node) => node.nodeType === Node.TEXT_NODE && node.data.trim());
  if (!texts.length || !element.checkVisibility() || element.closest('.unseen')) return [];
  const range = document.createRange();
  const rects = texts.flatMap((node) => (range.selectNodeContents(node), [...range.getClientRects()]));
  const outside = rects.some((rect) => rect.left < -0.5 || rect.right > innerWidth + 0.5);
  const cut = (e) => e && (getComputedStyle(e).overflowX !== 'visible'
    && (e.scrollWidth > e.clientWidth + 1 || e.scrollHeight > e.clientHeight + 1) || cut(e.parentElement));
  return outside || cut(element.closest('main, header, footer') && element) ? [element.outerHTML.slice(0, 200)] : [];
})"""
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


@pytest.fixture(scope="module")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with browser(tmp_path_factory.mktemp("profile")) as running:
        yield running


@pytest.fixture(scope="module")
def deployment(tmp_path_factory: pytest.TempPathFactory) -> Deployment:
    made = make_deployment(tmp_path_factory.mktemp("deployment"))
    return replace(made, card=replace(made.card, classes=("tabby cat", "dog", "owl", "emu", "eel")))


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return make_photos(tmp_path_factory.mktemp("photos"), 30)


def always(reply: Reply) -> Callable[[bytes, int], Reply]:
    return lambda body, top_k: reply


def read(tab: Tab, number: int = 1) -> list[dict[str, Any]]:
    """What the answers show, from the top, as soon as there are so many and none is awaited."""
    tab.until(f"{ANSWERS}.length === {number} && !document.querySelector('[aria-busy=true]')")
    tab.until("[...document.images].every((image) => image.complete)")
    return tab.value(READ)


def check_layout(tab: Tab) -> None:
    assert tab.value("document.documentElement.scrollWidth") <= tab.value("innerWidth")
    assert tab.value(CLIPPED) == []
    assert tab.value(FAINT) == []


def check_nothing_ran(tab: Tab, url: str) -> None:
    """No script failed, none was refused, and only the server was asked."""
    assert tab.events("Runtime.exceptionThrown") == []
    assert [entry for entry in tab.events("Log.entryAdded") if entry["entry"]["source"] != "network"] == []
    asked = {urlsplit(event["request"]["url"]) for event in tab.events("Network.requestWillBeSent")}
    assert {part.netloc for part in asked if part.scheme not in ("blob", "data")} == {urlsplit(url).netloc}


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [DESKTOP, PHONE])
def test_a_chosen_picture_is_answered(
    chromium: Browser, deployment: Deployment, photos: list[Path], width: int, dark: bool
) -> None:
    received = []

    def answer(body: bytes, top_k: int) -> Reply:
        received.append((body, top_k))
        return answered(CLASSES, precision="int8", backend="tensorrt", file="build/rtx/int8.plan")

    with page_server(deployment, answer) as url, chromium.tab(url, width, 844, dark) as tab:
        assert tab.value("getComputedStyle(document.body).backgroundColor") == (
            "rgb(16, 21, 28)" if dark else "rgb(244, 246, 249)"
        )
        button = tab.value("document.querySelector('.choose').innerText")
        assert button == ("Choose or take a picture" if width == PHONE else "Choose pictures")
        check_layout(tab)
        tab.choose("#files", photos[:1])
        (shown,) = read(tab)
        assert received == [(photos[0].read_bytes(), 5)]
        assert (shown["name"], shown["pixels"], shown["preview"]) == ("000.png", "640 × 427 pixels", 24)
        assert (shown["best"], shown["share"]) == ("tabby cat", "84.25%")
        assert shown["classes"] == [name for name, _ in CLASSES]
        assert shown["values"] == ["84.25%", "10.00%", "5.74%", "0.01%", "<0.01%"]
        assert shown["bars"] == pytest.approx([share for _, share in CLASSES], abs=0.003)
        assert (shown["by"], shown["file"]) == ("INT8 on TensorRT, verdict: pass", "build/rtx/int8.plan")
        assert shown["alerts"] == [] and shown["error"] is None and not shown["placeholder"]
        assert shown["times"].pop("round trip").endswith((" ms", " s"))
        assert shown["times"] == {
            "decode": "1.2 ms",
            "wait in the queue": "0.4 ms",
            "compute, batch of 3": "3.1 ms",
            "total on the server": "1.23 s",
        }
        assert tab.value("document.getElementById('said').innerText.trim()") == "000.png: tabby cat, 84.25%"
        assert tab.value("document.querySelector('.shell code').innerText") == (
            f"curl --data-binary @photo.jpg {url}classify"
        )
        check_layout(tab)
        check_nothing_ran(tab, url)


def test_a_probability_below_one_is_never_shown_as_all(
    chromium: Browser, deployment: Deployment, photos: list[Path]
) -> None:
    reply = answered([("cat", 0.9999999), ("dog", 0.0)])
    with page_server(deployment, always(reply)) as url, chromium.tab(url) as tab:
        tab.choose("#files", photos[:1])
        assert read(tab)[0]["values"] == ["99.99%", "0.00%"]


@pytest.mark.parametrize("place", ["header", "footer"])
def test_a_picture_is_dropped_anywhere(
    chromium: Browser, deployment: Deployment, photos: list[Path], place: str
) -> None:
    with page_server(deployment, always(answered(CLASSES))) as url, chromium.tab(url) as tab:
        y = tab.value(f"document.querySelector('{place}').getBoundingClientRect().top + 5")
        tab.drop(photos[:2], 3, int(y))
        assert [shown["name"] for shown in read(tab, 2)] == ["001.png", "000.png"]
        assert tab.value("location.href") == url and not tab.value("document.querySelector('.dragging')")


def test_a_dropped_folder_is_no_picture(chromium: Browser, deployment: Deployment, photos: list[Path]) -> None:
    with page_server(deployment, always(answered(CLASSES))) as url, chromium.tab(url) as tab:
        tab.drop([photos[0].parent], 300, 300)
        (shown,) = read(tab)
        assert shown["error"].startswith("Expected a picture's file. Received:") and not shown["again"]


def test_a_picture_is_pasted(chromium: Browser, deployment: Deployment) -> None:
    received = []

    def answer(body: bytes, top_k: int) -> Reply:
        received.append(body)
        return answered(CLASSES)

    with page_server(deployment, answer) as url, chromium.tab(url) as tab:
        tab.value(
            "{ const clipboardData = new DataTransfer(); clipboardData.items.add(new File(['pixels'], 'image.png'));"
            "document.body.dispatchEvent(new ClipboardEvent('paste', { clipboardData, bubbles: true })); }"
        )
        assert read(tab)[0]["best"] == "tabby cat" and received == [b"pixels"]


def test_the_keyboard_reaches_the_choice_and_its_focus_is_seen(chromium: Browser, deployment: Deployment) -> None:
    with page_server(deployment, always(answered(CLASSES))) as url, chromium.tab(url, PHONE, 844) as tab:
        outline = "getComputedStyle(document.querySelector('.choose')).outlineStyle"
        assert tab.value(outline) == "none"
        for kind in ("keyDown", "keyUp"):
            tab.call("Input.dispatchKeyEvent", type=kind, key="Tab", code="Tab", windowsVirtualKeyCode=9)
        assert tab.value("document.activeElement.labels[0].innerText") == "Choose or take a picture"
        assert tab.value("document.activeElement.accept") == "image/*"
        assert tab.value(outline) == "solid"
        assert tab.value("document.querySelector('.choose').offsetHeight") >= 44  # for a thumb


@pytest.mark.parametrize("width", [DESKTOP, PHONE])
def test_a_verdict_that_is_no_pass_is_warned_of(
    chromium: Browser, deployment: Deployment, photos: list[Path], width: int
) -> None:
    doubtful = replace(deployment, choice=replace(deployment.choice, verdict="inconclusive"))
    reply = answered(CLASSES, verdict="inconclusive")
    with page_server(doubtful, always(reply)) as url, chromium.tab(url, width, 844) as tab:
        assert "inconclusive" in tab.value("document.querySelector('main > .alert').innerText")
        tab.choose("#files", photos[:1])
        (shown,) = read(tab)
        assert shown["by"] == "FP32 on ONNX Runtime, verdict: inconclusive"
        assert shown["alerts"] == ["export/model.onnx answers although its verdict is: inconclusive."]
        check_layout(tab)


@pytest.mark.parametrize(
    ("reply", "words", "again"),
    [
        (refused("Expected an image. Received: <b>text</b>.", 415), "Expected an image. Received: <b>text</b>.", 0),
        (
            refused("Expected room in the queue. Received: 256 images.", 503, **{"Retry-After": "1"}),
            "Expected room in the queue. Received: 256 images. The server asks to wait 1 s.",
            1,
        ),
        (refused("Expected the whole picture within 30 s.", 408), "Expected the whole picture within 30 s.", 1),
        (Reply("of a proxy", 502), "The server answered with status 502 and no reason.", 1),
        (Reply({"model": "tiny"}), "Expected an answer as this page knows it. Received: another", 0),
        (
            replace(answered(CLASSES), headers={"Content-Length": "100000"}),
            "The server closed the connection before it answered. The file may be larger than it takes.",
            1,
        ),
    ],
    ids=["no-image", "full", "slow", "proxy", "other", "closed"],
)
def test_an_error_is_shown_in_the_servers_words(
    chromium: Browser, deployment: Deployment, photos: list[Path], reply: Reply, words: str, again: int
) -> None:
    with page_server(deployment, always(reply)) as url, chromium.tab(url, PHONE, 844) as tab:
        tab.choose("#files", photos[:1])
        (shown,) = read(tab)
        assert shown["error"].startswith(words) and shown["best"] is None and shown["again"] == again
        assert tab.value("document.getElementById('said').innerText.trim()") == f"000.png: {shown['error']}"
        check_layout(tab)


def test_a_server_that_is_gone_is_named_and_asked_again_on_demand(
    chromium: Browser, deployment: Deployment, photos: list[Path]
) -> None:
    with page_server(deployment, always(answered(CLASSES))) as url:
        tab_block = chromium.tab(url)
        tab = tab_block.__enter__()
    with_port = urlsplit(url)
    tab.choose("#files", photos[:1])
    (shown,) = read(tab)
    assert shown["error"].startswith(f"Server not reachable: nothing answers at {with_port.netloc}.")
    with page_server(deployment, always(answered(CLASSES)), with_port.port or 0):
        tab.value("document.querySelector('.again').click()")
        (shown,) = read(tab)
        assert (shown["best"], shown["error"], shown["again"]) == ("tabby cat", None, 0)
    tab_block.__exit__(None, None, None)


def test_a_hostile_name_runs_nothing_and_breaks_no_layout(
    chromium: Browser, deployment: Deployment, tmp_path: Path
) -> None:
    names = [
        "<img src=x onerror='window.hit=1'>",
        "</script><script>window.hit=1</script>",
        "\u202egpj.exe\n\x1b[2J",
        "قطة منزلية",
        "W" * 5000,
    ]
    photo = tmp_path / "<img src=x onerror=window.hit=1>.png"
    Image.new("RGB", (30, 20), "red").save(photo)
    reply = answered([(name, 0.2) for name in names], verdict="<i>fail</i>", file="<b>.onnx", precision="fp32<p>")
    hostile = replace(deployment, card=replace(deployment.card, classes=tuple(names)), name="<u>" + "n" * 300)
    for width in (DESKTOP, PHONE):
        with page_server(hostile, always(reply)) as url, chromium.tab(url, width, 844) as tab:
            tab.choose("#files", [photo])
            (shown,) = read(tab)
            assert shown["name"] == photo.name and shown["best"] == names[0]
            assert shown["classes"][:4] == [names[0], names[1], r"\u202egpj.exe\u000a\u001b[2J", names[3]]
            assert shown["by"] == "FP32<P> on ONNX Runtime, verdict: <i>fail</i>" and shown["file"] == "<b>.onnx"
            assert tab.value("document.querySelectorAll('.bars .class')[3].matches(':dir(rtl)')")
            assert tab.value("document.querySelectorAll('.bars .class')[4].offsetHeight") < 100
            assert tab.value("document.documentElement.scrollWidth") <= width
            assert tab.value("window.hit === undefined && document.querySelectorAll('img, script').length") == 2
            check_nothing_ran(tab, url)


def test_several_pictures_are_asked_at_once_a_few_at_a_time(
    chromium: Browser, deployment: Deployment, photos: list[Path]
) -> None:
    names = {photo.read_bytes(): photo.name for photo in photos}
    lock, together, most = threading.Lock(), 0, 0
    both = threading.Barrier(2)  # no answer before two are asked for

    def answer(body: bytes, top_k: int) -> Reply:
        nonlocal together, most
        with lock:
            together += 1
            most = max(most, together)
        both.wait(20)
        with lock:
            together -= 1
        return answered([(f"is {names[body]}", 1.0)])

    with page_server(deployment, answer) as url, chromium.tab(url) as tab:
        tab.choose("#files", photos[:8])
        shown = read(tab, 8)
        assert [each["name"] for each in shown] == [photo.name for photo in reversed(photos[:8])]
        assert all(each["best"] == f"is {each['name']}" for each in shown)
        assert 2 <= most <= 4


def test_a_bounded_number_of_answers_is_kept_and_none_that_is_awaited_is_lost(
    chromium: Browser, deployment: Deployment, photos: list[Path]
) -> None:
    with page_server(deployment, always(answered(CLASSES))) as url, chromium.tab(url) as tab:
        tab.choose("#files", photos)
        kept = [each["name"] for each in read(tab, 24)]
        assert kept == [photo.name for photo in reversed(photos[:24])]
        assert (
            tab.value("document.getElementById('notice').innerText") == "24 pictures of 30 taken: 24 can wait at once."
        )
        tab.choose("#files", photos[24:26])
        tab.until("document.querySelector('.name').innerText === '025.png'")
        assert [each["name"] for each in read(tab, 24)] == ["025.png", "024.png", *kept[:22]]
        assert tab.value("document.getElementById('notice').innerText") == ""


def test_a_picture_that_the_browser_cannot_show_is_answered_with_a_placeholder(
    chromium: Browser, deployment: Deployment, tmp_path: Path
) -> None:
    Image.new("RGB", (30, 20), "red").save(tmp_path / "scan.tiff")
    with page_server(deployment, always(answered(CLASSES))) as url, chromium.tab(url, PHONE, 844) as tab:
        tab.choose("#files", [tmp_path / "scan.tiff"])
        tab.until("!document.querySelector('.placeholder').hidden")
        (shown,) = read(tab)
        assert shown["placeholder"] == 1 and not shown["preview"] and shown["best"] == "tabby cat"
        check_layout(tab)
