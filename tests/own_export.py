"""The tiny recipe's export as another tool would have written it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from export.onnx_passes.cut import extract


def theirs(source: Path, out: Path, output: str = "logits", factor: float = 1.0) -> Path:
    """Write an export without its preprocessing: preprocessed floats, NCHW, one output.

    Args:
        source: the recipe's FP32 export.
        out: the file.
        output: "logits" or "probabilities".
        factor: of the first convolution's kernel; another one than 1 is a fault.
    """
    model = onnx.load(str(source))
    first = next(node for node in model.graph.node if node.op_type == "Conv")
    kernel = next(one for one in model.graph.initializer if one.name == first.input[1])
    # The tiny recipe's preprocessing is BGR, whose order the export moves into this kernel.
    values = np.ascontiguousarray(numpy_helper.to_array(kernel)[:, ::-1] * np.float32(factor))
    kernel.CopyFrom(numpy_helper.from_array(values, kernel.name))
    part = extract(model, [first.input[0]], [output])
    side = model.graph.input[0].type.tensor_type.shape.dim[1].dim_value
    shape = ["batch", 3, side, side]
    del part.graph.input[:], part.metadata_props[:]
    part.graph.input.append(helper.make_tensor_value_info(first.input[0], TensorProto.FLOAT, shape))
    onnx.save(part, str(out))
    return out
