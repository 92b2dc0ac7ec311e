"""Exact INT8 arithmetic on a CPU at the speed of float32: quantize, dequantize, convolve in float."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx

from export.metrics import Comparison, compare


def simulate(
    model: onnx.ModelProto, pixels: np.ndarray, batch_size: int = 8, progress: Callable[[int], None] | None = None
) -> np.ndarray:
    """Returns a model's logits, float32 (N, classes).

    Q/DQ pairs are computed as the file says; none is fused into an INT8 kernel, which saturates on some CPUs. Float
    nodes may fuse, so that a model on an FP32 base takes hardly longer than without the pairs.

    Args:
        model: float32, with or without Q/DQ; its first output is the logits.
        pixels: uint8 (N, height, width, 3) RGB.
        batch_size: How many are run at once. Defaults to 8.
        progress: Called after each batch with the images done so far. Defaults to None.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.add_session_config_entry("session.disable_quant_qdq", "1")
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"], disabled_optimizers=["Pad_Fusion"]
    )
    source, logits = model.graph.input[0].name, model.graph.output[0].name
    parts = []
    for start in range(0, len(pixels), batch_size):
        parts.append(session.run([logits], {source: pixels[start : start + batch_size]})[0])
        if progress is not None:
            progress(min(start + batch_size, len(pixels)))
    return np.concatenate(parts)


class HeldOut:
    """Judges quantised models by images that gave no scales.

    Args:
        model: The FP32 model, the reference.
        pixels: uint8 (N, height, width, 3) RGB.
        labels: int64 (N,).
        batch_size: How many are run at once. Defaults to 8.
    """

    def __init__(self, model: onnx.ModelProto, pixels: np.ndarray, labels: np.ndarray, batch_size: int = 8) -> None:
        self.pixels, self.labels, self.batch_size = pixels, labels, batch_size
        self.reference = simulate(model, pixels, batch_size)

    def __len__(self) -> int:
        return len(self.pixels)

    def judge(self, model: onnx.ModelProto) -> Comparison:
        """Returns how close a model, on an FP32 base, comes to the reference."""
        return compare(self.reference, simulate(model, self.pixels, self.batch_size), self.labels)

    def first(self, count: int) -> HeldOut:
        """Returns the same on the first images only, without running the reference again."""
        part = object.__new__(HeldOut)
        part.__dict__.update(self.__dict__)
        part.pixels, part.labels, part.reference = self.pixels[:count], self.labels[:count], self.reference[:count]
        return part


def summary(comparison: Comparison) -> dict[str, float | int | None]:
    """Returns what a table shows of a comparison on held-out images."""
    return {
        "sqnr_db": comparison.to_dict()["sqnr_db"],
        "top1_agreement": comparison.top1_agreement,
        "accuracy_drop": comparison.accuracy_drop,
    }
