"""TensorFlow's protocol buffers are looked through before they are parsed, and without TensorFlow."""

from __future__ import annotations

import base64
import os
import zipfile
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import pytest

from export.errors import ModelError
from pipeline.keras_files.code_scan import FROZEN_GRAPH
from pipeline.keras_files.graph_bounds import MOST_PARTS, MOST_STRUCTURE, check_file, check_graph
from pipeline.keras_files.read import read_model_file
from tests.bounded import attempts
from tests.pipeline.keras_files.test_model_bounds import archive


def part(number: int, value: bytes | str | int) -> bytes:
    """A field of a protocol buffer."""
    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    data = value.encode() if isinstance(value, str) else value
    return varint(number << 3 | 2) + varint(len(data)) + data


def varint(value: int) -> bytes:
    data = bytearray()
    while value > 0x7F:
        data.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*data, value])


def node(operation: str, *attributes: bytes, name: str = "x") -> bytes:
    return part(1, name) + part(2, operation) + b"".join(part(5, part(1, "a") + part(2, one)) for one in attributes)


def graph(*nodes: bytes, functions: bytes = b"") -> bytes:
    return b"".join(part(1, one) for one in nodes) + (part(2, functions) if functions else b"")


def function(name: str, *nodes: bytes) -> bytes:
    return part(1, part(1, part(1, name)) + b"".join(part(3, one) for one in nodes))


def constant(*sizes: int, content: bytes = b"") -> bytes:
    """The value of an attribute: a tensor of this shape."""
    return part(8, part(2, b"".join(part(2, part(1, n)) for n in sizes)) + part(4, content))


def call(name: str) -> bytes:
    return part(10, part(1, name))


def doubling(depth: int) -> bytes:
    """Functions of which each calls the next twice."""
    last = function("f0", node("Relu"))
    return last + b"".join(
        function(f"f{i}", *[node("PartitionedCall", call(f"f{i - 1}"))] * 2) for i in range(1, depth)
    )


def nested(depth: int) -> bytes:
    value = b""
    for _ in range(depth):
        value = part(10, part(2, part(2, value)))
    return value


GRAPHS: dict[str, tuple[bytes, str]] = {
    "empty nodes": (b"\x0a\x00" * 2**20, "damaged: a node without an operation"),
    "an empty operation": (graph(node("")), "damaged: a node without an operation"),
    "a long name": (graph(node("Relu", name="x" * 2**21)), "at most 32,768 bytes. Received: .*: one of 2,097,152"),
    "a constant without values": (graph(node("Const", constant(10**5, 10**5))), "at most 134,217,728 values"),
    "a constant in two pieces": (
        graph(node("Const", constant(2**14) + constant(2**14))),
        r"268,435,456 values, the last of shape \[16384, 16384\]",
    ),
    "many constants": (graph(*[node("Const", constant(2**14, 2**10))] * 9), "150,994,944 values"),
    "functions that call twice": (
        graph(node("PartitionedCall", call("f39")), functions=doubling(40)),
        "functions that run at most 1,000,000 operations",
    ),
    "a circle": (
        graph(functions=function("f", node("g")) + function("g", node("h", call("f")))),
        "functions that end. Received: .*: f, which calls itself",
    ),
    "nested": (graph(node("Relu", nested(60))), "nested more than 100 deep"),
    "cut short": (graph(node("Relu"))[:-1], "damaged or cut short"),
    "zeros": (bytes(2**20), "a field of number 0"),
    "groups": (b"\x0b\x0c", "a field of wire type 3"),
}  # fmt: skip


