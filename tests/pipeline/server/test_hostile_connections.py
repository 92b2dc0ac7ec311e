"""What a client does to the connection and to the memory, beside what it says: others are answered all the same."""

from __future__ import annotations

import json
import socket
import threading
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from export.errors import ProjectError
from pipeline.data.decode import Decoded
from pipeline.server import serve as serving
from pipeline.server.errors import RequestError
from pipeline.server.serve import Server, is_loopback
from pipeline.server.service import Limits, Service
from pipeline.server.tensors import read_request, uint8_of
from tests.pipeline.inference.deployments import make_deployment
from tests.pipeline.server.servers import POST, SOON, Running, running, until_closed, wait_until
from tests.tiny_onnx import SIZE

GET = b"GET /v2 HTTP/1.1\r\nHost: localhost\r\n\r\n"


@pytest.fixture(autouse=True)
def others_are_answered(server: Running) -> Iterator[None]:
    yield
    assert server.answer("/classify", server.photo)[0] == 200


def test_blank_lines_do_not_keep_a_connection(server: Running) -> None:
    with server.connect(GET) as connection:
        assert connection.recv(65536).startswith(b"HTTP/1.1 200")
        connection.sendall(b"\r\n")
        until_closed(connection)


def test_a_body_that_nobody_reads_does_not_keep_a_connection(server: Running) -> None:
    with server.connect(POST.replace(b"localhost", b"evil.test") + b"Content-Length: 1000\r\n\r\nx") as connection:
        assert until_closed(connection).startswith(b"HTTP/1.1 421")


@pytest.mark.parametrize(
    ("head", "piece"),
    [
        (b"Transfer-Encoding: chunked\r\n\r\n1\r\nx\r\n0\r\nX: ", b"a" * 65536),
        (b"Transfer-Encoding: chunked\r\n\r\n1\r\nx\r\n0\r\n", b"a: b\r\n" * 10000),
        (b"Transfer-Encoding: chunked\r\n\r\n1;", b"a" * 65536),
        (b"X: ", b"a" * 65536),
        (b"", b"a: b\r\n" * 10000),
    ],
    ids=["one trailer", "many trailers", "an extension of a chunk", "one header", "many headers"],
)
def test_headers_without_end_are_cut_off(server: Running, head: bytes, piece: bytes) -> None:
    with server.connect(POST + head) as connection, pytest.raises(OSError):
        connection.sendall(piece * 1000)  # more than fits into buffers of the system


def test_a_kept_connection_has_room_for_many_headers_and_bodies(server: Running) -> None:
    request = POST + b"X: " + b"a" * 20_000 + b"\r\nContent-Length: %d\r\n\r\n" % len(server.photo) + server.photo
    with server.connect(request * 10) as connection:  # far more than the limit, which is of one request
        received = b""
        while received.count(b"HTTP/1.1 200") < 10:
            part = connection.recv(65536)
            assert part, "closed"
            received += part


