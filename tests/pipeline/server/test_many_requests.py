"""Many requests at a time: no wrong answer, none lost, no memory kept."""

from __future__ import annotations

import http.client
import io
import json
import threading
import time
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.pipeline.server.servers import SOON, Running, running

AT_A_TIME = 64


def picture(index: int) -> bytes:
    """A picture that no other index has, as PNG."""
    drawn = np.random.default_rng(index)
    file = io.BytesIO()
    pixels = (drawn.integers(0, 256, 3) + drawn.integers(0, 60, (16 + index % 5, 20, 3))) % 256
    Image.fromarray(pixels.astype(np.uint8)).save(file, "PNG")
    return file.getvalue()


def ask_all(server: Running, pictures: Sequence[bytes]) -> tuple[dict[int, dict[str, float]], list[float]]:
    """Return the classes of each picture by its index, and the seconds of each answer."""
    answers: dict[int, dict[str, float]] = {}
    seconds: list[float] = []

    def client(first: int) -> None:
        with closing(http.client.HTTPConnection("127.0.0.1", server.port, timeout=6 * SOON)) as connection:
            for index in range(first, len(pictures), AT_A_TIME):
                began = time.perf_counter()
                connection.request("POST", "/classify?top_k=4", pictures[index])
                response = connection.getresponse()
                body = response.read()
                seconds.append(time.perf_counter() - began)
                assert response.status == 200, body
                answers[index] = {each["class"]: each["probability"] for each in json.loads(body)["classes"]}

    threads = [threading.Thread(target=client, args=(first,)) for first in range(AT_A_TIME)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return answers, seconds


def compared(server: Running, number: int) -> list[float]:
    """Ask for as many pictures, compare every answer with that of the picture alone; return the seconds of each."""
    pictures = [picture(index) for index in range(number)]
    answers, seconds = ask_all(server, pictures)
    assert len(answers) == number, "none is lost"
    classes = server.deployment.card.classes
    with server.deployment.open() as classifier:
        for index, content in enumerate(pictures):
            pixels = server.deployment.card.decode.decode(content).pixels.copy()
            alone = classifier.runner.infer(pixels[None]).probabilities[0]
            assert answers[index] == pytest.approx(dict(zip(classes, alone.tolist())), abs=1e-6)
    return seconds


def test_every_answer_of_many_at_a_time_is_that_of_its_picture(tmp_path: Path) -> None:
    with running(tmp_path, max_batch=8, header_seconds=SOON) as server:
        compared(server, 400)
        assert server.metrics()["classifier_batch_images_count",] < 400, "some were computed together"


@pytest.mark.slow
def test_ten_thousand_requests_keep_no_memory(tmp_path: Path) -> None:
    with running(tmp_path, max_batch=32, header_seconds=SOON) as server:
        compared(server, 2000)
        memory = "process_resident_memory_bytes"
        before = server.metrics()[memory,]
        seconds = sorted(compared(server, 10_000))
        assert server.metrics()[memory,] - before < 64e6  # 10,000 pictures and answers of this test are 20 MB of it
        assert seconds[int(0.99 * len(seconds))] < SOON
        print(f"p50 {seconds[5000]:.3f} s, p99 {seconds[9900]:.3f} s, {server.metrics()[memory,] - before:.0f} bytes")
