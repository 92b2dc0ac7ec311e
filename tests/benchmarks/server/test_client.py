"""What a server may send instead of an answer ends the wait, with the reason."""

from __future__ import annotations

import asyncio

import pytest

from benchmarks.server.client import NoAnswerError, connect, request_bytes

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


def ask(*pieces: bytes, times: int = 1) -> list[bytes]:
    """Ask a server that sends these pieces, one by one, and closes the connection after the last."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        for piece in pieces:
            writer.write(piece)
            await writer.drain()
            await asyncio.sleep(0.01)
        writer.close()

    async def run() -> list[bytes]:
        async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
            connection = await connect(server.sockets[0].getsockname()[1])
            return [(await connection.ask(request_bytes("GET", "/"), 5)).body for _ in range(times)]

    return asyncio.run(run())


def test_an_answer_may_come_in_pieces() -> None:
    assert ask(*(OK[at : at + 1] for at in range(0, len(OK)))) == [b"ok"]
    assert ask(b"HTTP/1.1 200 OK\r\nX-Y: 1:2\r\nCONTENT-LENGTH:0\r\n\r\n") == [b""]


@pytest.mark.parametrize(
    ("pieces", "reason"),
    [
        ((), "connection closed"),
        ((OK[:-1],), "connection closed"),
        ((b"HTTP/1.1 200 OK\r\n\r\nok",), "no HTTP/1.1 with a Content-Length"),
        ((b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n",), "too many bytes"),
        ((b"HTTP/1.1 200 OK\r\nContent-Length: 999999999999\r\n\r\n",), "too many bytes"),
        ((b"SSH-2.0-x\r\n\r\n",), "no HTTP/1.1"),
        ((OK + b"more",), "nobody asked for"),
    ],
)
def test_what_is_no_answer_is_said(pieces: tuple[bytes, ...], reason: str) -> None:
    with pytest.raises(NoAnswerError, match=reason):
        ask(*pieces)


def test_a_closed_connection_is_not_used_again() -> None:
    closing = OK.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n")
    assert ask(closing) == [b"ok"]
    with pytest.raises(NoAnswerError, match="connection closed"):
        ask(closing, times=2)
