"""What goes beyond a limit is refused with its status, and what the refused held is free again."""

from __future__ import annotations

import json
import socket
import struct
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.data.decode import Decoded
from pipeline.runners.base import Outputs
from pipeline.server import front
from pipeline.server.service import Service
from tests.pipeline.server.servers import POST, SOON, Running, running, until_closed, wait_until

UPLOAD = 1 << 20


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    limits: dict[str, Any] = {"upload": UPLOAD, "uploads": 3 * UPLOAD, "queue": 8, "max_batch": 4, "body_seconds": 0.5}
    with pytest.MonkeyPatch.context() as patched, running(tmp_path_factory.mktemp("server"), **limits) as made:
        patched.setattr(front, "_DRAIN_SECONDS", 0.2)
        yield made


@pytest.fixture(autouse=True)
def nothing_is_left_of_it(server: Running) -> Iterator[None]:
    """Behind each test a good request is answered, and connections, memory and threads are as before."""
    threads = threading.active_count()
    yield
    answer = server.ask("/classify", server.photo)
    assert answer.code == 200
    wait_until(lambda: not server.server.server_state.connections and not server.server.server_state.tasks)
    assert server.server.config.app._held == 0  # type: ignore[union-attr]
    assert server.service._load() == 0
    decoders = server.deployment.settings.threads  # that start when they are needed, and stay
    assert threading.active_count() <= threads + decoders + 1  # and a thread of asyncio's own


def statuses(received: bytes) -> list[int]:
    """The codes of all answers in what a connection received."""
    return [int(part[:3]) for part in received.split(b"HTTP/1.1 ")[1:]]


def error_of(received: bytes) -> dict[str, str]:
    head, _, body = received.partition(b"\r\n\r\n")
    assert b"content-type: application/json" in head
    error: dict[str, str] = json.loads(body)
    return error


def test_a_body_that_says_it_is_too_large_is_refused_before_it_is_sent(server: Running) -> None:
    with server.connect(POST + b"Content-Length: %d\r\n\r\n" % (UPLOAD + 1)) as connection:
        received = until_closed(connection)
    assert statuses(received) == [413]
    assert error_of(received)["status"] == "too_large"
    assert b"connection: close" in received


@pytest.mark.parametrize("length", [b"9" * 19, b"9" * 400, b"1 1", b"-1", b"0x10", b"+1", b"1,2"])
def test_a_length_that_is_none_is_refused(server: Running, length: bytes) -> None:
    with server.connect(POST + b"Content-Length: %b\r\n\r\n" % length) as connection:
        assert statuses(until_closed(connection)) in ([400], [413])


def test_who_waits_to_be_told_to_go_on_is_told_once_what_is_so(server: Running) -> None:
    expect = POST + b"Expect: 100-continue\r\nContent-Length: %d\r\n\r\n"
    with server.connect(expect % (UPLOAD + 1)) as connection:
        assert statuses(until_closed(connection)) == [413]
    with server.connect(expect % len(server.photo)) as connection:
        assert connection.recv(65536) == b"HTTP/1.1 100 Continue\r\n\r\n"
        connection.sendall(server.photo)
        assert statuses(connection.recv(65536)) == [200]


@pytest.mark.parametrize("size", [1000, 65536, 1 << 19])
def test_a_body_in_chunks_without_end_is_refused_and_the_answer_can_be_read(server: Running, size: int) -> None:
    chunk = b"%x\r\n" % size + b"a" * size + b"\r\n"
    number = UPLOAD // size + 2
    with server.connect(POST + b"Transfer-Encoding: chunked\r\n\r\n") as connection:
        connection.sendall(chunk * number)
        received = until_closed(connection)
    assert statuses(received) == [413]


def test_a_body_as_large_as_the_limit_is_read(server: Running) -> None:
    assert server.ask("/classify", bytes(UPLOAD)).code == 415
    assert server.ask("/classify", bytes(UPLOAD + 1)).code == 413


