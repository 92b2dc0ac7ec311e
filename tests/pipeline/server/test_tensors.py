"""Tensors of the Open Inference Protocol: what is malformed is refused, and costs no more than was sent."""

from __future__ import annotations

import json
import struct
import tracemalloc
from typing import Any

import numpy as np
import pytest

from pipeline.server.errors import RequestError
from pipeline.server.tensors import Output, Wanted, bytes_of, read_request, uint8_of, write_response

SHAPE = (2, 2, 3)
DATA = bytes(range(12))
TENSOR = {"name": "images", "datatype": "UINT8", "shape": [1, *SHAPE], "parameters": {"binary_data_size": 12}}
MOST = 1 << 20


def body(*inputs: dict[str, Any], data: bytes = DATA, **others: Any) -> tuple[bytes, str]:
    """A request in binary form, and the length of its JSON."""
    text = json.dumps({"inputs": list(inputs or (TENSOR,)), **others}).encode()
    return text + data, str(len(text))


def pixels(content: bytes, length: str | None) -> np.ndarray:
    return uint8_of(read_request(content, length, MOST).inputs[0], SHAPE)


def files(content: bytes, length: str | None) -> list[bytes]:
    return bytes_of(read_request(content, length, MOST).inputs[0], 4)


def test_binary_pixels_are_what_was_sent() -> None:
    assert pixels(*body()).tobytes() == DATA
    assert pixels(*body()).shape == (1, *SHAPE)


def test_json_pixels_are_what_was_sent() -> None:
    tensor = {"name": "images", "datatype": "UINT8", "shape": [1, *SHAPE], "data": list(DATA)}
    assert pixels(json.dumps({"inputs": [tensor]}).encode(), None).tobytes() == DATA


def test_tensors_behind_the_json_are_in_its_order() -> None:
    second = {"name": "more", "datatype": "UINT8", "shape": [2], "parameters": {"binary_data_size": 2}}
    inputs = read_request(*body(TENSOR, second, data=DATA + b"ab"), MOST).inputs
    assert [bytes(tensor.data) for tensor in inputs] == [DATA, b"ab"]


def test_outputs_are_asked_for_by_name_and_form() -> None:
    outputs = [
        {"name": "logits"},
        {"name": "probabilities", "parameters": {"binary_data": False, "classification": 3}},
    ]
    parameters = {"binary_data_output": True}
    request = read_request(*body(outputs=outputs, parameters=parameters, id="seven"), MOST)
    assert request.outputs == (Wanted("logits", True), Wanted("probabilities", False, 3))
    assert (request.id, request.binary) == ("seven", True)


def changed(**fields: Any) -> dict[str, Any]:
    return {key: value for key, value in (TENSOR | fields).items() if value is not ...}


