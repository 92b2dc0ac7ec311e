"""A file of another tool in the form of this project's own, so that its layers are looked at alike.

It takes uint8 NHWC RGB pixels, and its first output are float32 logits (N, classes). Nothing between is changed.
"""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import ModelProto, TensorProto, helper, numpy_helper

from export.onnx_passes.graph import constants, producers, replace_input, topological_sort
from export.onnx_passes.signature import prepend_preprocessing, rename_tensor
from export.preprocessing import PreprocessingSpec
from pipeline.runners.foreign import ForeignRunner

_PREPROCESSING = "preprocessing"  # begins the names of the nodes before the first layer


def read_foreign(path: Path, runner: ForeignRunner, spec: PreprocessingSpec) -> ModelProto:
    """Read a file as one that takes pixels and gives logits.

    Args:
        path: The file.
        runner: That was opened on it, and knows its layout and its output.
        spec: From pixels to what a file takes that takes floats.
    """
    model = onnx.load(str(path))
    weights = constants(model.graph)
    for info in [info for info in model.graph.input if info.name in weights]:
        model.graph.input.remove(info)
    for name in sorted(_tensors(model)):
        if name.startswith(f"{_PREPROCESSING}/"):  # a name of a node's output that is put in front
            model = rename_tensor(model, name, f"file/{name}")
    _take_pixels(model, runner)
    if runner.dtype != np.uint8:
        model = prepend_preprocessing(model, spec)
    _give_logits(model, runner)
    return topological_sort(model)


def _tensors(model: ModelProto) -> set[str]:
    return {*producers(model.graph), *constants(model.graph), *(info.name for info in model.graph.input)}


def _take_pixels(model: ModelProto, runner: ForeignRunner) -> None:
    """Put in front of the input what turns NHWC images of three channels into what it takes (in place)."""
    graph = model.graph
    (info,) = graph.input
    source, tensor = info.name, info.type.tensor_type
    batch = tensor.shape.dim[0]
    dims = {"dim_value": batch.dim_value} if batch.dim_value else {"dim_param": batch.dim_param or "batch"}
    height, width = runner.size
    steps: list[tuple[str, list[np.ndarray], dict[str, Any]]] = []
    if runner.dtype == np.float16:
        steps.append(("Cast", [], {"to": TensorProto.FLOAT16}))
    if runner.channels == 1:
        steps.append(("Slice", [np.array([value], np.int64) for value in (0, 1, 3)], {}))
    if runner.channels_first:
        steps.append(("Transpose", [], {"perm": [0, 3, 1, 2]}))
    last, nodes = source, []
    for kind, values, attributes in steps:
        name = f"{_PREPROCESSING}/to_file/{kind}"
        constants_of = [f"{name}/constant{index}" for index in range(len(values))]
        graph.initializer.extend(numpy_helper.from_array(value, c) for value, c in zip(values, constants_of))
        nodes.append(helper.make_node(kind, [last, *constants_of], [f"{name}:0"], name, **attributes))
        last = f"{name}:0"
    if nodes:
        replace_input(graph, source, last)
        graph.node.extend(nodes)
    taken = TensorProto.UINT8 if runner.dtype == np.uint8 else TensorProto.FLOAT
    info.CopyFrom(helper.make_tensor_value_info(source, taken, [0, height, width, 3]))
    info.type.tensor_type.shape.dim[0].CopyFrom(onnx.TensorShapeProto.Dimension(**dims))


def _give_logits(model: ModelProto, runner: ForeignRunner) -> None:
    """Let the first output be logits, or the logarithms of probabilities that `ForeignRunner` gives (in place)."""
    graph = model.graph
    output, batch = runner.output, graph.input[0].type.tensor_type.shape.dim[0]
    ours = f"{output}/logits"
    nodes = [
        helper.make_node("Cast", [output], [f"{ours}/float"], f"{ours}/Cast", to=TensorProto.FLOAT),
        helper.make_node("Flatten", [f"{ours}/float"], [f"{ours}/rows"], f"{ours}/Flatten", axis=1),
    ]
    if runner.log_floor is not None:
        graph.initializer.append(numpy_helper.from_array(np.float32(np.exp(runner.log_floor)), f"{ours}/floor"))
        nodes += [
            helper.make_node("Max", [f"{ours}/rows", f"{ours}/floor"], [f"{ours}/held"], f"{ours}/Max"),
            helper.make_node("Log", [f"{ours}/held"], [f"{ours}/rows_log"], f"{ours}/Log"),
        ]
    graph.node.extend(nodes)
    del graph.output[:]
    graph.output.append(helper.make_tensor_value_info(nodes[-1].output[0], TensorProto.FLOAT, [0, runner.classes]))
    graph.output[0].type.tensor_type.shape.dim[0].CopyFrom(batch)
