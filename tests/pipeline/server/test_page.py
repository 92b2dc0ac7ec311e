"""The page at ``/`` as a server gives it: its files, what a browser may load, names that are hostile."""

from __future__ import annotations

import http.client
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from pipeline.inference.deployment import Deployment
from pipeline.server.page import BACKENDS, REPORT_STYLE, TEMPLATES, page
from pipeline.serving import candidates
from tests.pipeline.inference.deployments import make_deployment
from tests.pipeline.report_page import Page
from tests.pipeline.server.page_server import answered, page_server

FILES = {"/": "text/html", "/report.css": "text/css", "/page.css": "text/css", "/page.js": "text/javascript"}
HOSTILE = ("<script>hit()</script>", "' onerror='hit()", '"><img src=x onerror=hit()>', "\u202egpj.exe", "{{ 7 * 7 }}")


@pytest.fixture(scope="module")
def deployment(tmp_path_factory: pytest.TempPathFactory) -> Deployment:
    return make_deployment(tmp_path_factory.mktemp("page"))


@pytest.fixture(scope="module")
def address(deployment: Deployment) -> Iterator[str]:
    with page_server(deployment, lambda body, top_k: answered([("cat", 1.0)])) as url:
        yield urlsplit(url).netloc


def ask(address: str, path: str, method: str = "GET", **headers: str) -> tuple[int, http.client.HTTPMessage, bytes]:
    connection = http.client.HTTPConnection(address, timeout=30)
    try:
        connection.request(method, path, headers={name.replace("_", "-"): value for name, value in headers.items()})
        response = connection.getresponse()
        return response.status, response.headers, response.read()
    finally:
        connection.close()


@pytest.mark.parametrize(("path", "kind"), FILES.items())
def test_each_file_is_there_for_get_and_head_and_is_not_sent_twice(address: str, path: str, kind: str) -> None:
    status, headers, content = ask(address, path)
    assert (status, headers.get_content_type(), headers.get_content_charset()) == (200, kind, "utf-8")
    assert headers["Cache-Control"] == "no-cache"
    assert headers["X-Content-Type-Options"] == "nosniff"
    without, head, nothing = ask(address, path, "HEAD")
    assert (without, nothing, head["Content-Length"]) == (200, b"", str(len(content)))
    assert (head["ETag"], head["Content-Security-Policy"]) == (headers["ETag"], headers["Content-Security-Policy"])
    unchanged, again, nothing = ask(address, path, If_None_Match=f'"other", W/{headers["ETag"]}')
    assert (unchanged, nothing, again["ETag"]) == (304, b"", headers["ETag"])
    assert ask(address, path, If_None_Match='"other"')[0] == 200
    assert ask(address, path, "PUT")[0] == 405


def test_the_files_are_those_that_lie_beside_the_module(address: str) -> None:
    for path in ("page.css", "page.js"):
        assert ask(address, f"/{path}")[2] == (TEMPLATES / path).read_bytes()
    assert ask(address, "/report.css")[2] == REPORT_STYLE.read_bytes()


def test_a_browser_may_load_nothing_but_the_servers_own_files(address: str) -> None:
    policy = dict(rule.split(" ", 1) for rule in ask(address, "/")[1]["Content-Security-Policy"].split("; "))
    assert policy == {
        "default-src": "'none'",
        "script-src": "'self'",
        "style-src": "'self'",
        "connect-src": "'self'",
        "img-src": "'self' blob: data:",
        "base-uri": "'none'",
        "form-action": "'none'",
        "frame-ancestors": "'none'",
    }


def test_no_script_or_style_is_written_into_the_page_and_all_addresses_are_relative(address: str) -> None:
    nodes = list(Page(ask(address, "/")[2].decode()).root.walk())
    names = {name for node in nodes for name in node.attrs}
    assert not {name for name in names if name.startswith("on") or name in ("style", "srcdoc", "action")}
    assert not [node for node in nodes if node.tag in ("style", "base", "iframe", "object", "form")]
    assert [(node.attrs["src"], node.text) for node in nodes if node.tag == "script"] == [("page.js", "")]
    loaded = {node.attrs["href"] for node in nodes if node.tag == "link"}
    assert loaded == {"data:,", "report.css", "page.css"}  # an empty icon, so that no browser asks for one
    assert {node.attrs["href"] for node in nodes if node.tag == "a"} == {"metrics", "v2/models/tiny"}


def test_no_file_names_an_address_elsewhere_or_makes_html_of_a_text(address: str) -> None:
    texts = {path: ask(address, path)[2].decode() for path in FILES}
    for path, text in texts.items():
        assert re.findall(r"(?:[a-z]+:)?//[\w.]+", re.sub(r"^ *//.*| // .*", "", text, flags=re.MULTILINE)) == (
            ["http://HOST"] if path == "/" else []
        )
        assert not re.search(r"url\(|@import", text)
    unsafe = r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\b|new Function|setTimeout\(['\"]|srcdoc"
    assert not re.search(unsafe, texts["/page.js"])


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_name_stays_text(deployment: Deployment, name: str) -> None:
    card = replace(deployment.card, classes=(name, "b", "c", "d"))
    choice = replace(deployment.choice, precision=name)
    found = Page(page(replace(deployment, name=name, card=card, choice=choice))).root
    harmless = Page(page(deployment)).root
    assert [(node.tag, sorted(node.attrs)) for node in found.walk()] == [
        (node.tag, sorted(node.attrs)) for node in harmless.walk()
    ]
    shown = name.replace("\u202e", r"\u202e")
    assert found.all("h1")[0].text == found.all("header")[0].all("bdi")[0].text == shown


def test_the_page_says_what_answers_and_asks_for_no_more_classes_than_there_are(deployment: Deployment) -> None:
    found = Page(page(deployment))
    assert (found.badge.text, found.badge.kinds) == ("FP32 on ONNX Runtime, verdict: pass", {"badge", "pass"})
    assert "4 classes: cat , dog , owl , emu" in found.root.all("header")[0].text
    assert found.root.all("body")[0].attrs["data-most-classes"] == "4"
    many = replace(deployment, card=replace(deployment.card, classes=tuple(map(str, range(1000)))))
    text = page(many)
    assert "1,000 classes" in text
    assert "and 992 more" in text
    assert 'data-most-classes="5"' in text


@pytest.mark.parametrize("verdict", ["fail", "inconclusive", "not run", "not verified"])
def test_a_file_that_did_not_pass_is_warned_of(deployment: Deployment, verdict: str) -> None:
    found = Page(page(replace(deployment, choice=replace(deployment.choice, verdict=verdict))))
    assert found.badge.kinds == {"badge", verdict.replace(" ", "")}
    assert any(f'its verdict is "{verdict}"' in alert for alert in found.alerts)
    assert not any("its verdict is" in alert for alert in Page(page(deployment)).alerts)


def test_every_backend_that_may_serve_has_its_name() -> None:
    assert tuple(BACKENDS) == candidates.BACKENDS


def test_the_folder_has_no_file_that_the_page_does_not_use() -> None:
    assert {path.name for path in Path(TEMPLATES).iterdir()} == {"page.html", "page.css", "page.js"}