HUGE = 2**40
MALFORMED: dict[str, tuple[bytes, str | None]] = {
    "no JSON": (b"images", None),
    "nothing": (b"", None),
    "no UTF-8": (b"\xff\xfe{}", None),
    "nested deeply": (b"[" * 500_000, None),
    "objects nested deeply": (b'{"inputs":' * 100_000, None),
    "a number of very many digits": (b'{"id": ' + b"9" * 100_000 + b"}", None),
    "no object": (b"[]", None),
    "inputs no list": (b'{"inputs": {}}', None),
    "very many inputs": (json.dumps({"inputs": [{}] * 100_000}).encode(), None),
    "very many outputs": body(outputs=[{"name": "logits"}] * 9),
    "input no object": (b'{"inputs": [1]}', None),
    "the same input twice": body(TENSOR, TENSOR, data=DATA * 2),
    "no name": body(changed(name=...)),
    "a name that is a number": body(changed(name=1)),
    "no datatype": body(changed(datatype=...)),
    "another datatype": body(changed(datatype="FP32")),
    "no shape": body(changed(shape=...)),
    "a shape of texts": body(changed(shape=["1", 2, 2, 3])),
    "a shape of true": body(changed(shape=[True, 2, 2, 3])),
    "a shape of fractions": body(changed(shape=[1.0, 2, 2, 3])),
    "a negative shape": body(changed(shape=[-1, -2, 2, 3])),
    "a huge shape": body(changed(shape=[HUGE - 1, 2, 2, 3])),
    "a shape beyond all numbers": body(changed(shape=[10**30, 2, 2, 3])),
    "very many dimensions": body(changed(shape=[1] * 1000)),
    "no image": body(changed(shape=[0, *SHAPE])),
    "another size": body(changed(shape=[1, 3, 2, 2])),
    "no dimensions": body(changed(shape=[])),
    "less data than the shape has": body(changed(parameters={"binary_data_size": 11}), data=DATA[:11]),
    "more data than the shape has": body(changed(parameters={"binary_data_size": 13}), data=DATA + b"x"),
    "a size beyond the body": body(changed(parameters={"binary_data_size": HUGE})),
    "a negative size": body(changed(parameters={"binary_data_size": -12})),
    "a size of true": body(changed(parameters={"binary_data_size": True})),
    "bytes behind the tensors": body(data=DATA + b"more"),
    "neither data nor size": body(changed(parameters={})),
    "parameters no object": body(changed(parameters=[])),
    "NaN": (body(changed(parameters={}, data=[float("nan")] * 12), data=b"")[0], None),
    "infinity": (body(changed(parameters={}, data=[float("inf")] * 12), data=b"")[0], None),
    "huge numbers": (body(changed(parameters={}, data=[10**400] * 12), data=b"")[0], None),
    "data of one number": (body(changed(parameters={}, data=12), data=b"")[0], None),
    "data of a text": (body(changed(parameters={}, data="abcdefghijkl"), data=b"")[0], None),
    "lists deeper than a tensor": (b'{"inputs":[{"name":"a","datatype":"UINT8","shape":[1,2,2,3],"data":'
                                   + b"[" * 400 + b"]" * 400 + b"}]}", None),
    "an id that is a number": body(id=7),
    "an output without a name": body(outputs=[{}]),
    "an input in shared memory": body(
        {**TENSOR, "parameters": {"shared_memory_region": "mine", "shared_memory_byte_size": 12}}, data=b""
    ),
    "an output in shared memory": body(outputs=[{"name": "logits", "parameters": {"shared_memory_region": "mine"}}]),
    "a negative classification": body(outputs=[{"name": "logits", "parameters": {"classification": -1}}]),
    "a classification of texts": body(outputs=[{"name": "logits", "parameters": {"classification": "3"}}]),
    "a header length beyond the body": (body()[0], "100000"),
    "a header length of very many digits": (body()[0], "9" * 5000),
    "a negative header length": (body()[0], "-1"),
    "a header length that is no number": (body()[0], "²"),
    "a header length inside the JSON": (body()[0], "20"),
    "a header length inside the data": (body()[0], str(int(body()[1]) + 3)),
    "a header length of nothing": (body()[0], "0"),
}  # fmt: skip


def refused(function: Any, content: bytes, length: str | None) -> RequestError:
    """The error of a request, which must not take much more memory than it has."""
    tracemalloc.start()
    try:
        with pytest.raises(RequestError, match=r"^Expected .*Received: ") as error:
            function(content, length)
        assert tracemalloc.get_traced_memory()[1] < 2e6 + 40 * len(content)
    finally:
        tracemalloc.stop()
    assert len(str(error.value)) < 500
    return error.value


@pytest.mark.parametrize(("content", "length"), MALFORMED.values(), ids=MALFORMED)
def test_a_malformed_request_is_bad_and_allocates_nothing_that_it_lies_about(
    content: bytes, length: str | None
) -> None:
    assert refused(pixels, content, length).code == 400


def test_shared_memory_is_refused_by_name() -> None:
    """An answer beside it would leave a client with what was in that memory before."""
    for which in ("an input in shared memory", "an output in shared memory"):
        assert "Received: shared memory. Send binary data." in str(refused(pixels, *MALFORMED[which]))


