"""``python -m pipeline serve`` as a process: its port, its signals, its last line."""

from __future__ import annotations

import json
import logging
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from export.errors import ProjectError
from export.files import ROOT
from pipeline.cli import serve as serve_module
from pipeline.inference.deployment import Deployment
from pipeline.server import serve as serving
from pipeline.server.serve import Served, serve
from pipeline.server.service import Limits
from tests.conftest import Chain
from tests.pipeline.inference.deployments import make_deployment
from tests.pipeline.server.servers import SOON, until_closed

START = 60.0  # seconds that a process may take to answer, where the machine is busy


def errors(capsys: pytest.CaptureFixture[str]) -> str:
    return " ".join(capsys.readouterr().err.split())


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        return int(taken.getsockname()[1])


@contextmanager
def process(*arguments: str) -> Iterator[subprocess.Popen[str]]:
    with subprocess.Popen(
        [sys.executable, "-m", "pipeline", *arguments],
        cwd=ROOT,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as started:
        try:
            yield started
        finally:
            started.kill()


def connected(port: int, started: subprocess.Popen[str]) -> socket.socket:
    """Connect, once the process listens."""
    end = time.monotonic() + START
    while True:
        try:
            return socket.create_connection(("127.0.0.1", port), timeout=SOON)
        except ConnectionRefusedError:
            assert started.poll() is None, started.communicate()[1]
            assert time.monotonic() < end
            time.sleep(0.02)


def test_a_signal_in_the_middle_loses_no_request_and_the_last_line_says_what_was_done(
    finished_chain: Chain, capsys: pytest.CaptureFixture[str]
) -> None:
    port = free_port()
    photo = sorted(finished_chain.images.glob("red/*.png"))[0].read_bytes()
    request = b"POST /classify HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n" % len(photo) + photo
    options = ("--port", str(port), "--max-delay-ms", "500", "--max-batch", "64", "--json")
    with process(*finished_chain.arguments("serve", *options)) as started:
        connected(port, started).close()
        assert finished_chain.run("serve", "--port", str(port)) == 2
        assert f"Expected a free port of this machine for --host 127.0.0.1 --port {port}" in errors(capsys)
        connections = [connected(port, started) for _ in range(20)]
        for connection in connections:
            connection.sendall(request)
        with closing(connected(port, started)) as asking:  # behind the others on the event loop
            asking.sendall(b"GET /v2/health/ready HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
            assert until_closed(asking).startswith(b"HTTP/1.1 200 OK")
        started.send_signal(signal.SIGTERM)
        for connection in connections:
            with connection:
                received = until_closed(connection)
                assert received.startswith(b"HTTP/1.1 200 OK")
                assert json.loads(received.partition(b"\r\n\r\n")[2])["classes"][0]["class"] == "red"
        output, said = started.communicate(timeout=SOON)
    assert started.returncode == 0, said
    line = json.loads(output.splitlines()[-1])
    assert line["url"] == f"http://127.0.0.1:{port}/"
    assert line["requests"] == 21
    assert "Traceback" not in said


def test_a_port_in_use_is_told_before_the_model_is_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Deployment, "open", lambda self: pytest.fail("the model is opened"))
    with (
        socket.create_server(("127.0.0.1", 0)) as taken,
        pytest.raises(ProjectError, match=r"Expected a free port .*Address already in use"),
    ):
        serve(make_deployment(tmp_path), Limits(), "127.0.0.1", taken.getsockname()[1])


def test_a_port_that_another_takes_meanwhile_is_told_too(tmp_path: Path) -> None:
    """Two sockets may be bound to one port until one of them listens."""
    deployment, others = make_deployment(tmp_path), []
    bind = serving._bind

    def slow(host: str, port: int) -> socket.socket:
        bound = bind(host, port)
        others.append(bind(host, bound.getsockname()[1]))
        others[0].listen()
        return bound

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(serving, "_bind", slow)
        with pytest.raises(ProjectError, match=r"Expected a free port .*Address already in use"):
            serve(deployment, Limits(), "127.0.0.1", 0)
    others[0].close()


@pytest.mark.parametrize(("host", "port"), [("nowhere.invalid", 0), ("256.0.0.1", 0), ("192.0.2.1", 0), ("a" * 300, 0)])
def test_an_address_that_is_not_of_this_machine_is_told(tmp_path: Path, host: str, port: int) -> None:
    with pytest.raises(ProjectError, match=r"^Expected (an address|a free port) of this machine for --host"):
        serve(make_deployment(tmp_path), Limits(), host, port)


def served(monkeypatch: pytest.MonkeyPatch, unanswered: int = 0) -> None:
    """Serve nothing, and say so."""
    monkeypatch.setattr(serving, "serve", lambda *args: Served("http://127.0.0.1:1/", 3, unanswered))


def test_a_missing_package_is_told_with_the_command_that_installs_it(
    finished_chain: Chain, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    has = serve_module.version_of
    monkeypatch.setattr(serve_module, "version_of", lambda name: None if name == "uvicorn" else has(name))
    assert finished_chain.run("serve") == 2
    said = errors(capsys)
    assert "Received: no uvicorn. `make install-serve`" in said


def test_who_opens_it_to_others_is_warned(
    finished_chain: Chain, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    served(monkeypatch)
    for host, warned in (("127.0.0.1", False), ("localhost", False), ("::1", False), ("0.0.0.0", True), ("::", True)):
        assert finished_chain.run("serve", "--host", host) == 0
        assert ("others can reach this server" in errors(capsys)) == warned


def test_what_got_no_answer_is_said_and_is_the_exit_status(
    finished_chain: Chain, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    served(monkeypatch, unanswered=2)
    assert finished_chain.run("serve") == 3
    assert "2 requests in flight got no answer" in errors(capsys)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--port", "65536"), "Expected a port from 0 to 65535"),
        (("--port", "-1"), "Expected a port from 0 to 65535"),
        (("--max-delay-ms", "nan"), "Expected 0 to 10000 milliseconds"),
        (("--max-delay-ms", "-1"), "Expected 0 to 10000 milliseconds"),
        (("--max-upload-mib", "1025"), "Expected at most 1024 MiB"),
    ],
)
def test_options_out_of_range_are_refused(
    finished_chain: Chain, options: tuple[str, str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert finished_chain.run("serve", *options) == 2
    assert message in errors(capsys)


def test_a_hostile_form_writes_nothing_into_our_log(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    from tests.pipeline.server.servers import running

    with running(tmp_path) as server:
        server.ask("/classify", b"\0" * 100, {"Content-Type": "multipart/form-data; boundary=xyz"})
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []
