"""Each route asks for the same answer, and what differs from it is told apart."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from benchmarks.server.client import NoAnswerError, Reply
from benchmarks.server.load import ask_alone
from benchmarks.server.routes import CLASSIFY, V2_FILES, V2_PIXELS, Answer, is_same, make_routes, read_answer
from tests.benchmarks.server.asked import CARD
from tests.benchmarks.server.stub import Stub, probabilities, running
from tests.pipeline.inference.deployments import make_photos

ROUTES = make_routes("tiny", CARD, 3)


def expected(data: bytes) -> tuple[tuple[str, float], ...]:
    values = probabilities(data)
    return tuple((CARD.classes[place], pytest.approx(float(values[place]))) for place in np.argsort(-values)[:3])


def test_the_file_goes_as_a_body_and_as_a_tensor(tmp_path: Path) -> None:
    files = [path.read_bytes() for path in make_photos(tmp_path, 3)]
    with running(Stub()) as port:
        by_body, _ = ask_alone(port, ROUTES[CLASSIFY], files, 5)
        by_tensor, _ = ask_alone(port, ROUTES[V2_FILES], files, 5)
    assert [answer.classes for answer in by_tensor] == [expected(file) for file in files]
    assert [answer.classes[:3] for answer in by_body] == [expected(file) for file in files]
    assert by_body[0].answered_by["backend"] == "onnxruntime"


def test_pixels_go_as_the_card_decodes_them(tmp_path: Path) -> None:
    files = [path.read_bytes() for path in make_photos(tmp_path, 3)]
    with running(Stub()) as port:
        answers, _ = ask_alone(port, ROUTES[V2_PIXELS], files, 5)
    assert [answer.classes for answer in answers] == [expected(CARD.decode.pixels(file).tobytes()) for file in files]


@pytest.mark.parametrize(
    ("classes", "same"),
    [
        ((("a", 0.5), ("b", 0.3)), True),
        ((("a", 0.50009), ("b", 0.2999)), True),
        ((("a", 0.5002), ("b", 0.3)), False),
        ((("b", 0.5), ("a", 0.3)), False),
        ((("a", 0.5), ("c", 0.29995)), True),  # b is just below c
        ((("a", 0.5), ("c", 0.25)), False),
        ((("a", 0.5),), False),
        ((("a", 0.5), ("b", float("nan"))), False),
    ],
)
def test_what_is_the_same_answer(classes: tuple[tuple[str, float], ...], same: bool) -> None:
    assert is_same(Answer(classes), Answer((("a", 0.5), ("b", 0.3)))) is same


@pytest.mark.parametrize(
    ("status", "body", "reason"),
    [
        (422, b'{"error": "Expected", "status": "damaged"}', "status 422: damaged"),
        (404, b"nothing", "status 404"),
        (200, b"{}", "status 200 and no answer in the body"),
        (200, b'{"classes": [], "milliseconds": {}, "answered_by": {}}', "status 200 and no answer in the body"),
    ],
)
def test_what_is_no_answer_has_a_reason(status: int, body: bytes, reason: str) -> None:
    with pytest.raises(NoAnswerError) as caught:
        read_answer(ROUTES[CLASSIFY], Reply(status, {}, body, 0.0))
    assert str(caught.value) == reason
    with pytest.raises(NoAnswerError):
        read_answer(ROUTES[V2_FILES], Reply(status, {}, body, 0.0))
