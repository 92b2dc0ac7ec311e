"""The quantizers, and how each is called."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.peers.images import PixelReader

# ONNX Runtime's histogram calibrators hold the activations of that many images: 82 MB each for ResNet-50 at 224×224.
HELD_IMAGES = 32


@dataclass(frozen=True)
class Peer:
    """One way to make an INT8 file.

    Attributes:
        tool: "modelopt" or "onnxruntime".
        method: how the tool turns activations into scales, in its own words.
        high_precision: type of what stays unquantised, "fp16" or "fp32".
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


def modelopt_int8(peer: Peer, model: Path, reader: PixelReader, out: Path) -> dict[str, Any]:
    """Quantise with nvidia-modelopt's ONNX quantizer. Returns the settings that differ from its defaults."""
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


def onnxruntime_int8(peer: Peer, model: Path, reader: PixelReader, out: Path) -> dict[str, Any]:
    """Quantise with onnxruntime's quantize_static. Returns the settings that differ from its defaults.

    Its Percentile and Entropy calibrators keep the activations of every image until the reader ends. The stride makes
    them read a few images at a time and merge the histograms, so that all images fit into memory.
    """
    from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType, quantize_static

    # TensorRT refuses the int32 biases that it would write otherwise.
    extra: dict[str, Any] = {"ActivationSymmetric": True, "WeightSymmetric": True, "QuantizeBias": False}
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
    """Returns the largest divisor of `images` up to HELD_IMAGES: ONNX Runtime takes no other stride."""
    return max(one for one in range(1, min(images, HELD_IMAGES) + 1) if images % one == 0)
