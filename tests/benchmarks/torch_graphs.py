"""Classifiers around one operator each, in the form that the export stage writes them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

SIZE, CHANNELS, CLASSES = 9, 4, 5
RANDOM = np.random.default_rng(0)
CONSTANTS = {
    "order": np.array([2, 1, 0]),
    "mean": np.array([103.939, 116.779, 123.68], np.float32),
    "deviation": np.array([58.4, 57.1, 57.4], np.float32),
    "scale": np.array([0.017, 0.018, 0.019], np.float32),
    "stem": RANDOM.normal(0, 0.3, (CHANNELS, 3, 3, 3)).astype(np.float32),
    "kernel": RANDOM.normal(0, 0.3, (CHANNELS, CHANNELS, 3, 3)).astype(np.float32),
    "grouped": RANDOM.normal(0, 0.3, (CHANNELS, 2, 3, 3)).astype(np.float32),
    "bias": RANDOM.normal(0, 0.3, CHANNELS).astype(np.float32),
    "gamma": RANDOM.uniform(0.5, 1.5, (1, CHANNELS, 1, 1)).astype(np.float32),
    "beta": RANDOM.normal(0, 0.3, (1, CHANNELS, 1, 1)).astype(np.float32),
    "around": np.array([0, 0, 1, 2, 0, 0, 3, 4]),
    "nothing": np.zeros(8, np.int64),
    "minus": np.float32(-1.5),
    "rows": np.array([0, -1]),
    "axes": np.array([2, 3]),
    "dense": RANDOM.normal(0, 1, (CHANNELS, CLASSES)).astype(np.float32),
    "flipped": RANDOM.normal(0, 1, (CLASSES, CHANNELS)).astype(np.float32),
    "dense_bias": RANDOM.normal(0, 1, CLASSES).astype(np.float32),
    "three": np.array([3]),
}


def node(op: str, inputs: str, output: str, **attributes: object) -> onnx.NodeProto:
    """A node named like its output, after a Keras layer; inputs separated by spaces."""
    return helper.make_node(op, inputs.split(), [output], f"layer/{output}", **attributes)


PREPARED = [node("Sub", "pixels mean", "prepared")]
STEM = [node("Conv", "nchw stem bias", "x", pads=[1, 1, 1, 1])]
SAME = [node("Identity", "x", "y")]
POOL = [node("GlobalAveragePool", "y", "pooled"), node("Flatten", "pooled", "flat")]
DENSE = [node("Gemm", "flat dense dense_bias", "logits")]
SOFTMAX = [node("Softmax", "logits", "probabilities", axis=-1)]


def save(
    path: Path,
    prepared: list[onnx.NodeProto] = PREPARED,
    stem: list[onnx.NodeProto] = STEM,
    body: list[onnx.NodeProto] = SAME,
    pool: list[onnx.NodeProto] = POOL,
    dense: list[onnx.NodeProto] = DENSE,
    end: list[onnx.NodeProto] = SOFTMAX,
    *,
    opset: int = 17,
    more: dict[str, tuple[int, int]] | None = None,
) -> Path:
    """Write pixels -> prepared -> nchw -> x -> y -> flat -> logits -> probabilities; ``more``: outputs, type, width."""
    nodes = [
        node("Cast", "images", "pixels", to=TensorProto.FLOAT),
        *prepared,
        node("Transpose", "prepared", "nchw", perm=[0, 3, 1, 2]),
        *stem,
        *body,
        *pool,
        *dense,
        *end,
    ]
    used = {name for one in nodes for name in one.input}
    outputs = {"logits": (TensorProto.FLOAT, CLASSES), "probabilities": (TensorProto.FLOAT, CLASSES), **(more or {})}
    graph = helper.make_graph(
        nodes,
        "operator",
        [helper.make_tensor_value_info("images", TensorProto.UINT8, ["batch", SIZE, SIZE, 3])],
        [helper.make_tensor_value_info(name, kind, ["batch", width]) for name, (kind, width) in outputs.items()],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in CONSTANTS.items() if name in used],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    onnx.checker.check_model(model, full_check=True)
    path.write_bytes(model.SerializeToString())
    return path


def bottleneck(path: Path) -> Path:
    """Blocks as a ResNetV2 has them: one tensor read by a BatchNorm of its own and by the sum, asymmetric padding."""
    body = [
        node("MaxPool", "x", "block", kernel_shape=[3, 3], strides=[2, 2], pads=[0, 0, 1, 1]),
        node("Mul", "block gamma", "scaled"),
        node("Add", "scaled beta", "normed"),
        node("Relu", "normed", "active"),
        node("Conv", "active kernel bias", "one", strides=[2, 2], pads=[0, 0, 1, 1]),
        node("Relu", "one", "two"),
        node("Conv", "two grouped", "three_", group=2, pads=[1, 1, 1, 1]),
        node("MaxPool", "block", "skip", kernel_shape=[1, 1], strides=[2, 2]),
        node("Add", "skip three_", "sum"),
        node("Relu", "sum", "positive"),
        node("Sub", "sum positive", "negative"),  # a second reader: the ReLU must not overwrite the sum
        node("Add", "positive negative", "again"),
        node("Mul", "again gamma", "y"),
    ]
    return save(path, body=body)


def pixels(count: int, seed: int = 0) -> np.ndarray:
    """Seeded noise, uint8."""
    return np.random.default_rng(seed).integers(0, 256, (count, SIZE, SIZE, 3), dtype=np.uint8)