def test_json_beyond_the_limit_is_not_parsed() -> None:
    assert refused(pixels, b"[" * (MOST + 1), None).code == 413


def texts(*elements: bytes) -> bytes:
    return b"".join(struct.pack("<I", len(element)) + element for element in elements)


def of_files(shape: list[int], data: bytes, **fields: Any) -> tuple[bytes, str]:
    tensor = {"name": "files", "datatype": "BYTES", "shape": shape, "parameters": {"binary_data_size": len(data)}}
    return body(tensor | fields, data=data)


@pytest.mark.parametrize("shape", [[3], [3, 1]])
def test_elements_of_bytes_are_what_was_sent(shape: list[int]) -> None:
    assert files(*of_files(shape, texts(b"one", b"", b"three"))) == [b"one", b"", b"three"]


LYING: dict[str, tuple[bytes, str | None]] = {
    "a length of gigabytes": of_files([1, 1], struct.pack("<I", 2**32 - 1) + b"abc"),
    "a length one too long": of_files([1, 1], struct.pack("<I", 4) + b"abc"),
    "a length one too short": of_files([1, 1], struct.pack("<I", 2) + b"abc"),
    "half a length": of_files([2, 1], texts(b"a") + b"\0\0"),
    "fewer elements than the shape": of_files([3, 1], texts(b"a", b"b")),
    "more elements than the shape": of_files([1, 1], texts(b"a", b"b")),
    "very many empty elements": of_files([4, 1], b"\0" * 400_000),
    "nothing at all": of_files([1, 1], b""),
    "no elements": of_files([0, 1], b""),
    "more elements than are taken": of_files([5, 1], texts(*[b"a"] * 5)),
    "very many elements": of_files([HUGE - 1, 1], texts(b"a")),
    "elements in two columns": of_files([1, 2], texts(b"a", b"b")),
    "another datatype": of_files([1, 1], texts(b"a"), datatype="UINT8"),
    "JSON": (b'{"inputs":[{"name":"files","datatype":"BYTES","shape":[1],"data":["a"]}]}', None),
}  # fmt: skip


@pytest.mark.parametrize(("content", "length"), LYING.values(), ids=LYING)
def test_lengths_of_elements_that_lie_are_bad(content: bytes, length: str | None) -> None:
    assert refused(files, content, length).code == 400


def test_an_answer_in_json_has_the_numbers_and_no_word_that_json_lacks() -> None:
    values = np.array([[0.25, np.nan], [np.inf, -1]], np.float32)
    content, length = write_response("tiny", "1", "seven", [Output("logits", values, False)])
    assert length is None
    assert json.loads(content, parse_constant=lambda word: pytest.fail(word)) == {
        "model_name": "tiny",
        "model_version": "1",
        "id": "seven",
        "outputs": [{"name": "logits", "datatype": "FP32", "shape": [2, 2], "data": [0.25, None, None, -1.0]}],
    }


def test_a_binary_answer_has_its_tensors_behind_the_json() -> None:
    values = np.array([[1, 2], [3, 4]], np.float32)
    classes = np.array([["0.5:0:Mäuse"]], object)
    outputs = [
        Output("logits", values.T, True),
        Output("probabilities", classes, True),
        Output("logits", values, False),
    ]
    content, length = write_response("tiny", "1", None, outputs)
    assert length is not None
    tree, rest = json.loads(content[:length]), content[length:]
    assert "id" not in tree
    sizes = [entry.get("parameters", {}).get("binary_data_size") for entry in tree["outputs"]]
    assert sizes == [16, 4 + len("0.5:0:Mäuse".encode()), None]
    assert np.frombuffer(rest[:16], "<f4").tolist() == [1, 3, 2, 4], "in rows, whatever its memory"
    assert rest[16:] == texts("0.5:0:Mäuse".encode())
    assert [entry["datatype"] for entry in tree["outputs"]] == ["FP32", "BYTES", "FP32"]
