"""``POST /classify``: answers as `infer` gives them, and a sentence with its status for everything else."""

from __future__ import annotations

import io
import json
import math
import struct
import time
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.data.decode import Decoded
from pipeline.server.front import LOCAL_NAMES
from pipeline.server.serve import local_names
from pipeline.server.service import Limits, Service
from tests.pipeline.server.servers import Answer, Running, running

MIB = 1 << 20


@pytest.fixture(autouse=True)
def a_good_request_is_answered_behind_it(server: Running) -> Iterator[None]:
    yield
    answer = server.ask("/classify", server.photo)
    assert answer.code == 200
    assert answer.json["classes"]


def test_each_image_is_answered_as_it_is_classified(server: Running) -> None:
    with server.deployment.open() as classifier:
        rows = classifier.contents(server.photos)
    for photo, row in zip(server.photos, rows, strict=True):
        answer = server.ask("/classify", photo).json
        assert row.status == "ok"
        assert [each["class"] for each in answer["classes"]] == list(row.classes)
        assert [each["probability"] for each in answer["classes"]] == pytest.approx(list(row.probabilities), abs=1e-6)
        assert [answer["width"], answer["height"]] == list(Image.open(io.BytesIO(photo)).size)


def test_an_answer_says_what_answered_and_where_the_time_went(server: Running) -> None:
    answer = server.ask("/classify", server.photo).json
    assert answer["model"] == "tiny"
    assert answer["answered_by"] == {
        "file": "export/model.onnx",
        "backend": "onnxruntime",
        "precision": "fp32",
        "verdict": "pass",
    }
    parts = answer["milliseconds"]
    assert all(value >= 0 for value in parts.values())
    assert parts["decode"] + parts["queue"] + parts["compute"] <= parts["total"] + 0.01
    assert answer["batch"] == 1


@pytest.mark.parametrize(("asked", "classes"), [("", 2), ("?top_k=1", 1), ("?top_k=4", 4), ("?top_k=999999999", 4)])
def test_as_many_classes_as_are_asked_for_are_answered(server: Running, asked: str, classes: int) -> None:
    answered = server.ask(f"/classify{asked}", server.photo).json["classes"]
    assert len(answered) == classes
    assert [each["probability"] for each in answered] == sorted(
        (each["probability"] for each in answered), reverse=True
    )


@pytest.mark.parametrize("asked", ["0", "-1", "1.5", "", "many", "9" * 5000, "1e3"])
def test_another_number_of_classes_is_bad(server: Running, asked: str) -> None:
    answer = server.ask(f"/classify?top_k={asked}", server.photo)
    assert (answer.code, answer.json["status"]) == (400, "bad_parameter")


def encoded(format: str, **options: object) -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)).save(file, format, **options)
    return file.getvalue()