def test_decoding_keeps_no_bytes_of_clients_that_went_away(server: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    decode, go_on, entered = Service._decode, threading.Event(), threading.Semaphore(0)

    def slow(self: Service, content: bytes) -> Decoded:
        entered.release()
        assert go_on.wait(SOON)
        return decode(self, content)

    monkeypatch.setattr(Service, "_decode", slow)
    threads, service = server.service.deployment.settings.threads, server.service
    try:
        body = server.photo
        sent = POST + b"Content-Length: %d\r\n\r\n" % len(body) + body
        connections = [server.connect(sent) for _ in range(threads + 10)]
        wait_until(lambda: service._decoding == threads + 10)
        for _ in range(threads):
            assert entered.acquire(timeout=SOON)
        assert service._decoders._work_queue.qsize() == 0, "the others are in line on the event loop"
        for connection in connections:
            connection.close()
        wait_until(lambda: service._decoding == 0)
    finally:
        go_on.set()
    assert not entered.acquire(timeout=0.05), "nothing is decoded for who went away"


def test_every_answer_tells_browsers_not_to_guess(server: Running) -> None:
    for path, body in (("/classify", server.photo), ("/classify", b""), ("/nowhere", b"")):
        assert server.answer(path, body)[1]["x-content-type-options"] == "nosniff"


def test_half_a_surrogate_pair_is_a_bad_request(server: Running) -> None:
    for name, datatype in (("\ud800", "UINT8"), ("images", "\ud800")):
        tensor = {"name": name, "datatype": datatype, "shape": [1], "data": [1]}
        code, _, body = server.answer("/v2/models/tiny/infer", json.dumps({"inputs": [tensor]}).encode())
        assert code == 400
        assert "ud800" in json.loads(body)["error"]


def pixels(data: object) -> np.ndarray:
    shape = (SIZE, SIZE, 3)
    tensor = {"name": "images", "datatype": "UINT8", "shape": [1, *shape], "data": data}
    request = read_request(json.dumps({"inputs": [tensor]}).encode(), None, 1 << 20)
    return uint8_of(request.inputs[0], shape)


def test_texts_of_several_lengths_take_no_memory() -> None:
    data = ["x" * 1000] + [""] * 20_000  # 80 MB as an array
    tracemalloc.start()
    try:
        with pytest.raises(RequestError, match="Expected whole numbers from 0 to 255"):
            pixels(data)
        assert tracemalloc.get_traced_memory()[1] < 10e6
    finally:
        tracemalloc.stop()


NUMBERS = SIZE * SIZE * 3


@pytest.mark.parametrize(
    "data", [[256] * NUMBERS, [-1] * NUMBERS, [1.0] * NUMBERS, ["1"] * NUMBERS, [None], {"a": 1}, None, [[1], 2], []]
)
def test_json_that_is_no_pixels_is_a_bad_request(data: object) -> None:
    with pytest.raises(RequestError) as refused:
        pixels(data)
    assert refused.value.code == 400


def test_lists_in_lists_are_pixels_too() -> None:
    nested = [[[[row, column, 7] for column in range(SIZE)] for row in range(SIZE)]]
    assert pixels(nested).tolist() == nested


def test_an_address_of_this_machine_is_a_name_of_the_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[tuple[str, ...]] = []
    monkeypatch.setattr(Server, "run", lambda self, sockets: None)
    monkeypatch.setattr(serving, "make_app", lambda service, hosts: given.append(hosts))
    for host in ("127.0.0.2", "0.0.0.0"):
        serving.serve(make_deployment(tmp_path), Limits(), host, 0)
    assert is_loopback("127.0.0.2")
    assert "127.0.0.2" in given[0]
    assert given[1] == (), "from outside it may have any name"


def test_a_name_is_of_this_machine_alone_where_its_address_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[tuple[str, ...]] = []
    monkeypatch.setattr(Server, "run", lambda self, sockets: None)
    monkeypatch.setattr(serving, "make_app", lambda service, hosts: given.append(hosts))
    found = [(socket.AF_INET, socket.SOCK_STREAM, 0, "", ("127.0.1.1", 0))]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *args, **options: found)
    served = serving.serve(make_deployment(tmp_path), Limits(), "Workstation", 0)
    assert served.url.startswith("http://127.0.1.1:")
    assert {"workstation", "127.0.1.1", "localhost"} <= set(given[0]), "another site cannot ask it by its own name"


@pytest.mark.parametrize(
    ("host", "expected"),
    [("127.1", True), ("::ffff:127.0.0.1", True), ("::1", True), ("::", False), ("0.0.0.0", False), ("", False)],
)
def test_an_address_in_any_form_is_that_address(host: str, expected: bool) -> None:
    assert is_loopback(host) is expected


def test_an_address_of_another_machine_is_told_from_a_port_in_use() -> None:
    with pytest.raises(ProjectError, match=r"Expected an address of this machine for --host. Received: '192.0.2.1'"):
        serving._bind("192.0.2.1", 0)


def test_what_a_stop_does_not_wait_for_is_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    entered, go_on = threading.Event(), threading.Event()

    def stuck(self: Service, content: bytes) -> Decoded:
        entered.set()
        go_on.wait(SOON)
        raise MemoryError

    monkeypatch.setattr(Service, "_decode", stuck)
    with running(tmp_path, stop_seconds=0.1) as stopping, stopping.connect(POST + b"Content-Length: 1\r\n\r\nx"):
        assert entered.wait(SOON)
        stopping.server.should_exit = True
        wait_until(lambda: stopping.server.unanswered == 1)
        go_on.set()
        stopping.thread.join(SOON)
    assert stopping.server.unanswered == 1