def test_a_slow_body_is_too_slow_and_others_are_answered_meanwhile(server: Running) -> None:
    with server.connect(POST + b"Content-Length: 1000\r\n\r\nabc") as connection:
        assert server.ask("/classify", server.photo).code == 200
        received = until_closed(connection)
    assert statuses(received) == [408]
    assert error_of(received)["error"] == "Expected the body within 0.5 s. Received: 3 bytes of it."


def test_a_body_that_drips_is_too_slow(server: Running) -> None:
    with server.connect(POST + b"Content-Length: 1000\r\n\r\n") as connection:
        connection.settimeout(0.05)
        received = b""
        for _ in range(100):
            connection.sendall(b"a")
            try:
                received = connection.recv(65536)
                break
            except TimeoutError:
                pass
        assert statuses(received) == [408]


def test_a_body_shorter_than_it_says_is_no_request_and_what_is_beyond_is_another(server: Running) -> None:
    with server.connect(POST + b"Content-Length: 1000\r\n\r\nabc") as connection:
        connection.shutdown(socket.SHUT_WR)
        assert until_closed(connection) == b""
    photo = server.photo
    with server.connect(POST + b"Content-Length: %d\r\n\r\n" % len(photo) + photo + b"beyond it\r\n\r\n") as connection:
        assert statuses(until_closed(connection))[-1] == 400


@pytest.mark.parametrize(
    "sent",
    [
        b"\x16\x03\x01\x02\0\x01\0\x01\xfc\x03\x03",
        b"GET\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"SSH-2.0-OpenSSH_9.0\r\n",
        b"\0" * 1000,
        b"GET / HTTP/1.1\r\nHost localhost\r\n\r\n",
        b"GET http://[ HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"CONNECT localhost:1 HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        POST + b"Content-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n",
        POST + b"Content-Length: 3\r\nContent-Length: 4\r\n\r\nabcd",
        POST + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n",
        POST + b"Transfer-Encoding: chunked\r\n\r\n" + b"f" * 40 + b"\r\n",
        POST + b"Transfer-Encoding: gzip\r\n\r\nabc",
    ],
    ids=str,
)
def test_what_is_no_http_is_refused_and_closed(server: Running, sent: bytes) -> None:
    with server.connect(sent) as connection:
        try:
            received = until_closed(connection)
        except ConnectionResetError:
            return
    assert set(statuses(received)) <= {400, 404, 411, 415}
    assert b"Traceback" not in received


def test_a_request_to_upgrade_is_answered_as_any(server: Running) -> None:
    upgrade = b"Connection: Upgrade\r\nUpgrade: %b\r\n\r\n"
    for protocol in (b"websocket", b"h2c"):
        with server.connect(b"GET /v2 HTTP/1.1\r\nHost: localhost\r\n" + upgrade % protocol) as connection:
            assert statuses(connection.recv(65536)) == [200]


class Held:
    """Computing that waits until it is let."""

    def __init__(self, server: Running, monkeypatch: pytest.MonkeyPatch) -> None:
        self.batches: list[int] = []
        self.begun, self.go_on = threading.Semaphore(0), threading.Event()
        compute = server.service._batcher._compute

        def held(pixels: np.ndarray) -> Outputs:
            self.begun.release()
            assert self.go_on.wait(SOON)
            self.batches.append(len(pixels))
            return compute(pixels)

        monkeypatch.setattr(server.service._batcher, "_compute", held)


@pytest.fixture
def held(server: Running, monkeypatch: pytest.MonkeyPatch) -> Iterator[Held]:
    made = Held(server, monkeypatch)
    yield made
    made.go_on.set()
    wait_until(lambda: not server.server.server_state.tasks)


def request_of(photo: bytes) -> bytes:
    return POST + b"Connection: close\r\nContent-Length: %d\r\n\r\n" % len(photo) + photo


