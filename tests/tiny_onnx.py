"""A classifier small enough to build in a tenth of a second, in the form that the export stage writes."""

import json
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

SIZE = 16
CLASSES = ("cat", "dog", "owl", "emu")
SPEC = {"mode": "unit", "channel_order": "RGB", "mean": [0.0, 0.0, 0.0], "scale": [1 / 255, 1 / 255, 1 / 255]}


def classifier(
    precision: str = "fp32", batch: object = "batch", channels: int = 8, more_convolutions: int = 0
) -> onnx.ModelProto:
    """uint8 NHWC images -> Cast, Transpose, Conv, Relu, GlobalAveragePool, Flatten, Gemm -> logits, probabilities."""
    kind = TensorProto.FLOAT16 if precision == "fp16" else TensorProto.FLOAT
    dtype = np.float16 if precision == "fp16" else np.float32
    random = np.random.default_rng(0)
    weights = {
        "kernel": random.normal(0, 0.01, (channels, 3, 3, 3)).astype(dtype),
        "bias": random.normal(0, 1, channels).astype(dtype),
        "dense": random.normal(0, 1, (channels, len(CLASSES))).astype(dtype),
        "dense_bias": np.zeros(len(CLASSES), dtype),
    }
    nodes = [
        helper.make_node("Cast", ["images"], ["cast"], "cast", to=kind),
        helper.make_node("Transpose", ["cast"], ["nchw"], "transpose", perm=[0, 3, 1, 2]),
    ]
    features = "nchw"
    for turn in range(1 + more_convolutions):
        after = str(turn or "")  # of the names
        kernel, scale = f"kernel{after}", f"k_scale{after}"
        if turn:
            weights[kernel] = random.normal(0, 0.1, (channels, channels, 3, 3)).astype(dtype)
        if precision == "int8":
            weights |= {"x_scale": np.float32(2.0), "x_zero": np.int8(0), "k_zero": np.zeros(channels, np.int8)}
            weights[scale] = np.abs(weights[kernel]).max((1, 2, 3)).astype(np.float32) / 127
            for source, *parameters, axis in (
                (features, "x_scale", "x_zero", {}),
                (kernel, scale, "k_zero", {"axis": 0}),
            ):
                nodes.append(helper.make_node("QuantizeLinear", [source, *parameters], [f"{source}_q"], **axis))
                inputs = [f"{source}_q", *parameters]
                nodes.append(helper.make_node("DequantizeLinear", inputs, [f"{source}_dq"], **axis))
            features, kernel = f"{features}_dq", f"{kernel}_dq"
        conv, relu = f"conv{after}", f"relu{after}"
        nodes += [
            helper.make_node("Conv", [features, kernel, "bias"], [conv], conv, pads=[1, 1, 1, 1]),
            helper.make_node("Relu", [conv], [relu], relu),
        ]
        features = relu
    nodes += [
        helper.make_node("GlobalAveragePool", [features], ["pool"], "pool"),
        helper.make_node("Flatten", ["pool"], ["flat"], "flatten"),
        helper.make_node("Gemm", ["flat", "dense", "dense_bias"], ["gemm"], "dense"),
        helper.make_node("Cast", ["gemm"], ["logits"], "logits", to=TensorProto.FLOAT),
        helper.make_node("Softmax", ["logits"], ["probabilities"], "probabilities", axis=-1),
    ]
    shape = [batch, SIZE, SIZE, 3]
    graph = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info("images", TensorProto.UINT8, shape)],
        [
            helper.make_tensor_value_info(name, TensorProto.FLOAT, [batch, len(CLASSES)])
            for name in ("logits", "probabilities")
        ],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=9)
    helper.set_model_props(model, {"classes": json.dumps(CLASSES), "preprocessing": json.dumps(SPEC)})
    onnx.checker.check_model(model, full_check=True)
    return model


def write(path: Path, precision: str = "fp32", **options: object) -> Path:
    """Write the classifier and return its path."""
    path.write_bytes(classifier(precision, **options).SerializeToString())  # type: ignore[arg-type]
    return path


def pixels(count: int, seed: int = 0) -> np.ndarray:
    """Seeded noise, uint8 (count, 16, 16, 3)."""
    return np.random.default_rng(seed).integers(0, 256, (count, SIZE, SIZE, 3), dtype=np.uint8)
