"""Weights in other files are seen wherever an ONNX file can hold a tensor, and refused wherever one is used."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from export.errors import ProjectError
from export.onnx_passes.file import load_model
from export.wire_format import DATA_LOCATION, EXTERNAL, EXTERNAL_DATA, PATHS, refuse_external_data
from pipeline.runners.onnxruntime import OnnxRunner
from tests import tiny_onnx


def outside(location: str = "weights.bin") -> TensorProto:
    tensor = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[4], data_location=TensorProto.EXTERNAL)
    tensor.external_data.add(key="location", value=location)
    return tensor


def initializer(model: onnx.ModelProto) -> None:
    model.graph.initializer.append(outside())


def without_a_place(model: onnx.ModelProto) -> None:
    model.graph.initializer.add(name="w", data_type=TensorProto.FLOAT, dims=[4], data_location=TensorProto.EXTERNAL)


def without_the_mark(model: onnx.ModelProto) -> None:
    tensor = outside()
    tensor.ClearField("data_location")
    model.graph.initializer.append(tensor)


def constant(model: onnx.ModelProto) -> None:
    model.graph.node.append(helper.make_node("Constant", [], ["c"], value=outside()))


def branch(model: onnx.ModelProto) -> None:
    inner = helper.make_graph([helper.make_node("Constant", [], ["c"], value=outside())], "then", [], [])
    model.graph.node.append(helper.make_node("If", ["x"], ["y"], then_branch=inner, else_branch=inner))


def function(model: onnx.ModelProto) -> None:
    node = helper.make_node("Constant", [], ["c"], value=outside())
    model.functions.append(helper.make_function("my", "F", [], ["c"], [node], [helper.make_opsetid("", 17)]))


def sparse(model: onnx.ModelProto) -> None:
    model.graph.sparse_initializer.add().values.CopyFrom(outside())


def training(model: onnx.ModelProto) -> None:
    model.training_info.add().initialization.initializer.append(outside())


PLACES = [initializer, without_a_place, without_the_mark, constant, branch, function, sparse, training]


def write(path: Path, change: Callable[[onnx.ModelProto], None]) -> Path:
    model = tiny_onnx.classifier()
    change(model)
    path.write_bytes(model.SerializeToString())
    return path


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("use", [refuse_external_data, load_model])
def test_weights_in_another_file_are_refused_wherever_they_are(
    tmp_path: Path, place: Callable[[onnx.ModelProto], None], use: Callable[[Path], object]
) -> None:
    (tmp_path / "weights.bin").write_bytes(np.zeros(4, np.float32).tobytes())
    with pytest.raises(ProjectError, match=r"holds its own weights. Received: .*m\.onnx, .*external data.*one file"):
        use(write(tmp_path / "m.onnx", place))


def test_a_runner_refuses_it_too(tmp_path: Path) -> None:
    (tmp_path / "weights.bin").write_bytes(np.zeros(4, np.float32).tobytes())
    with pytest.raises(ProjectError, match="holds its own weights"):
        OnnxRunner(write(tmp_path / "m.onnx", initializer)).__enter__()


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_files_of_one_piece_pass(tmp_path: Path, precision: str) -> None:
    refuse_external_data(tiny_onnx.write(tmp_path / "m.onnx", precision))


@pytest.mark.parametrize("damage", [b"", b"\x00\x01garbage", b"\x3a\xff\xff\xff\xff\x0f", b"\x3b\x3c", b"\xff" * 20])
def test_what_does_not_parse_is_refused_not_let_through(tmp_path: Path, damage: bytes) -> None:
    (tmp_path / "m.onnx").write_bytes(damage)
    with pytest.raises(ProjectError, match="does not parse"):
        refuse_external_data(tmp_path / "m.onnx")


def test_a_nesting_without_end_is_refused(tmp_path: Path) -> None:
    inner = b""
    for _ in range(300):  # graph > node > attribute > graph > ...
        for field in (6, 5, 1):
            length = bytes([len(inner) & 0x7F | 0x80, len(inner) >> 7 & 0x7F | 0x80, len(inner) >> 14])
            inner = bytes([field << 3 | 2]) + length + inner
    (tmp_path / "m.onnx").write_bytes(bytes([7 << 3 | 2, len(inner) & 0x7F | 0x80, len(inner) >> 7]) + inner)
    with pytest.raises(ProjectError, match="does not parse"):
        refuse_external_data(tmp_path / "m.onnx")


def test_the_field_numbers_are_those_of_onnx() -> None:
    """Every field of ONNX's messages that leads to a tensor is followed, and no number has moved."""
    reaching = {"TensorProto"}
    messages = {name: getattr(onnx, name).DESCRIPTOR for name in PATHS}
    reaching |= set(PATHS)
    for name, descriptor in messages.items():
        leading = {
            field.number: field.message_type.name
            for field in descriptor.fields
            if field.message_type is not None and field.message_type.name in reaching
        }
        assert dict(PATHS[name]) == leading, name
    tensor = TensorProto.DESCRIPTOR.fields_by_name
    assert (tensor["external_data"].number, tensor["data_location"].number) == (EXTERNAL_DATA, DATA_LOCATION)
    assert EXTERNAL == TensorProto.EXTERNAL
