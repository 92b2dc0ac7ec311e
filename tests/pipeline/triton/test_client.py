"""`client.py` of a repository, as a person starts it, against a server that answers from the repository."""

from __future__ import annotations

import csv
import io
import json
import struct
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest

from tests.fakes.triton import TritonError, ask, load
from tests.pipeline.inference.deployments import CARD, make_photos
from tests.pipeline.triton.recipes import make_recipe, write_repository


class Server(BaseHTTPRequestHandler):
    """The part of the Open Inference Protocol that the client speaks, with tensors in binary."""

    ensemble: object  # of the repository
    labels: list[str]

    def log_message(self, *_: object) -> None: ...

    def do_GET(self) -> None:
        self._send(200 if self.path == "/v2/models/tiny_files/ready" else 400, b"")

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        length = int(self.headers["Inference-Header-Content-Length"])
        request = json.loads(body[:length])
        assert request["inputs"][0]["name"] == "files"
        assert (request["inputs"][0]["shape"], request["inputs"][0]["datatype"]) == ([1, 1], "BYTES")
        (size,) = struct.unpack_from("<I", body, length)
        assert size == len(body) - length - 4
        try:
            answers = ask(self.ensemble, {"files": np.array([[body[length + 4 :]]], object)})
        except TritonError as error:
            self._send(400, json.dumps({"error": str(error)}).encode())
            return
        (wanted,) = request["outputs"]
        row = answers[wanted["name"]][0]
        best = row.argsort()[::-1][: wanted["parameters"]["classification"]]
        texts = [f"{row[index]:f}:{index}:{self.labels[index]}".encode() for index in best]
        data = b"".join(struct.pack("<I", len(text)) + text for text in texts)
        output = {"name": wanted["name"], "datatype": "BYTES", "shape": [1, len(best)]}
        output["parameters"] = {"binary_data_size": len(data)}
        head = json.dumps({"model_name": "tiny_files", "model_version": "1", "outputs": [output]}).encode()
        self._send(200, head + data, len(head))

    def _send(self, status: int, body: bytes, head: int | None = None) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        if head is not None:
            self.send_header("Inference-Header-Content-Length", str(head))
        self.end_headers()
        self.wfile.write(body)


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("recipe")
    assert write_repository(make_recipe(folder), folder / "repository") == 0
    return folder / "repository"


@pytest.fixture(scope="module")
def url(repository: Path) -> Iterator[str]:
    Server.ensemble, Server.labels = load(repository, "tiny_files"), list(CARD.classes)
    with ThreadingHTTPServer(("127.0.0.1", 0), Server) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"127.0.0.1:{server.server_port}"
        server.shutdown()


def run(repository: Path, *words: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-I", str(repository / "client.py"), *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


def test_a_line_a_class_and_what_has_no_answer_is_named(repository: Path, url: str, tmp_path: Path) -> None:
    photos = make_photos(tmp_path, 2)
    bad, missing = tmp_path / "bad.jpg", tmp_path / "missing.jpg"
    bad.write_bytes(b"no image")
    done = run(repository, "--url", url, "--top-k", "2", photos[0], bad, missing, photos[1])
    assert done.returncode == 3, done.stderr
    rows = list(csv.DictReader(io.StringIO(done.stdout)))
    assert [row["path"] for row in rows] == [str(photos[0])] * 2 + [str(photos[1])] * 2
    for number, photo in enumerate(photos):
        pixels = CARD.decode.pixels(photo)[None]
        expected = ask(load(repository, "tiny"), {"images": pixels})["probabilities"][0]
        best = [CARD.classes[index] for index in expected.argsort()[::-1][:2]]
        assert [row["class"] for row in rows[2 * number : 2 * number + 2]] == best
        assert float(rows[2 * number]["probability"]) == pytest.approx(expected.max(), abs=1e-6)
    said = done.stderr.splitlines()
    assert said[0].startswith(f"{bad}: [400] image 0 of 1: not_an_image")
    assert said[1].startswith(f"{missing}: ")
    assert "No such file" in said[1]


def test_a_model_that_is_not_there_and_no_server_are_one_sentence(repository: Path, url: str) -> None:
    done = run(repository, "--url", url, "--model", "other", "x.jpg")
    assert (done.returncode, done.stdout) == (2, "")
    assert f"other is not ready on {url}" in done.stderr
    with ThreadingHTTPServer(("127.0.0.1", 0), Server) as closed:
        port = closed.server_port
    done = run(repository, "--url", f"127.0.0.1:{port}", "x.jpg")
    assert done.returncode == 2
    assert f"no server on 127.0.0.1:{port}" in done.stderr
    assert "Traceback" not in done.stderr


def test_the_address_may_be_the_one_that_serve_prints(repository: Path, url: str, tmp_path: Path) -> None:
    (photo,) = make_photos(tmp_path, 1)
    done = run(repository, "--url", f"http://{url}/", photo)
    assert (done.returncode, len(done.stdout.splitlines())) == (0, 2), done.stderr


def test_another_scheme_is_one_sentence(repository: Path) -> None:
    done = run(repository, "--url", "https://localhost:8000", "x.jpg")
    assert (done.returncode, done.stdout) == (2, "")
    assert "expected host and port after --url, as localhost:8000, not https://localhost:8000" in done.stderr
    assert "Traceback" not in done.stderr


def test_no_classes_are_refused(repository: Path) -> None:
    done = run(repository, "--top-k", "0", "x.jpg")
    assert (done.returncode, done.stdout) == (2, "")
    assert "expected a number of at least 1 after --top-k, not 0" in done.stderr


def test_the_model_is_that_of_the_repository_beside_it(repository: Path) -> None:
    done = run(repository, "--help")
    assert done.returncode == 0
    assert "default: tiny_files" in done.stdout
