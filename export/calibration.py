"""Activation ranges, collected in a stream over ONNX Runtime, and the INT8 scales that follow from them."""

from __future__ import annotations

import json
import logging
import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx

from export.errors import ExportError
from export.graph import copy_model, load_model, tensor_shapes
from export.preprocessing import PreprocessingSpec

logger = logging.getLogger(__name__)

# The smallest normal FP16: below it a scale loses bits, at 0 (a dead tensor) TensorRT refuses it.
MINIMUM_SCALE = 2.0**-14
INT8_MAX = 127


@dataclass(frozen=True)
class Scales:
    """The INT8 scale of each quantised activation, and what it was measured on.

    Args:
        scales: Tensor name -> scale, such that ``x ≈ scale * int8``; float32 values, at least 2^-14.
        method: How the range was chosen, ``"minmax"``.
        images: How many calibration images were seen.
        model_sha256: Of the FP32 ONNX file.
        images_sha256: Fingerprint of the calibration images, as the caller computes it.
        preprocessing: ``PreprocessingSpec.to_dict()`` of that model.
    """

    scales: dict[str, float]
    method: str
    images: int
    model_sha256: str = ""
    images_sha256: str = ""
    preprocessing: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, value in self.scales.items():
            if not (math.isfinite(value) and value >= MINIMUM_SCALE):
                raise ExportError(
                    f"Expected scales of at least 2^-14. Received: {value} for {name!r} (calibrate again)."
                )

    @classmethod
    def from_ranges(
        cls,
        ranges: Mapping[str, tuple[float, float]],
        *,
        images: int,
        method: str = "minmax",
        model_sha256: str = "",
        images_sha256: str = "",
        preprocessing: dict[str, Any] | None = None,
    ) -> Scales:
        """Returns symmetric scales, ``max(|min|, |max|) / 127`` in float32.

        A range so small that its scale is below 2^-14 (a dead tensor has 0) gets 2^-14 and is named in a warning.
        """
        scales: dict[str, float] = {}
        small: list[str] = []
        for name, (low, high) in ranges.items():
            scale = float(np.float32(max(abs(low), abs(high)) / INT8_MAX))
            if scale < MINIMUM_SCALE:
                small.append(f"{name} ({low:g}..{high:g})")
                scale = MINIMUM_SCALE
            scales[name] = scale
        if small:
            logger.warning("%d tensors are (nearly) dead and get the smallest scale: %s", len(small), ", ".join(small))
        return cls(scales, method, images, model_sha256, images_sha256, dict(preprocessing or {}))

    def to_json(self) -> str:
        """Returns the scales as JSON text; float32 values survive exactly."""
        data = {
            "method": self.method,
            "images": self.images,
            "model_sha256": self.model_sha256,
            "images_sha256": self.images_sha256,
            "preprocessing": self.preprocessing,
            "scales": self.scales,
        }
        return json.dumps(data, indent=1, allow_nan=False) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Scales:
        """Returns the scales that `to_json` wrote.

        Raises:
            ExportError: If the text is no such JSON.
        """
        try:
            data = json.loads(text)
            return cls(
                scales={str(name): float(value) for name, value in data["scales"].items()},
                method=str(data["method"]),
                images=int(data["images"]),
                model_sha256=str(data["model_sha256"]),
                images_sha256=str(data["images_sha256"]),
                preprocessing=dict(data["preprocessing"]),
            )
        except (json.JSONDecodeError, KeyError, TypeError, ValueError, AttributeError) as error:
            raise ExportError(
                f"Expected the JSON of calibrated scales. Received: {type(error).__name__}: {error} (calibrate again)."
            ) from error


