"""An HTTP/1.1 client of one connection that stays open: little more than the bytes, so that it costs little itself.

It asks servers of this machine alone, and one request at a time. An answer needs a Content-Length, which those of a
server that answers in JSON have.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from typing import Final, NamedTuple

from export.errors import ProjectError

HOST: Final = "127.0.0.1"
MOST_BYTES = 64 * 2**20  # of an answer
_END = b"\r\n\r\n"


class NoAnswerError(ProjectError):
    """A request got no answer; the message is the reason, in the same words for the same reason."""


class Reply(NamedTuple):
    """An answer.

    Attributes:
        status: such as 200.
        headers: by their names in small letters.
        body: bytes.
        received: when it was complete, as `time.perf_counter` tells it.
    """

    status: int
    headers: Mapping[str, str]
    body: bytes
    received: float


def request_bytes(method: str, path: str, body: bytes = b"", headers: Mapping[str, str] | None = None) -> bytes:
    """Return a whole request.

    Args:
        method: such as "POST".
        path: with its query.
        body: bytes. Defaults to none.
        headers: besides Host and Content-Length. Defaults to none.
    """
    lines = [f"{method} {path} HTTP/1.1", f"Host: {HOST}", f"Content-Length: {len(body)}"]
    lines += [f"{name}: {value}" for name, value in (headers or {}).items()]
    return "\r\n".join(lines).encode("ascii") + _END + body


class Connection(asyncio.Protocol):
    """A connection; `connect` opens one."""

    def __init__(self) -> None:
        self._transport: asyncio.Transport
        self._received = bytearray()
        self._head: tuple[int, dict[str, str], int, int] | None = None
        self._waiting: asyncio.Future[Reply] | None = None
        self.is_open = False

    async def ask(self, request: bytes, patience: float) -> Reply:
        """Send a request and return its answer.

        Args:
            request: the bytes of `request_bytes`.
            patience: seconds until it counts as not answered.

        Raises:
            NoAnswerError: no answer came, or none that can be read. The connection is closed then.
        """
        if not self.is_open:
            raise NoAnswerError("connection closed")
        loop = asyncio.get_running_loop()
        self._waiting = loop.create_future()
        timer = loop.call_later(patience, self._give_up, f"no answer within {patience:g} s")
        self._transport.write(request)
        try:
            return await self._waiting
        finally:
            timer.cancel()
            self._waiting = None

    def close(self) -> None:
        """Close the connection."""
        self.is_open = False
        self._transport.close()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Take the transport; called by the event loop."""
        assert isinstance(transport, asyncio.Transport)
        self._transport, self.is_open = transport, True

    def connection_lost(self, exc: Exception | None) -> None:
        """Tell who waits; called by the event loop."""
        self.is_open = False
        self._fail("connection reset" if exc else "connection closed")

    def data_received(self, data: bytes) -> None:
        """Take the next bytes, and hand over the answer once it is whole; called by the event loop."""
        self._received += data
        if self._head is None:
            end = self._received.find(_END)
            if end < 0:
                if len(self._received) > MOST_BYTES:
                    self._give_up("an answer without an end of its headers")
                return
            try:
                status, headers = _parse_head(bytes(self._received[:end]))
                length = int(headers["content-length"])
            except (KeyError, ValueError):
                self._give_up("an answer that is no HTTP/1.1 with a Content-Length")
                return
            if not 0 <= length <= MOST_BYTES:
                self._give_up("an answer of too many bytes")
                return
            self._head = status, headers, end + len(_END), length
        status, headers, start, length = self._head
        if len(self._received) < start + length:
            return
        if len(self._received) > start + length or self._waiting is None or self._waiting.done():
            self._give_up("an answer that nobody asked for")
            return
        reply = Reply(status, headers, bytes(self._received[start:]), time.perf_counter())
        self._received.clear()
        self._head = None
        if headers.get("connection", "").lower() == "close":
            self.close()
        self._waiting.set_result(reply)

    def _give_up(self, reason: str) -> None:
        self._fail(reason)
        self.is_open = False
        self._transport.abort()

    def _fail(self, reason: str) -> None:
        if self._waiting is not None and not self._waiting.done():
            self._waiting.set_exception(NoAnswerError(reason))


async def connect(port: int) -> Connection:
    """Open a connection to a port of this machine.

    Raises:
        NoAnswerError: nobody takes it.
    """
    try:
        _, connection = await asyncio.get_running_loop().create_connection(Connection, HOST, port)
    except OSError as error:
        raise NoAnswerError(f"no connection: {error.strerror or error}") from None
    return connection


def _parse_head(head: bytes) -> tuple[int, dict[str, str]]:
    """Return the status and the headers of an answer; raise ValueError where it is none."""
    first, *lines = head.decode("latin-1").split("\r\n")
    version, _, status = first.partition(" ")
    if version != "HTTP/1.1":
        raise ValueError(first)
    headers = {}
    for line in lines:
        name, _, value = line.partition(":")
        headers[name.strip().lower()] = value.strip()
    return int(status[:3]), headers