def test_graphs_that_ask_for_more_than_they_hold(tmp_path: Path) -> None:
    files, found = [], []
    for name, (data, message) in GRAPHS.items():
        folder = tmp_path / str(len(files))
        folder.mkdir()
        (folder / "saved_model.pb").write_bytes(part(2, part(2, data)))
        files += [folder]
        found += [(name, message)]
    for name, message in (("nothing", "damaged: it is empty"), ("sparse", "of 3,221,225,472")):
        folder = tmp_path / name
        folder.mkdir()
        with (folder / "saved_model.pb").open("wb") as file:
            file.truncate(3 * 2**30 if name == "sparse" else 0)
        files += [folder]
        found += [(name, message)]
    calls: list[tuple[str, Path, list[Any]]] = [
        ("pipeline.keras_files.read:read_model_file", path, []) for path in files
    ]
    for (name, message), path, attempt in zip(found, files, attempts(calls, ["numpy", "h5py"])):
        assert attempt.error == "ModelError", (name, attempt)
        with pytest.raises(ModelError, match=message):
            raise ModelError(attempt.message)
        assert str(path) in attempt.message, name
        assert len(attempt.message) < 1000, name
        assert attempt.bytes_read < 2**20, name  # pages of a map count as none


@pytest.mark.slow
def test_as_many_parts_as_are_read_take_no_memory(tmp_path: Path) -> None:
    path = tmp_path / "saved_model.pb"
    path.write_bytes(part(2, part(2, graph(node("Relu") + b"\x2a\x00" * MOST_PARTS))))
    (attempt,) = attempts([("pipeline.keras_files.read:read_model_file", tmp_path, [])], ["numpy", "h5py"])
    assert attempt.error == "ModelError"
    assert "at most 4,000,000 parts" in attempt.message
    assert attempt.seconds < 60


def frozen_archive(path: Path, data: bytes) -> Path:
    settings = {"name": "x", "graph": base64.b64encode(data).decode(), "feed": "x:0", "fetch": "x:0", "shapes": {}}
    layer = {
        "module": "pipeline.keras_files.frozen_graph",
        "class_name": "FrozenGraph",
        "registered_name": FROZEN_GRAPH,
        "config": settings,
    }
    config = {"module": "keras", "class_name": "Sequential", "config": {"name": "s", "layers": [layer]}}
    return archive(path, config)


def test_graphs_in_archives(tmp_path: Path) -> None:
    """What is read of them needs no TensorFlow either; what cannot be read is refused when it is to be loaded."""
    refused = [
        frozen_archive(tmp_path / "calls.keras", graph(functions=doubling(40))),
        archive(tmp_path / "text.keras", '{"class_name": "FrozenGraph", "config": "' + "a" * 2**24 + '"}'),
        archive(tmp_path / "long.keras", '{"class_name": "Model", "config": "' + "a" * 2**23 + '"}'),
    ]
    for path in refused:
        with zipfile.ZipFile(path, "a") as target:
            target.writestr(zipfile.ZipInfo("assets/x"), os.urandom(2**20))  # without it the ratio alone would tell
    read = [
        frozen_archive(tmp_path / "empty.keras", b"\x0a\x00" * 100_000),
        frozen_archive(tmp_path / "writes.keras", graph(node("WriteFile"), node("Relu"))),
        frozen_archive(tmp_path / "own.keras", graph(node("f"), functions=function("f", node("Relu")))[:-1]),
    ]
    messages = ("at most 1,000,000 operations", "16,777,216 are read", "8,388,608 are read")
    found = attempts(
        [("pipeline.keras_files.read:read_model_file", p, []) for p in [*refused, *read]], ["numpy", "h5py"]
    )
    for message, attempt in zip(messages, found):
        assert attempt.error == "ModelError", attempt
        assert message in attempt.message
    assert [attempt.error for attempt in found[len(refused) :]] == [""] * 3
    for path, text in zip(read, ("cannot be read", "reads or writes files", "cannot be read")):
        assert text in " ".join(f.why for f in read_model_file(path).findings)


