"""Call other quantizers, give them the calibration images, and count what their files compute in INT8."""

from __future__ import annotations

import collections
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from onnx import numpy_helper
from tqdm import tqdm

from export.errors import ProjectError
from export.onnx_passes.graph import before_casts, producers


@dataclass(frozen=True)
class Share:
    """The number of nodes of a kind that are computed in INT8, of how many."""

    int8: int = 0
    of: int = 0


@dataclass(frozen=True)
class Int8Placement:
    """What a Q/DQ graph computes in INT8, and what in it TensorRT refuses.

    Attributes:
        int8: op type to its share. A Conv, MatMul or Gemm counts where activation and weight are quantised, another op
            where its first input is.
        add_inputs: number of quantised inputs of an Add to the number of such Adds.
        activation_pairs: number of activations with their own Q/DQ pair.
        quantized_biases: number of quantised biases, which TensorRT refuses.
        nonzero_zero_points: number of zero points other than 0, which TensorRT refuses.
    """

    int8: Mapping[str, Share]
    add_inputs: Mapping[str, int]
    activation_pairs: int
    quantized_biases: int
    nonzero_zero_points: int

    @property
    def convolutions(self) -> Share:
        """The share of the convolutions."""
        return self.int8.get("Conv", Share())


def placement(model: onnx.ModelProto) -> Int8Placement:
    """Count what a Q/DQ graph computes in INT8.

    Args:
        model: the quantised model.
    """
    written = producers(model.graph)
    constants = {tensor.name: tensor for tensor in model.graph.initializer}

    def quantized(node: onnx.NodeProto, index: int) -> bool:
        source = written.get(before_casts(node.input[index], written)) if len(node.input) > index else None
        return source is not None and source.op_type == "DequantizeLinear"

    flags: dict[str, list[bool]] = collections.defaultdict(list)
    adds: collections.Counter[int] = collections.Counter()
    biases = 0
    for node in model.graph.node:
        if node.op_type in ("Conv", "MatMul", "Gemm"):
            flags[node.op_type].append(quantized(node, 0) and quantized(node, 1))
            biases += quantized(node, 2)
        elif node.op_type in ("MaxPool", "AveragePool", "GlobalAveragePool", "ReduceMean"):
            flags[node.op_type].append(quantized(node, 0))
        elif node.op_type == "Add":
            adds[quantized(node, 0) + quantized(node, 1)] += 1
    halves = [node for node in model.graph.node if node.op_type in ("QuantizeLinear", "DequantizeLinear")]
    zeros = [constants[name] for node in halves for name in node.input[2:3] if name in constants]
    return Int8Placement(
        int8={op: Share(sum(each), len(each)) for op, each in sorted(flags.items())},
        add_inputs={str(count): number for count, number in sorted(adds.items())},
        activation_pairs=sum(node.op_type == "QuantizeLinear" and node.input[0] not in constants for node in halves),
        quantized_biases=biases,
        nonzero_zero_points=sum(bool(np.any(numpy_helper.to_array(zero))) for zero in zeros),
    )


# ONNX Runtime's histogram calibrators keep the activations of this many images: 82 MB each for ResNet-50 at 224×224.
HELD_IMAGES = 32


@dataclass(frozen=True)
class Peer:
    """One way to make an INT8 file.

    Attributes:
        tool: "modelopt" or "onnxruntime".
        method: the tool's name of its calibration method.
        high_precision: type of the unquantised nodes, "fp16" or "fp32".
    """

    tool: str
    method: str
    high_precision: str = "fp32"


PEERS = {
    "modelopt-max": Peer("modelopt", "max", "fp16"),
    "modelopt-entropy": Peer("modelopt", "entropy", "fp16"),
    "modelopt-max-fp32": Peer("modelopt", "max"),
    "modelopt-entropy-fp32": Peer("modelopt", "entropy"),
    "ort-minmax": Peer("onnxruntime", "MinMax"),
    "ort-percentile": Peer("onnxruntime", "Percentile"),
    "ort-entropy": Peer("onnxruntime", "Entropy"),
}


class PixelReader:
    """Calibration images in order, with the interface that both tools require.

    Args:
        name: the model's input.
        pixels: array (N, ...) of that input's type.
        batch: images a step.
        label: the progress bar's name.
    """

    def __init__(self, name: str, pixels: np.ndarray, batch: int, label: str) -> None:
        self.name, self.pixels, self.batch = name, pixels, batch
        self.position, self.end = 0, len(pixels)
        self.progress = tqdm(total=len(pixels), desc=f"  {label}", unit="img", mininterval=1.0)

    def __len__(self) -> int:
        return len(self.pixels)

    def get_first(self) -> dict[str, np.ndarray]:
        """Return the first step without moving on."""
        return {self.name: self.pixels[: self.batch]}

    def get_next(self) -> dict[str, np.ndarray] | None:
        """Return the next step, None at the end."""
        rows = self.pixels[self.position : min(self.position + self.batch, self.end)]
        if not len(rows):
            return None
        self.position += len(rows)
        self.progress.update(len(rows))
        return {self.name: rows}

    def __iter__(self) -> PixelReader:
        return self

    def __next__(self) -> dict[str, np.ndarray]:
        if step := self.get_next():
            return step
        raise StopIteration

    def rewind(self) -> None:
        """Start again."""
        self.set_range(0, len(self.pixels))

    def set_range(self, start_index: int, end_index: int) -> None:
        """Restrict the reader to the images from start_index up to, but not including, end_index."""
        self.position, self.end = start_index, min(end_index, len(self.pixels))


