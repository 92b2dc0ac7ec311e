"""Runs the server: its socket, its signals, its end."""

from __future__ import annotations

import errno
import ipaddress
import logging
import socket
from collections.abc import Callable
from dataclasses import dataclass
from types import FrameType

import uvicorn

from export.errors import ProjectError
from pipeline.inference.deployment import Deployment
from pipeline.server.app import make_app
from pipeline.server.connections import protocol_of
from pipeline.server.front import LOCAL_NAMES
from pipeline.server.service import Limits, Service

log = logging.getLogger(__name__)

_KEEP_ALIVE = 30  # seconds that a connection may be idle


@dataclass(frozen=True)
class Served:
    """What a server did until it was stopped."""

    url: str
    requests: int
    unanswered: int  # that the stop did not wait for


class Server(uvicorn.Server):
    """A server that a signal stops gracefully, and that raises none again.

    Args:
        service: what answers; it is opened before the first connection is taken, and closed behind the last.
        hosts: names by which it may be asked, see `pipeline.server.front.Front`.
        ready: is called when it answers.
    """

    def __init__(self, service: Service, hosts: tuple[str, ...], ready: Callable[[], None] = lambda: None) -> None:
        limits = service.limits
        # Of every malformed form it would write a line: the client's to write.
        logging.getLogger("python_multipart").setLevel(logging.CRITICAL)
        super().__init__(
            uvicorn.Config(
                make_app(service, hosts),
                log_config=None,
                log_level="critical",  # a line for every malformed request is the client's to write
                access_log=False,
                server_header=False,
                http=protocol_of(limits),
                ws="none",
                lifespan="off",
                timeout_keep_alive=_KEEP_ALIVE,
                timeout_graceful_shutdown=limits.stop_seconds,  # type: ignore[arg-type]  # seconds of asyncio
            )
        )
        self._service, self._ready = service, ready
        self.unanswered = 0

    async def serve(self, sockets: list[socket.socket] | None = None) -> None:
        """Open the model, answer until stopped, close it."""
        async with self._service:
            await super().serve(sockets)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Begin to take connections."""
        for each in sockets or ():
            each.listen()  # here too, because uvloop does not say when it cannot
        await super().startup(sockets)
        self._ready()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Take no more connections, and answer what is in flight."""
        self._service.draining = True
        await super().shutdown(sockets)
        self.unanswered = len(self.server_state.tasks)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Stop; at the second signal, without waiting for requests in flight."""
        self.force_exit = self.should_exit
        self.should_exit = True


def is_loopback(host: str) -> bool:
    """Return whether nobody but this machine reaches an address, or the first address of a name."""
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)[0][4][0]
        address = ipaddress.ip_address(str(found).partition("%")[0])
    except (OSError, UnicodeError, ValueError):
        return False
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return (mapped or address).is_loopback


def local_names(host: str, address: str) -> tuple[str, ...]:
    """Return the names by which a server for this machine alone may be asked, each once; where others reach it: any.

    Args:
        host: as it was named.
        address: that it is bound to.
    """
    names = dict.fromkeys((*LOCAL_NAMES, _bracketed(host).lower(), _bracketed(address)))
    return tuple(names) if is_loopback(host) else ()


def serve(
    deployment: Deployment, limits: Limits, host: str, port: int, ready: Callable[[str], None] = lambda url: None
) -> Served:
    """Answer requests until SIGTERM or Ctrl-C; requests in flight are answered first.

    Args:
        deployment: what answers.
        limits: how much it takes.
        host: address or name of this machine.
        port: 0: a free one.
        ready: is told the URL when the server answers.

    Raises:
        ProjectError: the address cannot be bound, or the model cannot be opened.
    """
    bound = _bind(host, port)
    with bound:
        url = _url(bound)
        server = Server(Service(deployment, limits), local_names(host, bound.getsockname()[0]), lambda: ready(url))
        try:
            server.run([bound])
        except OSError as error:
            if error.errno == errno.EADDRINUSE:  # who bound it too was the first to take connections
                raise _no_port(host, port, error) from None
            raise
    return Served(url, server.server_state.total_requests, server.unanswered)


def _bind(host: str, port: int) -> socket.socket:
    """Return a socket with its address; nobody can connect before it listens."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        bound = socket.socket(family, kind, protocol)
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    except (OSError, UnicodeError) as error:
        raise _no_address(host, error) from None
    try:
        bound.bind(address)  # here, so that a port in use shows before a model is loaded
    except (OSError, OverflowError) as error:
        bound.close()
        if isinstance(error, OSError) and error.errno == errno.EADDRNOTAVAIL:
            raise _no_address(host, error) from None
        raise _no_port(host, port, error) from None
    return bound


def _no_address(host: str, error: OSError | UnicodeError) -> ProjectError:
    return ProjectError(
        f"Expected an address of this machine for --host. Received: {host!r} ({error}). Take 127.0.0.1 for this "
        "machine alone, or 0.0.0.0 for others too."
    )


def _no_port(host: str, port: int, error: OSError | OverflowError) -> ProjectError:
    return ProjectError(
        f"Expected a free port of this machine for --host {host} --port {port}. Received: "
        f"{getattr(error, 'strerror', None) or error}. Take another port; --port 0 picks one."
    )


def _url(bound: socket.socket) -> str:
    host, port = bound.getsockname()[:2]
    return f"http://{_bracketed(host)}:{port}/"


def _bracketed(host: str) -> str:
    """Return a host as URLs and requests write it."""
    return f"[{host}]" if ":" in host else host