def test_a_full_queue_refuses_and_loses_none(server: Running, held: Held) -> None:
    first = server.connect(request_of(server.photo))
    assert held.begun.acquire(timeout=SOON)
    waiting = []
    for number in range(8):
        waiting.append(server.connect(request_of(server.photos[number])))
        wait_until(lambda: server.service._batcher.waiting == number + 1)  # noqa: B023  # asked in this turn
    for path, body in (("/classify", server.photo), ("/classify", b"no image")):
        refused = server.ask(path, body)
        assert (refused.code, refused.headers["retry-after"], refused.json["status"]) == (503, "1", "busy")
    assert server.metrics()["classifier_queue_images",] == 8
    assert server.ask("/v2/health/live", method="GET").code == 200
    held.go_on.set()
    for connection in (first, *waiting):
        with connection:
            assert statuses(until_closed(connection)) == [200]
    assert held.batches == [1, 4, 4]


def test_who_goes_away_is_not_computed(server: Running, held: Held) -> None:
    first = server.connect(request_of(server.photo))
    assert held.begun.acquire(timeout=SOON)
    gone = [server.connect(request_of(photo)) for photo in server.photos[:4]]
    wait_until(lambda: server.service._batcher.waiting == 4)
    for connection in gone[1:]:
        connection.close()
    wait_until(lambda: len(server.server.server_state.tasks) == 2)
    held.go_on.set()
    for connection in (first, gone[0]):
        with connection:
            assert statuses(until_closed(connection)) == [200]
    assert held.batches == [1, 1]