def collect_ranges(
    model: onnx.ModelProto | str | os.PathLike[str],
    batches: Iterable[np.ndarray],
    tensors: Sequence[str],
    progress: Callable[[int], None] | None = None,
) -> dict[str, tuple[float, float]]:
    """Returns the smallest and largest value of each tensor over all images.

    Memory is bounded by one batch, and neither the size nor the order of the batches matters.

    Args:
        model: The FP32 model, or its file.
        batches: uint8 (N, height, width, 3) RGB, N at least 1 and free to change.
        tensors: Names of float32 tensors in the model, see `export.quantize.quantizable_tensors`.
        progress: Called after each batch with the images seen so far. Defaults to None.

    Raises:
        ExportError: If a tensor is unknown, a batch has another type or shape, there are no images, or a value is
            NaN or infinite (the tensor is named).
    """
    low = dict.fromkeys(tensors, math.inf)
    high = dict.fromkeys(tensors, -math.inf)
    seen = 0
    for count, activations in stream_activations(model, batches, tensors):
        for name, value in activations.items():
            # One reduction each: NaN goes through min and max in numpy, so no pass of its own is needed.
            smallest, largest = float(value.min()), float(value.max())
            if not (math.isfinite(smallest) and math.isfinite(largest)):
                raise ExportError(
                    f"Expected finite activations. Received: {smallest:g}..{largest:g} in {name!r} "
                    f"after {seen} images (check the weights of the layers before it)."
                )
            low[name], high[name] = min(low[name], smallest), max(high[name], largest)
        seen += count
        if progress is not None:
            progress(seen)
    if not seen:
        raise ExportError("Expected calibration images. Received: none (check the calibration split).")
    return {name: (low[name], high[name]) for name in tensors}


def collect_scales(
    model: onnx.ModelProto | str | os.PathLike[str],
    batches: Iterable[np.ndarray],
    tensors: Sequence[str],
    *,
    model_sha256: str,
    images_sha256: str,
    preprocessing: PreprocessingSpec,
    progress: Callable[[int], None] | None = None,
) -> Scales:
    """Returns the MinMax scales of the tensors, with what they were measured on.

    Args:
        model: As in `collect_ranges`, and so are `batches` and `tensors`.
        batches: uint8 (N, height, width, 3) RGB.
        tensors: Names of float32 tensors.
        model_sha256: Of the FP32 ONNX file.
        images_sha256: Fingerprint of the calibration images.
        preprocessing: What the graph does to the pixels.
        progress: Called after each batch with the images seen so far. Defaults to None.

    Raises:
        ExportError: As `collect_ranges`.
    """
    seen = 0

    def count(images: int) -> None:
        nonlocal seen
        seen = images
        if progress is not None:
            progress(images)

    ranges = collect_ranges(model, batches, tensors, count)
    return Scales.from_ranges(
        ranges,
        images=seen,
        model_sha256=model_sha256,
        images_sha256=images_sha256,
        preprocessing=preprocessing.to_dict(values=False),
    )


def stream_activations(
    model: onnx.ModelProto | str | os.PathLike[str], batches: Iterable[np.ndarray], tensors: Sequence[str]
) -> Iterator[tuple[int, dict[str, np.ndarray]]]:
    """Runs a model batch by batch and yields inner tensors.

    Yields:
        The images in the batch, and tensor name -> its float32 values.

    Raises:
        ExportError: If a tensor is unknown, or a batch has another type or shape than the model takes.
    """
    import onnxruntime

    proto = model if isinstance(model, onnx.ModelProto) else load_model(model)
    names = list(dict.fromkeys(tensors))
    probe = _with_outputs(proto, names)
    source = probe.graph.input[0].name
    shape = tensor_shapes(probe)[source]
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    # Pad_Fusion makes a zero pad part of a MaxPool even where values are negative: wrong for ResNetV2.
    session = onnxruntime.InferenceSession(
        probe.SerializeToString(), options, providers=["CPUExecutionProvider"], disabled_optimizers=["Pad_Fusion"]
    )
    for batch in batches:
        if batch.dtype != np.uint8 or batch.ndim != 4 or not len(batch) or batch.shape[1:] != shape[1:]:
            raise ExportError(
                f"Expected a batch of uint8 (N, {', '.join(map(str, shape[1:]))}). Received: {batch.dtype} "
                f"{batch.shape} (decode and resize with the function that training used)."
            )
        yield len(batch), dict(zip(names, session.run(names, {source: batch})))


def _with_outputs(model: onnx.ModelProto, names: Sequence[str]) -> onnx.ModelProto:
    """Returns the model with inner tensors as further outputs.

    Raises:
        ExportError: If a name is no float32 tensor that a node makes.
    """
    inferred = onnx.shape_inference.infer_shapes(model)
    infos = {info.name: info for info in (*inferred.graph.value_info, *inferred.graph.output)}
    made = {name for node in model.graph.node for name in node.output}
    unknown = [name for name in names if name not in infos or name not in made]
    if unknown:
        raise ExportError(
            f"Expected tensors of the model. Received: {unknown[:5]} (ask quantizable_tensors for the names)."
        )
    result = copy_model(model)
    present = {o.name for o in result.graph.output}
    result.graph.output.extend(infos[name] for name in names if name not in present)
    return result
