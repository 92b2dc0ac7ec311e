"""What every request passes: its host, its body within limits of size and time, and its errors as JSON.

An ASGI middleware. A route gets the whole body at once; what is refused is refused before a route sees it. When the
client goes away the route is cancelled, so that nothing is computed for nobody.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import time
from collections.abc import Mapping
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from export.words import count
from pipeline.server.errors import BUG, RequestError, busy
from pipeline.server.service import Service

log = logging.getLogger(__name__)

_DRAIN_SECONDS = 1.0  # that a client which is refused may go on sending, so that it reads why
_NO_SNIFF = (b"x-content-type-options", b"nosniff")
LOCAL_NAMES = ("localhost", "127.0.0.1", "[::1]")


class _Answer:
    """Passes an answer on, and remembers its status; a browser is not to guess what it is."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self.code = 0

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.code = message["status"]
            headers = list(message.get("headers", ()))
            if all(name != _NO_SNIFF[0] for name, _ in headers):
                message = {**message, "headers": [*headers, _NO_SNIFF]}
        await self._send(message)


class Front:
    """The outermost layer of the server.

    Args:
        app: the routes.
        service: what answers; its limits hold.
        labels: paths by the functions that answer, for `Metrics`.
        hosts: names by which the server may be asked; none: any. With them, a page of another site can neither read
            answers through a name of its own that leads to this machine, nor have a browser send images here.
    """

    def __init__(self, app: ASGIApp, service: Service, labels: Mapping[Any, str], hosts: tuple[str, ...] = ()) -> None:
        self._app, self._service, self._labels, self._hosts = app, service, labels, hosts
        self._held = 0  # bytes of bodies

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            return
        began = time.perf_counter()
        answer = _Answer(send)
        held: list[int] = [0]
        try:
            self._check_host(scope)
            self._check_site(scope)
            body = await self._body(scope, receive, held)
            await self._route(scope, body, receive, answer)
        except _Gone:
            return
        except RequestError as error:
            if not answer.code:
                await refuse(error, answer, receive)
        except Exception:
            log.exception("A request failed; this is a bug of ours. Please report it with the lines below.")
            if not answer.code:
                await _send_json(answer, 500, BUG, {})
        finally:
            self._held -= held[0]
            label = self._labels.get(scope.get("endpoint"), "unknown")  # what a client sends must not become a label
            self._service.metrics.request(label, answer.code or 499, time.perf_counter() - began)

    def _check_host(self, scope: Scope) -> None:
        host = _header(scope, b"host").lower()
        name = host.rpartition(":")[0] if ":" in host.rpartition("]")[2] else host
        if self._hosts and name not in self._hosts:
            raise RequestError(
                421,
                f"Expected a request to {', '.join(self._hosts[:-1])} or {self._hosts[-1]}. Received: another host. "
                "Ask by one of these names, or start `serve` with --host 0.0.0.0, which takes any.",
                "wrong_host",
                close=True,
            )

    def _check_site(self, scope: Scope) -> None:
        # A browser sends a picture for any page without asking; behind a proxy its own page is still "same-origin".
        if self._hosts and scope["method"] not in ("GET", "HEAD") and _header(scope, b"sec-fetch-site") == "cross-site":
            raise RequestError(
                403,
                "Expected a request of this server's own page, or of a program. Received: one of another site's page.",
                "cross_site",
                close=True,
            )

    async def _body(self, scope: Scope, receive: Receive, held: list[int]) -> bytes:
        """Return the whole body; ``held`` is what it takes of the memory for all of them."""
        limits = self._service.limits
        encoding = _header(scope, b"content-encoding").lower()
        if encoding not in ("", "identity"):
            raise RequestError(
                415, f"Expected a body that is not compressed. Received: {encoding[:40]!r}.", "encoding", close=True
            )
        length = _header(scope, b"content-length")
        if length.isdecimal() and int(length) > limits.upload:
            raise _too_large(limits.upload)
        body = bytearray()
        deadline = time.perf_counter() + limits.body_seconds
        while True:
            left = deadline - time.perf_counter()
            try:
                message = await asyncio.wait_for(receive(), max(left, 0))
            except asyncio.TimeoutError:
                raise RequestError(
                    408,
                    f"Expected the body within {limits.body_seconds:g} s. Received: {count(len(body), 'byte')} of it.",
                    "too_slow",
                    close=True,
                ) from None
            if message["type"] == "http.disconnect":
                raise _Gone
            part = message.get("body", b"")
            if len(body) + len(part) > limits.upload:
                raise _too_large(limits.upload)
            if self._held + len(part) > limits.uploads:
                error = busy(
                    "Expected memory for the body. Received: too many large requests at once. Ask again later."
                )
                error.close = True
                raise error
            self._held += len(part)
            held[0] += len(part)
            body += part
            if not message.get("more_body", False):
                return bytes(body)

    async def _route(self, scope: Scope, body: bytes, receive: Receive, send: Send) -> None:
        """Run the route, until the client goes away."""
        given = False

        async def receive_body() -> Message:
            nonlocal given
            if given:
                return await receive()
            given = True
            return {"type": "http.request", "body": body, "more_body": False}

        route = asyncio.ensure_future(self._app(scope, receive_body, send))
        gone = asyncio.ensure_future(_until_gone(receive))
        try:
            await asyncio.wait({route, gone}, return_when=asyncio.FIRST_COMPLETED)
            if not route.done():
                raise _Gone
            route.result()
        finally:  # at the end of a stop's patience this task itself is cancelled
            gone.cancel()
            route.cancel()


async def refuse(error: RequestError, send: Send, receive: Receive) -> None:
    """Answer with an error."""
    await _send_json(send, error.code, error.body(), error.headers(), more=error.close)
    if error.close:
        # Closed at once, a client that still sends would see a broken connection instead of the answer.
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(_until_gone(receive), _DRAIN_SECONDS)
        await send({"type": "http.response.body", "body": b""})


async def crowded(scope: Scope, receive: Receive, send: Send) -> None:
    """Refuse any request, since too many connections are open."""
    error = busy("Expected fewer open connections. Received: one too many. Ask again later.")
    error.close = True
    await refuse(error, send, receive)


class _Gone(Exception):  # noqa: N818  # no error: nobody is left who could be told
    """The client closed the connection."""


async def _until_gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def _header(scope: Scope, name: bytes) -> str:
    return next((value.decode("latin-1").strip() for key, value in scope["headers"] if key == name), "")


def _too_large(most: int) -> RequestError:
    return RequestError(
        413,
        f"Expected at most {most >> 20} MiB. Received: more. Send less, or start `serve` with more --max-upload-mib.",
        "too_large",
        close=True,
    )


async def _send_json(send: Send, code: int, body: Any, headers: dict[str, str], *, more: bool = False) -> None:
    content = json.dumps(body).encode()
    fields = {"content-type": "application/json", "content-length": str(len(content)), **headers}
    await send(
        {
            "type": "http.response.start",
            "status": code,
            "headers": [(key.lower().encode(), value.encode("latin-1")) for key, value in fields.items()],
        }
    )
    await send({"type": "http.response.body", "body": content, "more_body": more})