def test_large_bodies_at_once_are_refused_before_they_fill_the_memory(server: Running) -> None:
    half = POST + b"Connection: close\r\nContent-Length: %d\r\n\r\n" % UPLOAD + bytes(UPLOAD - 10)
    connections = [server.connect(half) for _ in range(3)]
    wait_until(lambda: server.server.config.app._held == 3 * (UPLOAD - 10))  # type: ignore[union-attr]
    refused = server.ask("/classify", bytes(UPLOAD // 2))
    assert (refused.code, refused.headers["retry-after"], refused.json["status"]) == (503, "1", "busy")
    assert server.ask("/v2", method="GET").code == 200
    for connection in connections:
        with connection:
            connection.sendall(bytes(10))
            assert statuses(until_closed(connection)) == [415]


def test_numbers_are_those_of_what_was_asked(server: Running) -> None:
    before = server.metrics()
    wait_until(lambda: not server.server.server_state.tasks)
    for body in (server.photo, server.photo, b"no image", b""):
        server.ask("/classify", body)
    server.ask("/nowhere")
    server.ask("/v2/models/tiny", method="GET")
    server.ask("/v2/models/other", method="GET")
    server.ask("/classify", server.photo, {"Host": "evil.test"})
    wait_until(lambda: not server.server.server_state.tasks)  # a request is counted behind its answer
    after = server.metrics()
    difference = {key: after[key] - before.get(key, 0) for key in after if after[key] != before.get(key, 0)}
    expected = {
        ("classifier_requests_total", "200", "/classify"): 2,
        ("classifier_requests_total", "415", "/classify"): 1,
        ("classifier_requests_total", "400", "/classify"): 1,
        ("classifier_requests_total", "404", "unknown"): 1,
        ("classifier_requests_total", "421", "unknown"): 1,
        ("classifier_requests_total", "200", "/v2/models/{model}"): 1,
        ("classifier_requests_total", "404", "/v2/models/{model}"): 1,
        ("classifier_requests_total", "200", "/metrics"): 1,
        ("classifier_images_total", "ok"): 2,
        ("classifier_images_total", "not_an_image"): 1,
        ("classifier_batch_images_count",): 2,
        ("classifier_batch_images_sum",): 2,
        ("classifier_request_seconds_count", "/classify"): 4,
    }
    assert {key: difference.get(key) for key in expected} == expected
    requests = {key for key in difference if key[0] == "classifier_requests_total"}
    assert requests <= set(expected)
    assert after["process_resident_memory_bytes",] > 1e6
    (model,) = [key for key in after if key[0] == "classifier_model_info"]
    assert {"onnxruntime", "export/model.onnx", "fp32", "pass", "tiny"} <= set(model)


def test_a_fault_of_ours_is_logged_and_tells_nothing(
    server: Running, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(self: Service, content: bytes) -> Decoded:
        raise KeyError("a secret of ours")

    with monkeypatch.context() as patched:
        patched.setattr(Service, "_decode", broken)
        answer = server.ask("/classify", server.photo)
    assert (answer.code, answer.json["status"]) == (500, "bug")
    assert b"secret" not in answer.body
    wait_until(lambda: "a secret of ours" in caplog.text)


def test_connections_beyond_the_most_are_refused_as_json(tmp_path: Path) -> None:
    with running(tmp_path, connections=3, header_seconds=SOON) as small:
        idle = [small.connect() for _ in range(3)]
        wait_until(lambda: len(small.server.server_state.connections) == 3)
        refused = small.ask("/classify", small.photo)
        assert (refused.code, refused.json["status"], refused.headers["retry-after"]) == (503, "busy", "1")
        idle.pop().close()
        wait_until(lambda: len(small.server.server_state.connections) == 2)
        assert small.ask("/classify", small.photo).code == 200
        for connection in idle:
            connection.close()


def test_pipelined_requests_are_answered_in_their_order_and_not_kept_without_end(server: Running) -> None:
    get = b"GET /v2/models/%b HTTP/1.1\r\nHost: localhost\r\n\r\n"
    with server.connect(get % b"tiny" + get % b"other" + get % b"tiny") as connection:
        received = b""
        while len(statuses(received)) < 3:
            received += connection.recv(65536)
        assert statuses(received) == [200, 404, 200]
    with server.connect() as connection, pytest.raises(OSError):
        connection.sendall(get % b"tiny" * 200_000)


@pytest.mark.parametrize("reset", [False, True], ids=["closed", "reset"])
def test_who_goes_away_with_requests_in_line_is_not_computed(
    server: Running, held: Held, caplog: pytest.LogCaptureFixture, reset: bool
) -> None:
    first = server.connect(request_of(server.photo))
    assert held.begun.acquire(timeout=SOON)
    request = POST + b"Content-Length: %d\r\n\r\n" % len(server.photo) + server.photo
    gone = server.connect(request * 3)
    wait_until(lambda: server.service._batcher.waiting == 1)
    gone.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", int(reset), 0))
    gone.close()
    wait_until(lambda: len(server.server.server_state.tasks) == 1)
    held.go_on.set()
    with first:
        assert statuses(until_closed(first)) == [200]
    wait_until(lambda: not server.server.server_state.tasks)
    assert held.batches == [1]
    assert caplog.text == ""


def test_who_goes_away_while_an_answer_waits_to_be_written_is_no_fault_of_ours(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    get = b"GET /page.js HTTP/1.1\r\nHost: localhost\r\n\r\n"
    with running(tmp_path, body_seconds=SOON, header_seconds=SOON) as patient:
        state = patient.server.server_state
        with patient.connect() as connection:
            wait_until(lambda: bool(state.connections))
            (ours,) = state.connections
            for _ in range(1000):
                done = state.total_requests + 20
                connection.sendall(get * 20)
                wait_until(lambda: state.total_requests >= done or ours.flow.write_paused)  # type: ignore[union-attr]  # noqa: B023
                if ours.flow.write_paused:  # type: ignore[union-attr]
                    break
            assert ours.pipeline, "others wait for it"  # type: ignore[union-attr]
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        wait_until(lambda: not state.tasks)
    assert caplog.text == ""


def test_who_reads_no_answers_is_cut_off(tmp_path: Path) -> None:
    get = b"GET /page.js HTTP/1.1\r\nHost: localhost\r\n\r\n"
    with running(tmp_path, body_seconds=0.2, header_seconds=2 * SOON) as impatient, impatient.connect() as connection:
        state = impatient.server.server_state
        for number in range(20, 20_000, 20):  # fewer at a time than may wait, and more than buffers of the system hold
            connection.sendall(get * 20)
            wait_until(lambda: state.total_requests >= number or not state.connections)  # noqa: B023
            if not state.connections:
                break
        assert not state.connections
