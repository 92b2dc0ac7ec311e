"""HTTP connections with a deadline and a limit for headers, which uvicorn's own have not."""

from __future__ import annotations

import asyncio

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from pipeline.server.service import Limits


def protocol_of(limits: Limits) -> type[asyncio.Protocol]:
    """Return the class of a connection, by limits."""

    class Connection(HttpToolsProtocol):
        """Closed when headers take too long, or are too many."""

        _deadline: asyncio.TimerHandle | None = None
        _header_bytes = 0
        _in_headers = True

        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            super().connection_made(transport)
            self._await_headers()

        def connection_lost(self, exc: Exception | None) -> None:
            self._headers_done()
            super().connection_lost(exc)

        def data_received(self, data: bytes) -> None:
            if self._in_headers:
                self._header_bytes += len(data)
            super().data_received(data)
            if self._in_headers and self._header_bytes > limits.header_bytes:
                self.send_400_response(f"Expected at most {limits.header_bytes} bytes of headers.")

        def on_message_begin(self) -> None:
            super().on_message_begin()
            self._await_headers()

        def on_headers_complete(self) -> None:
            self._headers_done()
            super().on_headers_complete()

        def _await_headers(self) -> None:
            self._headers_done()
            self._in_headers, self._header_bytes = True, 0
            self._deadline = self.loop.call_later(limits.header_seconds, self._too_slow)

        def _headers_done(self) -> None:
            self._in_headers = False
            if self._deadline is not None:
                self._deadline.cancel()
                self._deadline = None

        def _too_slow(self) -> None:
            if not self.transport.is_closing():
                self.transport.close()

    made: type[asyncio.Protocol] = Connection
    return made
