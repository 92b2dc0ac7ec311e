"""What the tests ask: pictures that are none, which the stub answers all the same, and the routes."""

from __future__ import annotations

from dataclasses import replace

from benchmarks.server.load import Question, ask_alone
from benchmarks.server.routes import CLASSIFY, make_routes
from tests.benchmarks.server import stub
from tests.pipeline.inference import deployments

CARD = replace(deployments.CARD, classes=stub.CLASSES)
ROUTES = make_routes("tiny", CARD, 5)
PLAIN = ROUTES[CLASSIFY]
PICTURES = [b"picture %d" % number for number in range(7)]


def ask_all_alone(port: int) -> list[Question]:
    """Ask about every picture alone, and return what to ask again."""
    answers, _ = ask_alone(port, PLAIN, PICTURES, 5)
    return [Question(PLAIN.request(file), answer) for file, answer in zip(PICTURES, answers)]
