"""HTTP connections with limits, which uvicorn's own have not: of headers, of requests that wait, of unread answers."""

from __future__ import annotations

import asyncio

from uvicorn._types import ASGI3Application
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from pipeline.server.front import crowded
from pipeline.server.service import Limits

_MOST_WAITING = 100  # requests that a client sends before it has the answers to those before


def protocol_of(limits: Limits) -> type[asyncio.Protocol]:
    """Return the class of a connection, by limits."""

    class Connection(HttpToolsProtocol):
        """Closed when headers take too long, or are too many; those behind a body in chunks are headers too.

        It is cut off when its client does not read the answers.
        """

        _deadline: asyncio.TimerHandle | None = None
        _unread: asyncio.TimerHandle | None = None  # the end of the patience with who does not read the answers
        _running: RequestResponseCycle | None = None  # the request that is answered; uvicorn's `cycle` is the newest
        _fields = 0  # bytes of the request's line and headers
        _kept = 0  # bytes since the parser last passed something on: it keeps a header until it has all of it

        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            super().connection_made(transport)
            self._await_headers()

        def connection_lost(self, exc: Exception | None) -> None:
            self._headers_done()
            self._read()
            if self._running is not None and not self._running.response_complete:
                self._running.disconnected = True
                self._running.message_event.set()
            self.pipeline.clear()
            super().connection_lost(exc)

        def _start_asgi_task(self, cycle: RequestResponseCycle, app: ASGI3Application) -> None:
            self._running = cycle
            super()._start_asgi_task(cycle, app)

        def data_received(self, data: bytes) -> None:
            self._kept += len(data)
            super().data_received(data)
            if self.transport.is_closing():
                return
            idle = self.cycle is None or self.cycle.response_complete
            if max(self._kept, self._fields) > limits.header_bytes:
                if idle:
                    self.send_400_response(f"Expected at most {limits.header_bytes} bytes of headers.")
                self.transport.close()
            elif idle and self._deadline is None:  # blank lines, which begin nothing, or a body that nobody reads
                self._await_headers()

        def on_message_begin(self) -> None:
            super().on_message_begin()
            self._fields = self._kept = 0
            self._await_headers()

        def on_url(self, url: bytes) -> None:
            self._fields, self._kept = self._fields + len(url), 0
            super().on_url(url)

        def on_header(self, name: bytes, value: bytes) -> None:
            self._fields, self._kept = self._fields + len(name) + len(value), 0
            super().on_header(name, value)

        def on_headers_complete(self) -> None:
            self._kept = 0
            self._headers_done()
            if len(self.pipeline) >= _MOST_WAITING:
                raise ValueError("too many requests that wait for others")  # the parser makes a status 400 of it
            if len(self.connections) > limits.connections:
                self.app = crowded
            super().on_headers_complete()

        def on_body(self, body: bytes) -> None:
            self._kept = 0
            super().on_body(body)

        def on_message_complete(self) -> None:
            self._kept = 0
            super().on_message_complete()

        def pause_writing(self) -> None:
            super().pause_writing()
            self._unread = self.loop.call_later(limits.body_seconds, self.transport.abort)

        def resume_writing(self) -> None:
            super().resume_writing()
            self._read()

        def timeout_keep_alive_handler(self) -> None:
            self._close()

        def _read(self) -> None:
            if self._unread is not None:
                self._unread.cancel()
                self._unread = None

        def _close(self) -> None:
            """Close the connection, although its client may never read what was sent before."""
            if not self.transport.is_closing():
                self.transport.close()
                self.loop.call_later(limits.header_seconds, self.transport.abort)

        def _await_headers(self) -> None:
            self._headers_done()
            self._deadline = self.loop.call_later(limits.header_seconds, self._close)

        def _headers_done(self) -> None:
            if self._deadline is not None:
                self._deadline.cancel()
                self._deadline = None

    made: type[asyncio.Protocol] = Connection
    return made