def read_images(path: Path, model: onnx.ModelProto, limit: int, seed: int) -> tuple[str, np.ndarray]:
    """Read the calibration images: a seeded choice of `limit` of them.

    Args:
        path: .npz file with the array ``pixels``.
        model: the model to calibrate; it has one input.
        limit: number of images, or all where there are fewer.
        seed: of the random choice.

    Returns:
        tuple: the name of the model's input, and the images as an array (n, ...) of its type.

    Raises:
        ProjectError: the file or its array do not fit the model.
    """
    constants = {tensor.name for tensor in model.graph.initializer}
    inputs = [value for value in model.graph.input if value.name not in constants]
    if len(inputs) != 1:
        raise ProjectError(
            f"Expected a model with one input. Received: {[value.name for value in inputs]}. Export it again."
        )
    kind = inputs[0].type.tensor_type
    dtype = onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type)
    shape = [dim.dim_value if dim.HasField("dim_value") else None for dim in kind.shape.dim]
    try:
        with np.load(path, allow_pickle=False) as arrays:
            pixels = arrays["pixels"]
    except (OSError, ValueError, KeyError) as error:
        raise ProjectError(
            f"Expected an .npz file with the array 'pixels'. Received: {path} ({error}). "
            "Write it with numpy.savez(path, pixels=array)."
        ) from error
    fits = pixels.ndim == len(shape) and all(dim in (None, size) for dim, size in zip(shape[1:], pixels.shape[1:]))
    if pixels.dtype != dtype or not fits or not len(pixels):
        raise ProjectError(
            f"Expected pixels of type {dtype} and shape (images, {', '.join(map(str, shape[1:]))}) for the input "
            f"{inputs[0].name!r}. Received: {pixels.dtype} {pixels.shape} in {path}. "
            "Save the images as the model reads them."
        )
    return inputs[0].name, pixels[np.random.default_rng(seed).permutation(len(pixels))[:limit]]


def modelopt_int8(peer: Peer, model: Path, reader: PixelReader, out: Path) -> dict[str, object]:
    """Quantise with nvidia-modelopt's ONNX quantizer; return the settings that differ from its defaults."""
    from modelopt.onnx.quantization import quantize

    settings = {"calibration_method": peer.method, "high_precision_dtype": peer.high_precision}
    quantize(
        str(model),
        quantize_mode="int8",
        calibration_data_reader=reader,
        calibration_eps=["cpu"],
        output_path=str(out),
        log_level="WARNING",
        **settings,
    )
    return {**settings, "batch": reader.batch}


def onnxruntime_int8(peer: Peer, model: Path, reader: PixelReader, out: Path) -> dict[str, object]:
    """Quantise with onnxruntime's quantize_static; return the settings that differ from its defaults.

    Its Percentile and Entropy calibrators keep the activations of every image until the reader ends. The stride makes
    them read a few images at a time and merge the histograms, so that all images fit into memory.
    """
    from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType, quantize_static

    # Without QuantizeBias=False it writes int32 biases, which TensorRT refuses.
    extra: dict[str, object] = {"ActivationSymmetric": True, "WeightSymmetric": True, "QuantizeBias": False}
    if peer.method != "MinMax":
        extra["CalibStridedMinMax"] = stride(len(reader))
    quantize_static(
        model,
        out,
        reader,
        quant_format=QuantFormat.QDQ,
        per_channel=True,
        activation_type=QuantType.QInt8,
        weight_type=QuantType.QInt8,
        calibrate_method=CalibrationMethod[peer.method],
        calibration_providers=["CPUExecutionProvider"],
        extra_options=extra,
    )
    return {"format": "QDQ", "types": "S8S8", "per_channel": True, "batch": reader.batch, **extra}


TOOLS = {"modelopt": modelopt_int8, "onnxruntime": onnxruntime_int8}


def stride(images: int) -> int:
    """Return the largest divisor of ``images`` up to `HELD_IMAGES`; ONNX Runtime accepts divisors only."""
    return max(divisor for divisor in range(1, min(images, HELD_IMAGES) + 1) if images % divisor == 0)
