"""ONNX files as other tools export them: other names, floats, NCHW, a fixed batch, probabilities alone."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import onnx
from onnx import TensorProto, helper

from tests import tiny_onnx

SIDE = tiny_onnx.SIZE


def foreign(
    path: Path,
    *,
    floats: bool = True,
    channels_first: bool = True,
    shape: Sequence[object] | None = None,
    outputs: Sequence[str] = ("logits",),
    precision: str = "fp32",
    name: str = "input.1",
) -> Path:
    """Write the classifier of `tiny_onnx` in another form.

    Args:
        path: of the file.
        floats: takes floats, which are the pixels themselves, instead of uint8.
        channels_first: takes NCHW.
        shape: of the input as the file declares it. Defaults to None: a free batch of the right images.
        outputs: of the file.
        precision: of the file.
        name: of the input.
    """
    model = tiny_onnx.classifier(precision)
    graph = model.graph
    cast, transpose = graph.node[0], graph.node[1]
    cast.input[0] = name
    if channels_first:
        cast.output[0] = transpose.output[0]
        graph.node.remove(transpose)
    if floats:
        source = graph.node[0]
        if precision != "fp16":
            source.op_type = "Identity"
            del source.attribute[:]
    form = shape or (["n", 3, SIDE, SIDE] if channels_first else ["n", SIDE, SIDE, 3])
    kind = TensorProto.FLOAT if floats else TensorProto.UINT8
    del graph.input[:], graph.value_info[:]
    graph.input.append(helper.make_tensor_value_info(name, kind, form))
    shapes = {one.name: one for one in graph.output}
    del graph.output[:]
    for output in outputs:
        graph.output.append(shapes.get(output) or helper.make_tensor_value_info(output, TensorProto.FLOAT, None))
    del model.metadata_props[:]
    onnx.save(model, str(path))
    return path