def bomb(width: int, height: int) -> bytes:
    """A PNG that says it is large and has little behind it."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    data = zlib.compress(bytes(MIB))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


IMAGES: dict[str, tuple[bytes, int, str]] = {
    "a bomb": (bomb(60_000, 60_000), 413, "too_large"),
    "a bomb of one line": (bomb(2_000_000_000, 1), 413, "too_large"),
    "half a JPEG": (encoded("JPEG")[:600], 422, "damaged"),
    "half a PNG": (encoded("PNG")[:600], 422, "damaged"),
    "an SVG": (b'<svg xmlns="http://www.w3.org/2000/svg"><script>alert(1)</script></svg>', 415, "not_an_image"),
    "a text": (b"What is on this picture?", 415, "not_an_image"),
    "a path": (b"/etc/passwd", 415, "not_an_image"),
    "an address": (b"http://127.0.0.1/a.png", 415, "not_an_image"),
    "a header alone": (b"\x89PNG\r\n\x1a\n", 422, "damaged"),
    "zeros": (bytes(MIB), 415, "not_an_image"),
    "a PDF": (b"%PDF-1.7\n%%EOF", 415, "not_an_image"),
    "nothing": (b"", 400, "empty"),
}


def is_refused(answer: Answer, code: int, status: str) -> None:
    assert (answer.code, answer.json["status"]) == (code, status), answer.body
    message = answer.json["error"]
    assert set(answer.json) == {"error", "status"}
    assert message.startswith("Expected ")
    assert "Received: " in message
    for ours in ("Traceback", "/home", "/tmp", "site-packages", 'File "'):
        assert ours not in message
    assert len(message) < 500


@pytest.mark.parametrize(("content", "code", "status"), IMAGES.values(), ids=IMAGES)
def test_what_is_no_image_gets_its_status_and_a_sentence(
    server: Running, content: bytes, code: int, status: str
) -> None:
    is_refused(server.ask("/classify", content), code, status)


def test_a_damaged_image_is_answered_where_the_recipe_keeps_it(tmp_path: Path) -> None:
    with running(tmp_path, settings={"keep_damaged": True}) as keeping:
        answer = keeping.ask("/classify", encoded("JPEG")[:2500]).json
        assert answer["classes"]
        assert answer["damage"]


def test_the_largest_file_is_that_of_the_recipe(tmp_path: Path) -> None:
    with running(tmp_path, settings={"largest_file": 1000}) as small:
        is_refused(small.ask("/classify", encoded("BMP")), 413, "too_large")


@pytest.mark.parametrize("asked", ["topk=3", "top_k=1&k=2", "TOP_K=1", "a="])
def test_a_parameter_that_there_is_not_is_bad(server: Running, asked: str) -> None:
    answer = server.ask(f"/classify?{asked}", server.photo)
    assert (answer.code, answer.json["status"]) == (400, "bad_parameter")
    assert answer.json["error"].startswith("Expected no parameter but top_k. Received: '")


@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE", "HEAD", "OPTIONS", "PATCH", "TRACE", "BREW"])
def test_another_method_is_refused(server: Running, method: str) -> None:
    answer = server.ask("/classify", method=method)
    if method == "BREW":  # no method of HTTP
        assert answer.code == 400
    elif method == "HEAD":
        assert (answer.code, answer.body) == (405, b"")
    else:
        is_refused(answer, 405, "wrong_method")
        assert answer.headers["allow"] == "POST"
        assert answer.json["error"] == f"Expected POST for this path. Received: {method} /classify."


@pytest.mark.parametrize(
    "path",
    [
        "/nowhere",
        "/classify/",
        "//classify",
        "/../../etc/passwd",
        "/%2e%2e/%2e%2e/etc/passwd",
        "/page.js/../../page.html",
        "/templates/page.html",
        "/docs",
        "/openapi.json",
        "/%ff%00%0d%0aSet-Cookie:%20a=b",
        "/v2/models/tiny/versions/1/infer/more",
        "/" + "a" * 5000,
        "*",
    ],
)
def test_an_unknown_path_is_not_found(server: Running, path: str) -> None:
    answer = server.ask(path, method="GET")
    if path == "*":
        assert answer.code in (400, 404)
        return
    is_refused(answer, 404, "not_found")
    assert "set-cookie" not in answer.headers


@pytest.mark.parametrize("encoding", ["gzip", "deflate", "br", "identity, gzip"])
def test_a_compressed_body_is_refused(server: Running, encoding: str) -> None:
    is_refused(server.ask("/classify", server.photo, {"Content-Encoding": encoding}), 415, "encoding")


@pytest.mark.parametrize(
    "host", ["evil.test", "127.0.0.1.evil.test", "localhost.evil.test:80", "", "[", "a]:b", "\xff"]
)
def test_a_name_that_is_not_this_machine_s_is_refused(server: Running, host: str) -> None:
    answer = server.ask("/classify", server.photo, {"Host": host})
    is_refused(answer, 421, "wrong_host")
    assert "to localhost, 127.0.0.1 or [::1]. " in answer.json["error"]
    assert "start `serve` with --host 0.0.0.0" in answer.json["error"]


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "[::1]"])
def test_each_name_of_this_machine_is_there_once(host: str) -> None:
    assert local_names(host.strip("[]"), "127.0.0.1") == LOCAL_NAMES
    assert local_names("127.0.0.2", "127.0.0.2") == (*LOCAL_NAMES, "127.0.0.2")
    assert local_names("0.0.0.0", "0.0.0.0") == ()


@pytest.mark.parametrize("path", ["/classify", "/v2/models/tiny_files/infer"])
def test_a_page_of_another_site_cannot_have_an_image_computed(server: Running, path: str) -> None:
    sent = {"Origin": "https://elsewhere.test", "Sec-Fetch-Site": "cross-site", "Content-Type": "text/plain"}
    is_refused(server.ask(path, server.photo, sent), 403, "cross_site")


def test_the_page_itself_and_a_link_to_it_are_answered(server: Running) -> None:
    for site in ("same-origin", "same-site", "none"):
        assert server.ask("/classify", server.photo, {"Sec-Fetch-Site": site}).code == 200
    assert server.ask("/", method="GET", headers={"Sec-Fetch-Site": "cross-site"}).code == 200


def test_a_server_for_others_takes_pages_of_other_sites(tmp_path: Path) -> None:
    with running(tmp_path, hosts=()) as public:
        assert public.ask("/classify", public.photo, {"Sec-Fetch-Site": "cross-site"}).code == 200


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:1", "127.0.0.1:8000", "[::1]", "[::1]:80"])
def test_names_of_this_machine_are_answered(server: Running, host: str) -> None:
    assert server.ask("/classify", server.photo, {"Host": host}).code == 200


@pytest.mark.parametrize("host", ["[", "[]", "a]:b", "a b", "\xff", "", "/x?y#z", "a@b:-1"])
def test_where_any_name_is_taken_none_makes_an_error(tmp_path: Path, host: str) -> None:
    with running(tmp_path, hosts=()) as public:
        assert public.ask("/classify", public.photo, {"Host": host}).code == 200
        is_refused(public.ask("/nowhere", b"", {"Host": host}), 404, "not_found")


def form(*parts: tuple[str, bytes], boundary: bytes = b"xyz") -> tuple[bytes, dict[str, str]]:
    body = b"".join(
        b"--%s\r\nContent-Disposition: form-data; %s\r\n\r\n%s\r\n" % (boundary, how.encode(), content)
        for how, content in parts
    )
    return body + b"--%s--\r\n" % boundary, {"Content-Type": f"multipart/form-data; boundary={boundary.decode()}"}


@pytest.mark.parametrize("name", ["photo.png", "../../etc/passwd", "a\\b", "", "con", "\xff", "a" * 4000, "%00"])
def test_one_file_of_a_form_is_answered_whatever_it_is_called(server: Running, name: str) -> None:
    body, headers = form((f'name="file"; filename="{name}"', server.photo), ('name="note"', b"hello"))
    answer = server.ask("/classify", body, headers)
    assert answer.code == 200
    assert answer.json["classes"] == server.ask("/classify", server.photo).json["classes"]


FILE = 'name="file"; filename="a.png"'
HEAD = b'--xyz\r\nContent-Disposition: form-data; name="file"; filename="a.png"\r\n'
FORMS: dict[str, bytes] = {
    "no file": form(('name="file"', b"text"))[0],
    "two files": form((FILE, b"a"), (FILE, b"b"))[0],
    "a thousand fields": form(*[('name="a"', b"b")] * 1000)[0],
    "a thousand files": form(*[(FILE, b"b")] * 1000)[0],
    "no end": HEAD + b"\r\n" + b"a" * 1000,
    "an endless header": HEAD + b"X: " + b"a" * MIB,
    "endless headers": HEAD + b"X: y\r\n" * 100_000,
    "another boundary": form((FILE, b"a"), boundary=b"abc")[0],
    "no form": b"\0" * MIB,
    "no disposition": b"--xyz\r\nX: y\r\n\r\nabc\r\n--xyz--\r\n",
}


@pytest.mark.parametrize("body", FORMS.values(), ids=FORMS)
def test_another_form_is_bad(server: Running, body: bytes) -> None:
    answer = server.ask("/classify", body, {"Content-Type": "multipart/form-data; boundary=xyz"})
    is_refused(answer, 400, "bad_form")
    assert answer.json["error"].endswith(". Send it as `curl -F image=@photo.jpg` does.")
    assert ".." not in answer.json["error"]


def test_a_form_with_an_empty_file_is_empty(server: Running) -> None:
    body, headers = form((FILE, b""))
    is_refused(server.ask("/classify", body, headers), 400, "empty")


@pytest.mark.parametrize(
    "kind", ["multipart/form-data", "multipart/form-data; boundary=", "multipart/form-data; boundary=" + "x" * 5000]
)
def test_a_form_without_a_boundary_is_bad(server: Running, kind: str) -> None:
    is_refused(server.ask("/classify", form((FILE, b"a"))[0], {"Content-Type": kind}), 400, "bad_form")


def test_a_probability_that_is_no_number_is_null(server: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    infer = server.service._batcher._compute

    def broken(pixels: np.ndarray) -> object:
        outputs = infer(pixels)
        return type(outputs)(outputs.logits, np.full_like(outputs.probabilities, math.nan))

    monkeypatch.setattr(server.service._batcher, "_compute", broken)
    answer = server.ask("/classify", server.photo)
    assert b"NaN" not in answer.body
    assert [each["probability"] for each in answer.json["classes"]] == [None, None]


def test_waiting_for_a_thread_that_decodes_is_no_decoding(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    decode = Service._decode

    def slow(self: Service, content: bytes) -> Decoded:
        time.sleep(0.2)
        return decode(self, content)

    monkeypatch.setattr(Service, "_decode", slow)
    with running(tmp_path, settings={"decode_threads": 1}) as busy, ThreadPoolExecutor(3) as threads:
        answers = list(threads.map(lambda _: busy.ask("/classify", busy.photo).json["milliseconds"], range(3)))
    assert max(parts["decode"] for parts in answers) < 390, "none decodes for two"
    assert max(parts["queue"] for parts in answers) > 300, "the last one waits for two"
    assert all(parts["total"] >= parts["decode"] + parts["queue"] for parts in answers)


def test_the_defaults_are_those_that_the_manual_names() -> None:
    limits = Limits()
    assert (limits.upload, limits.queue, limits.max_delay) == (32 * MIB, 256, 0.002)


ODD = ("a:b:c", 'x, "y"', "two\nlines", "猫")


def test_every_name_of_a_class_is_answered(tmp_path: Path) -> None:
    with running(tmp_path) as named:
        named.service.deployment = replace(named.deployment, card=replace(named.deployment.card, classes=ODD))
        answer = named.ask("/classify?top_k=4", named.photo)
        assert {each["class"] for each in answer.json["classes"]} == set(ODD)
        assert "猫".encode() in answer.body
        tensor = {"name": "images", "datatype": "UINT8", "shape": [1, 16, 16, 3], "data": [0] * 768}
        for binary in (False, True):
            output = {"name": "logits", "parameters": {"classification": 4, "binary_data": binary}}
            asked = json.dumps({"inputs": [tensor], "outputs": [output]}).encode()
            answer = named.ask("/v2/models/tiny/infer", asked)
            assert answer.code == 200
            assert b":0:a:b:c" in answer.body, "a client cuts at the first two colons"
