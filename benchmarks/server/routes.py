"""The ways to ask the server about a picture, and what is right: what it answered when it was asked alone."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np

from benchmarks.server.client import NoAnswerError, Reply, request_bytes
from pipeline.models.model_card import ModelCard
from pipeline.serving.protocol import ANSWERS, FILES, PIXELS, files_model

CLASSIFY, V2_FILES, V2_PIXELS = "classify", "v2-files", "v2-pixels"
TOLERANCE = 1e-4  # of a probability: batches of other sizes are computed by other kernels
HEADER_LENGTH: Final = "Inference-Header-Content-Length"
_PROBABILITIES: Final = ANSWERS[1]


@dataclass(frozen=True)
class Answer:
    """What the server says about a picture.

    Attributes:
        classes: the best ones with their probabilities, best first.
        milliseconds: that the server took, by part; empty where the route does not say.
        answered_by: file, backend, precision and verdict; empty where the route does not say.
    """

    classes: tuple[tuple[str, float], ...]
    milliseconds: Mapping[str, float] = field(default_factory=dict)
    answered_by: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Route:
    """A way to ask.

    Attributes:
        name: of it.
        path: of its URL.
        request: makes the bytes of a request from those of an image file.
        read: gives the answer of a reply with status 200; any exception means that it is none.
    """

    name: str
    path: str
    request: Callable[[bytes], bytes]
    read: Callable[[Reply], Answer]


def make_routes(name: str, card: ModelCard, top_k: int) -> dict[str, Route]:
    """Return the routes by name.

    Args:
        name: of the recipe.
        card: of its model.
        top_k: number of classes that are compared.
    """
    top_k = min(top_k, len(card.classes))

    def pixels(file: bytes) -> bytes:
        return card.decode.pixels(file).tobytes()

    def tensor_route(route: str, model: str, encode: Callable[[bytes], bytes], tensor: Mapping[str, object]) -> Route:
        path = f"/v2/models/{model}/infer"
        return Route(
            route,
            path,
            lambda file: _tensor_request(path, encode(file), tensor),
            lambda reply: _read_tensors(reply, card.classes, top_k),
        )

    classify = f"/classify?top_k={top_k}"
    height, width = card.size
    return {
        CLASSIFY: Route(CLASSIFY, "/classify", lambda file: request_bytes("POST", classify, file), _read_classify),
        V2_FILES: tensor_route(
            V2_FILES,
            files_model(name),
            lambda file: struct.pack("<I", len(file)) + file,
            {"name": FILES, "datatype": "BYTES", "shape": [1, 1]},
        ),
        V2_PIXELS: tensor_route(
            V2_PIXELS, name, pixels, {"name": PIXELS, "datatype": "UINT8", "shape": [1, height, width, 3]}
        ),
    }


def read_answer(route: Route, reply: Reply) -> Answer:
    """Return the answer in a reply.

    Raises:
        NoAnswerError: another status than 200, or a body that is no answer of this route.
    """
    if reply.status != 200:
        raise NoAnswerError(f"status {reply.status}{_complaint(reply)}")
    try:
        return route.read(reply)
    except Exception:  # whatever is wrong with the body of a reply, it is no answer
        raise NoAnswerError("status 200 and no answer in the body") from None


def is_same(answer: Answer, reference: Answer) -> bool:
    """Return whether the best class is the same and each class has the same probability, within `TOLERANCE`.

    Where two of the lowest classes are that close, either may be the one that is left out.
    """
    if len(answer.classes) != len(reference.classes) or answer.classes[0][0] != reference.classes[0][0]:
        return False
    probabilities, least = dict(answer.classes), answer.classes[-1][1]
    return all(abs(probabilities.get(name, least) - value) <= TOLERANCE for name, value in reference.classes)


def _tensor_request(path: str, data: bytes, tensor: Mapping[str, object]) -> bytes:
    head = json.dumps(
        {
            "inputs": [{**tensor, "parameters": {"binary_data_size": len(data)}}],
            "outputs": [{"name": _PROBABILITIES, "parameters": {"binary_data": True}}],
        }
    ).encode("ascii")
    headers = {"Content-Type": "application/octet-stream", HEADER_LENGTH: str(len(head))}
    return request_bytes("POST", path, head + data, headers)


def _read_tensors(reply: Reply, classes: Sequence[str], top_k: int) -> Answer:
    length = int(reply.headers[HEADER_LENGTH.lower()])
    (output,) = json.loads(reply.body[:length])["outputs"]
    if output["name"] != _PROBABILITIES or output["shape"] != [1, len(classes)] or output["datatype"] != "FP32":
        raise ValueError(output)
    probabilities = np.frombuffer(reply.body[length:], "<f4", len(classes))
    best = np.argsort(-probabilities, kind="stable")[:top_k]
    return Answer(tuple((classes[index], float(probabilities[index])) for index in best))


def _read_classify(reply: Reply) -> Answer:
    said = json.loads(reply.body)
    classes = tuple((row["class"], float(row["probability"])) for row in said["classes"])
    if not classes:
        raise ValueError("no classes")
    return Answer(classes, said["milliseconds"], said["answered_by"])


def _complaint(reply: Reply) -> str:
    """Return the status in words that the server gave beside the number, such as ": damaged"."""
    try:
        return f": {json.loads(reply.body)['status']}"
    except (ValueError, KeyError, TypeError):
        return ""