@pytest.mark.parametrize("number", [1, 2, 5])
def test_parts_are_counted_wherever_they_are(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    """Of a field that is known, one that is not, and messages in both."""
    monkeypatch.setattr("pipeline.keras_files.graph_bounds.MOST_PARTS", 1000)
    inner = {1: node("Relu") + part(6, b"\x0a\x00" * 1000), 2: b"\x1a\x00" * 1001, 5: part(3, b"\x0a\x00" * 1000)}
    with pytest.raises(ModelError, match="at most 1,000 parts"):
        check_graph(part(number, inner[number]), "Graph", "m")


def test_what_a_sound_graph_holds() -> None:
    sound = graph(
        node("Placeholder"),
        node("Const", constant(2**10, 2**10, content=bytes(2**22))),
        node("f"),
        node("PartitionedCall", call("g")),
        functions=function("f", node("Relu"), node("Relu")) + function("g", node("f"), node("Softmax")),
    )
    found = check_graph(sound, "Graph", "m")
    assert found.operations == {"Placeholder", "Const", "f", "PartitionedCall", "Relu", "Softmax"}
    assert found.functions == {"f", "g"}
    assert found.parts == 46


def test_constants_may_be_large_and_what_is_beside_them_not(tmp_path: Path) -> None:
    path = tmp_path / "saved_model.pb"
    values = MOST_STRUCTURE // 4 + 1
    large = constant(values, content=bytes(4 * values))
    path.write_bytes(part(2, part(2, graph(node("Const", large)))))
    check_file(path, "SavedModel")
    path.write_bytes(part(9, b"\xff" * (MOST_STRUCTURE + 1)))
    with pytest.raises(ModelError, match="bytes beside its constants"):
        check_file(path, "SavedModel")


def test_field_numbers_are_those_of_tensorflow() -> None:
    from tensorflow.core.protobuf import saved_model_pb2
    from tf_keras.protobuf import saved_metadata_pb2

    from pipeline.keras_files.graph_bounds import _SCHEMA

    names = {
        "MetaGraph": "MetaGraphDef", "Graph": "GraphDef", "Library": "FunctionDefLibrary", "Function": "FunctionDef",
        "Signature": "OpDef", "Node": "NodeDef", "Attribute": "AttrEntry", "Value": "AttrValue", "List": "ListValue",
        "Call": "NameAttrList", "Tensor": "TensorProto", "Element": "TensorProto", "Shape": "TensorShapeProto",
        "Size": "Dim", "Object": "SavedObject",
    }  # fmt: skip
    for root, message in (("SavedModel", saved_model_pb2.SavedModel), ("Metadata", saved_metadata_pb2.SavedMetadata)):
        waiting, seen = [(root, message.DESCRIPTOR)], set()
        while waiting:
            ours, theirs = waiting.pop()
            if ours in seen:
                continue
            seen.add(ours)
            for number, inner in _SCHEMA[ours].items():
                field = theirs.fields_by_number[number]
                if inner in _SCHEMA:
                    assert field.message_type.name == names[inner], (ours, number)
                    waiting.append((inner, field.message_type))
                else:
                    assert field.message_type is None, (ours, number)
        assert seen <= set(_SCHEMA)


def test_a_graph_too_large_to_be_kept_is_refused_before_it_is_trained() -> None:
    """Constants of half precision stay in the layer's settings, of which no more are read than are accepted."""
    import tensorflow as tf

    from pipeline.keras_files.frozen_graph import from_graph_def

    definition = tf.compat.v1.GraphDef()
    large = definition.node.add(name="c", op="Const")
    large.attr["dtype"].type = tf.float16.as_datatype_enum
    large.attr["value"].tensor.CopyFrom(tf.make_tensor_proto(tf.zeros((6 * 2**20,), tf.float16)))
    large.attr["value"].tensor.tensor_content = os.urandom(12 * 2**20)
    with pytest.raises(ModelError, match=r"large constants are float32.*Export it in float32"):
        from_graph_def(definition, "x:0", "c:0", "float32", "graph")
