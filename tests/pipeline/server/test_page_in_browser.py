"""The page in headless Chromium: a picture goes in, the answer stands there, whatever the server says."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from PIL import Image

from pipeline.inference.deployment import Deployment
from tests.pipeline.inference.deployments import make_deployment, make_photos
from tests.pipeline.server.browser import PROGRAM, Browser, browser
from tests.pipeline.server.page_reading import ANSWERS, check_layout, check_nothing_ran, read
from tests.pipeline.server.page_server import Reply, answered, page_server, refused

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(PROGRAM is None, reason="there is no Chromium: apt-get install chromium"),
]
DESKTOP, PHONE = 1280, 390
CLASSES = [("tabby cat", 0.8425), ("dog", 0.1), ("owl", 0.0574), ("emu", 0.00009), ("eel", 0.00001)]


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
        assert shown["alerts"] == []
        assert shown["error"] is None
        assert not shown["placeholder"]
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
        assert tab.value("location.href") == url
        assert not tab.value("document.querySelector('.dragging')")


def test_a_dropped_folder_is_no_picture(chromium: Browser, deployment: Deployment, photos: list[Path]) -> None:
    with page_server(deployment, always(answered(CLASSES))) as url, chromium.tab(url) as tab:
        tab.drop([photos[0].parent], 300, 300)
        (shown,) = read(tab)
        assert shown["error"].startswith("Expected a picture's file. Received:")
        assert not shown["again"]


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
        assert read(tab)[0]["best"] == "tabby cat"
        assert received == [b"pixels"]


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
        assert shown["error"].startswith(words)
        assert shown["best"] is None
        assert shown["again"] == again
        assert tab.value("document.getElementById('said').innerText.trim()") == f"000.png: {shown['error']}"
        check_layout(tab)


def test_a_server_that_is_gone_is_named_and_asked_again_on_demand(
    chromium: Browser, deployment: Deployment, photos: list[Path]
) -> None:
    with ExitStack() as tabs:
        with page_server(deployment, always(answered(CLASSES))) as url:
            tab = tabs.enter_context(chromium.tab(url))
        gone = urlsplit(url)
        tab.choose("#files", photos[:1])
        (shown,) = read(tab)
        assert shown["error"].startswith(f"Server not reachable: nothing answers at {gone.netloc}.")
        with page_server(deployment, always(answered(CLASSES)), gone.port or 0):
            tab.value("document.querySelector('.again').click()")
            (shown,) = read(tab)
            assert (shown["best"], shown["error"], shown["again"]) == ("tabby cat", None, 0)


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
            assert shown["name"] == photo.name
            assert shown["best"] == names[0]
            assert shown["classes"][:4] == [names[0], names[1], r"\u202egpj.exe\u000a\u001b[2J", names[3]]
            assert shown["by"] == "FP32<P> on ONNX Runtime, verdict: <i>fail</i>"
            assert shown["file"] == "<b>.onnx"
            assert tab.value("document.querySelectorAll('.bars .class')[3].matches(':dir(rtl)')")
            assert tab.value("document.querySelectorAll('.bars .class')[4].offsetHeight") < 100
            assert tab.value("document.documentElement.scrollWidth") <= width
            assert tab.value("window.hit === undefined && document.querySelectorAll('img, script').length") == 2
            check_nothing_ran(tab, url)


def test_several_pictures_are_asked_at_once_four_at_a_time(
    chromium: Browser, deployment: Deployment, photos: list[Path]
) -> None:
    names = {photo.read_bytes(): photo.name for photo in photos}
    number, together = itertools.count(), threading.Barrier(5)  # the first four requests and this test

    def answer(body: bytes, top_k: int) -> Reply:
        if next(number) < 4:
            together.wait(20)
        return answered([(f"is {names[body]}", 1.0)])

    with page_server(deployment, answer) as url, chromium.tab(url) as tab:
        tab.choose("#files", photos[:8])
        tab.until(f"{ANSWERS}.length === 8")
        states = tab.value("[...document.querySelectorAll('.state')].map((state) => state.innerText)")
        assert states == ["Waiting"] * 4 + ["Asking the model"] * 4
        together.wait(20)
        shown = read(tab, 8)
        assert [each["name"] for each in shown] == [photo.name for photo in reversed(photos[:8])]
        assert all(each["best"] == f"is {each['name']}" for each in shown)


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
        assert shown["placeholder"] == 1
        assert not shown["preview"]
        assert shown["best"] == "tabby cat"
        check_layout(tab)
