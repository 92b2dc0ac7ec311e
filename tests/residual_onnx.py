"""A residual classifier whose activations can all be shifted, in the form that the export stage writes."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper


def residual_classifier() -> onnx.ModelProto:
    """Return a stem and two residual blocks whose convolutions have no padding, with a Relu behind each; float32."""
    random = np.random.default_rng(0)
    weights: dict[str, np.ndarray] = {}
    nodes = [
        helper.make_node("Cast", ["images"], ["cast"], "pre/Cast", to=TensorProto.FLOAT),
        helper.make_node("Transpose", ["cast"], ["nchw"], "pre/Transpose", perm=[0, 3, 1, 2]),
    ]

    def conv(name: str, source: str, channels: int, size: int = 1, residual: str = "") -> str:
        weights[f"{name}_w"] = random.normal(0, 0.3, (16, channels, size, size)).astype(np.float32)
        weights[f"{name}_b"] = random.normal(0, 1, 16).astype(np.float32)
        nodes.append(helper.make_node("Conv", [source, f"{name}_w", f"{name}_b"], [name], f"{name}/Conv"))
        if residual:
            nodes.append(helper.make_node("Add", [residual, name], [f"{name}_add"], f"{name}_add/Add"))
        source = f"{name}_add" if residual else name
        nodes.append(helper.make_node("Relu", [source], [f"{name}_relu"], f"{name}_relu/Relu"))
        return f"{name}_relu"

    x = conv("stem", "nchw", 3, 3)
    for block in ("one", "two"):
        x = conv(f"{block}b", conv(f"{block}a", x, 16), 16, residual=x)
    weights |= {"dense": random.normal(0, 1, (16, 4)).astype(np.float32), "dense_b": np.zeros(4, np.float32)}
    nodes += [
        helper.make_node("GlobalAveragePool", [x], ["pool"], "pool/GlobalAveragePool"),
        helper.make_node("Flatten", ["pool"], ["flat"], "flat/Flatten"),
        helper.make_node("MatMul", ["flat", "dense"], ["product"], "dense/MatMul"),
        helper.make_node("Add", ["product", "dense_b"], ["logits"], "dense/Add"),
        helper.make_node("Softmax", ["logits"], ["probabilities"], "dense/Softmax", axis=-1),
    ]
    outputs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", 4]) for name in
               ("logits", "probabilities")]  # fmt: skip
    graph = helper.make_graph(
        nodes,
        "residual",
        [helper.make_tensor_value_info("images", TensorProto.UINT8, ["batch", 16, 16, 3])],
        outputs,
        [numpy_helper.from_array(value, name) for name, value in weights.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
