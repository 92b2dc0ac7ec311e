"""Tensors are found by values, and at a fault by names or by direction."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from pipeline.verification.layers.keras_layers import INPUT
from pipeline.verification.layers.mapping import NOT_FOUND, Mapping, map_layers
from pipeline.verification.layers.subject import Subject
from tests.fakes.keras_layers import TINY, FakeKerasLayers
from tests.tiny_onnx import classifier, pixels

FEW = pixels(2)


@pytest.fixture(scope="module")
def keras() -> FakeKerasLayers:
    return FakeKerasLayers(classifier(more_convolutions=1))


def subject(model: onnx.ModelProto) -> Subject:
    return Subject("model.onnx", "fp32", model)


def places(found: Mapping) -> dict[str, str]:
    return {layer.name: layer.tensor for layer in found.layers}


def change(model: onnx.ModelProto, name: str, function) -> onnx.ModelProto:
    """Changes a weight (in place)."""
    tensor = next(t for t in model.graph.initializer if t.name == name)
    value = function(numpy_helper.to_array(tensor).copy())
    tensor.CopyFrom(numpy_helper.from_array(value.astype(np.float32), name))
    return model


def foreign(model: onnx.ModelProto) -> onnx.ModelProto:
    """The same file as another tool names its nodes and tensors (in place)."""
    names = {name: f"t{i}" for i, node in enumerate(model.graph.node) for name in node.output}
    names = {old: new for old, new in names.items() if old not in ("logits", "probabilities")}
    for i, node in enumerate(model.graph.node):
        node.name = f"node_{i}"
        node.input[:] = [names.get(name, name) for name in node.input]
        node.output[:] = [names.get(name, name) for name in node.output]
    return model


def test_every_layer_is_found_by_its_values(keras: FakeKerasLayers) -> None:
    found = map_layers(keras, subject(classifier(more_convolutions=1)), FEW)
    expected = {name: tensor for name, (_, _, tensor, _) in TINY.items() if name != "dropout"}
    # A copy of a tensor is not its layer: the pool before it was flattened, the Gemm before its Cast.
    assert places(found) == {**expected, "pool": "pool", "dense": "gemm"}
    assert {layer.name for layer in found.layers if layer.channels_first} == {"conv", "relu", "conv1", "relu1"}
    assert found.without_tensor == {"dropout": "has the values of relu"}
    inputs = {layer.name: layer.inputs for layer in found.layers}
    assert inputs[INPUT] == ()
    assert inputs["conv1"] == ("relu",)  # in Keras it reads the Dropout


def test_a_file_of_another_tool_is_mapped_alike(keras: FakeKerasLayers) -> None:
    ours = map_layers(keras, subject(classifier(more_convolutions=1)), FEW)
    theirs = map_layers(keras, subject(foreign(classifier(more_convolutions=1))), FEW)
    assert [(a.name, a.inputs, a.channels_first) for a in ours.layers] == [
        (b.name, b.inputs, b.channels_first) for b in theirs.layers
    ]


def test_channels_may_be_last_in_the_file(keras: FakeKerasLayers) -> None:
    model = foreign(classifier(more_convolutions=1))
    relu = next(node for node in model.graph.node if node.op_type == "Relu")
    before, after = helper.make_node("Transpose", list(relu.input), ["nhwc"], perm=[0, 2, 3, 1]), relu.output[0]
    relu.input[:], relu.output[:] = ["nhwc"], ["nhwc_relu"]
    index = list(model.graph.node).index(relu)
    model.graph.node.insert(index, before)
    model.graph.node.insert(index + 2, helper.make_node("Transpose", ["nhwc_relu"], [after], perm=[0, 3, 1, 2]))
    found = {layer.name: layer for layer in map_layers(keras, subject(model), FEW).layers}
    assert (found["relu"].tensor, found["relu"].channels_first) == ("nhwc_relu", False)
    assert found["conv"].channels_first


def test_a_layer_that_is_in_the_one_behind_it_is_named_with_that_one() -> None:
    layers = dict(TINY)
    layers["conv"] = ("Conv2D", (INPUT,), "half", True)  # a value that the file has no more
    layers = {INPUT: TINY[INPUT], "conv": layers["conv"], "bn": ("BatchNormalization", ("conv",), "conv", True)} | {
        name: (kind, ("bn",) if name == "relu" else inputs, tensor, first)
        for name, (kind, inputs, tensor, first) in TINY.items()
        if name not in (INPUT, "conv")
    }
    model = classifier(more_convolutions=1)
    model.graph.initializer.append(numpy_helper.from_array(np.float32(0.5), "by"))
    model.graph.node.append(helper.make_node("Mul", ["conv", "by"], ["half"], "half"))
    found = map_layers(FakeKerasLayers(model, layers), subject(classifier(more_convolutions=1)), FEW)
    assert found.without_tensor["conv"] == "folded into bn"
    assert {layer.name: layer.inputs for layer in found.layers}["bn"] == (INPUT,)


FAULTS = {
    "twice": lambda kernel: 2 * kernel,
    "cut off": lambda kernel: np.concatenate([kernel[:4], 0 * kernel[4:]]),
    "slightly": lambda kernel: 1.01 * kernel,
    "NaN": lambda kernel: np.full_like(kernel, np.nan),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_layers_behind_a_fault_are_found_too(keras: FakeKerasLayers, fault: str) -> None:
    good = map_layers(keras, subject(classifier(more_convolutions=1)), FEW)
    faulty = change(classifier(more_convolutions=1), "kernel", FAULTS[fault])
    assert places(map_layers(keras, subject(faulty), FEW)) == places(good)


@pytest.mark.parametrize("fault", [name for name in FAULTS if name != "NaN"])
def test_without_names_the_direction_of_the_values_decides(keras: FakeKerasLayers, fault: str) -> None:
    good = map_layers(keras, subject(foreign(classifier(more_convolutions=1))), FEW)
    faulty = change(foreign(classifier(more_convolutions=1)), "kernel1", FAULTS[fault])
    assert places(map_layers(keras, subject(faulty), FEW)) == places(good)


def test_a_file_of_another_model_has_no_layer(keras: FakeKerasLayers) -> None:
    found = map_layers(keras, subject(foreign(classifier(channels=5))), FEW)
    assert [layer.name for layer in found.layers] == [INPUT]
    assert {why for name, why in found.without_tensor.items() if name != "dropout"} == {NOT_FOUND}


def test_a_file_that_was_made_from_another_keeps_its_places(keras: FakeKerasLayers) -> None:
    source = map_layers(keras, subject(classifier(more_convolutions=1)), FEW)
    made = change(classifier(more_convolutions=1), "kernel1", lambda kernel: -kernel)
    assert places(map_layers(keras, subject(made), FEW, source)) == places(source)


def test_pixels_that_a_made_file_spoils_are_found_under_another_name(keras: FakeKerasLayers) -> None:
    source = map_layers(keras, subject(classifier(more_convolutions=1)), FEW)
    made = classifier(more_convolutions=1)
    cast = made.graph.node[0]
    cast.name, cast.output[:] = "preprocessing/Cast", ["raw"]
    made.graph.initializer.append(numpy_helper.from_array(np.float32(2), "two"))
    made.graph.node.insert(1, helper.make_node("Mul", ["raw", "two"], ["doubled"], "preprocessing/Mul"))
    made.graph.node[2].input[0] = "doubled"
    assert places(map_layers(keras, subject(made), FEW, source)) == {**places(source), INPUT: "doubled"}


def extended(
    tail: list[onnx.NodeProto], **constants: np.ndarray
) -> tuple[onnx.ModelProto, dict[str, tuple[str, tuple[str, ...], str, bool]]]:
    """The model with a layer "more" between relu1 and the pool, whose last tensor is "more", and its layers."""
    model = classifier(more_convolutions=1)
    place = next(i for i, node in enumerate(model.graph.node) if node.op_type == "GlobalAveragePool")
    model.graph.node[place].input[0] = "more"
    for node in reversed(tail):
        model.graph.node.insert(place, node)
    model.graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in constants.items())
    layers = {name: entry for name, entry in TINY.items() if name not in ("pool", "dense")}
    layers["more"] = ("Layer", ("relu1",), "more", True)
    return model, layers | {"pool": ("Pool", ("more",), "flat", False), "dense": TINY["dense"]}


def test_a_layer_of_several_nodes_ends_with_the_last_one_that_has_its_values() -> None:
    model, layers = extended(
        [
            helper.make_node("Add", ["relu1", "one"], ["positive"], "more/Add"),
            helper.make_node("Mul", ["positive", "zero"], ["nothing"], "more/Mul"),
            helper.make_node("Add", ["positive", "nothing"], ["more"], "more/Add_2"),
        ],
        one=np.float32(1), zero=np.float32(0),
    )  # fmt: skip
    assert places(map_layers(FakeKerasLayers(model, layers), subject(model), FEW))["more"] == "more"


def test_a_reshape_that_moves_values_to_another_axis_is_no_copy() -> None:
    twice = np.array([1, 1, 1, 2, 1, 2], np.int64)
    model, layers = extended(
        [
            helper.make_node("Reshape", ["relu1", "apart"], ["six"], "more/Reshape"),
            helper.make_node("Tile", ["six", "twice"], ["tiled"], "more/Tile"),
            helper.make_node("Reshape", ["tiled", "joined"], ["more"], "more/Reshape_2"),
        ],
        apart=np.array([0, 8, 16, 1, 16, 1], np.int64), twice=twice, joined=np.array([-1, 8, 32, 32], np.int64),
    )  # fmt: skip
    assert places(map_layers(FakeKerasLayers(model, layers), subject(model), FEW))["more"] == "more"


def test_a_layer_that_changes_nothing_on_two_images_is_not_said_to_pass_values_on() -> None:
    model, layers = extended(
        [helper.make_node("Clip", ["relu1", "low", "high"], ["more"], "more/Clip")],
        low=np.float32(0), high=np.float32(0),
    )  # fmt: skip
    largest = FakeKerasLayers(model, layers).outputs(FEW // 8)["relu1"].max()
    limit = next(one for one in model.graph.initializer if one.name == "high")
    limit.CopyFrom(numpy_helper.from_array(np.float32(largest), "high"))
    found = map_layers(FakeKerasLayers(model, layers), subject(model), FEW // 8)
    assert places(found)["more"] == "more"
    assert found.without_tensor == {"dropout": "has the values of relu"}
