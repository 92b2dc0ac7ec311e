"""A server of the small classifier in a thread, on 127.0.0.1, and raw requests to it."""

from __future__ import annotations

import http.client
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from prometheus_client.parser import text_string_to_metric_families

from pipeline.server import serve as serving
from pipeline.server.front import LOCAL_NAMES
from pipeline.server.serve import Server
from pipeline.server.service import Limits, Service
from tests.pipeline.inference.deployments import make_deployment, make_photos

SOON = 10.0  # seconds, of which a test takes few
POST = b"POST /classify HTTP/1.1\r\nHost: localhost\r\n"


class Answer(NamedTuple):
    """An answer over HTTP."""

    code: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        """The body, which is JSON."""
        assert self.headers["content-type"] == "application/json", self.body
        return json.loads(self.body)


class Running:
    """A server in a thread."""

    def __init__(
        self, folder: Path, limits: Limits, hosts: tuple[str, ...] = LOCAL_NAMES, settings: Mapping[str, Any] = {}
    ) -> None:
        folder.mkdir(exist_ok=True)
        self.photos = [path.read_bytes() for path in make_photos(folder / "photos")]
        self.photo = self.photos[0]
        self.deployment = make_deployment(folder, **settings)
        self.service = Service(self.deployment, limits)
        bound = serving._bind("127.0.0.1", 0)
        self.port = bound.getsockname()[1]
        answers = threading.Event()
        self.server = Server(self.service, hosts, answers.set)
        self.thread = threading.Thread(target=self.server.run, args=([bound],))
        self.thread.start()
        assert answers.wait(SOON)

    def connect(self, sent: bytes = b"") -> socket.socket:
        """Open a connection, and send bytes."""
        connection = socket.create_connection(("127.0.0.1", self.port), timeout=SOON)
        connection.sendall(sent)
        return connection

    def answer(self, path: str, body: bytes | None, host: str = "localhost") -> tuple[int, dict[str, str], bytes]:
        """Return the answer to a POST."""
        return self.ask(path, body, {"Host": host})

    def ask(
        self, path: str, body: bytes | None = None, headers: Mapping[str, str] = {}, method: str = "POST"
    ) -> Answer:
        """Return the answer to a request on a connection of its own."""
        with closing(http.client.HTTPConnection("127.0.0.1", self.port, timeout=SOON)) as client:
            client.request(method, path, body, dict(headers))
            response = client.getresponse()
            fields = {key.lower(): value for key, value in response.getheaders()}
            return Answer(response.status, fields, response.read())

    def metrics(self) -> dict[tuple[str, ...], float]:
        """Return the server's numbers by their names and the values of their labels."""
        families = text_string_to_metric_families(self.ask("/metrics", method="GET").body.decode())
        samples = (sample for family in families for sample in family.samples)
        return {
            (sample.name, *(value for _, value in sorted(sample.labels.items()))): sample.value for sample in samples
        }

    def stop(self) -> None:
        """Stop as a signal does."""
        self.server.should_exit = True
        self.thread.join(SOON)
        assert not self.thread.is_alive()


@contextmanager
def running(
    folder: Path, hosts: tuple[str, ...] = LOCAL_NAMES, settings: Mapping[str, Any] = {}, **limits: Any
) -> Iterator[Running]:
    """Run a server whose patience with slow clients is short."""
    server = Running(folder, Limits(**{"header_seconds": 0.3, "body_seconds": 1.0} | limits), hosts, settings)
    try:
        yield server
    finally:
        server.stop()


def wait_until(true: Callable[[], bool]) -> None:
    """Wait until something is so; fail where it does not become so."""
    end = time.monotonic() + SOON
    while not true():
        assert time.monotonic() < end
        time.sleep(0.005)


def until_closed(connection: socket.socket) -> bytes:
    """Return what is received until the other side closes; fail where it does not."""
    received = b""
    while part := connection.recv(65536):
        received += part
    return received
