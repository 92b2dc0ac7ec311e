"""Exact INT8 arithmetic on a CPU at the speed of float32: quantize, dequantize, convolve in float."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx

from export.metrics import Comparison, compare
from export.ort_session import open_session


def simulate(model: onnx.ModelProto, pixels: np.ndarray, batch_size: int = 8) -> np.ndarray:
    """Returns a model's logits, float32 (N, classes).

    Q/DQ pairs are computed as the file says; none is fused into an INT8 kernel, which saturates on some CPUs. Float
    nodes may fuse, so that a model on an FP32 base takes hardly longer than without the pairs.

    Args:
        model: float32, with or without Q/DQ; its first output is the logits.
        pixels: uint8 (N, height, width, 3) RGB.
        batch_size: How many are run at once. Defaults to 8.
    """
    session = open_session(model, spinning=False)
    source, logits = model.graph.input[0].name, model.graph.output[0].name
    starts = range(0, len(pixels), batch_size)
    return np.concatenate([session.run([logits], {source: pixels[i : i + batch_size]})[0] for i in starts])


@dataclass(frozen=True)
class HeldOut:
    """Images that gave no scales, by which quantised models are judged.

    Args:
        pixels: uint8 (N, height, width, 3) RGB.
        labels: int64 (N,).
        reference: The FP32 model's logits, float32 (N, classes).
        batch_size: How many are run at once.
    """

    pixels: np.ndarray
    labels: np.ndarray
    reference: np.ndarray
    batch_size: int = 8

    @classmethod
    def of(cls, model: onnx.ModelProto, pixels: np.ndarray, labels: np.ndarray, batch_size: int = 8) -> HeldOut:
        """Runs the FP32 model on the images."""
        return cls(pixels, labels, simulate(model, pixels, batch_size), batch_size)

    def __len__(self) -> int:
        return len(self.pixels)

    def judge(self, model: onnx.ModelProto) -> Comparison:
        """Returns how close a model, on an FP32 base, comes to the reference."""
        return compare(self.reference, simulate(model, self.pixels, self.batch_size), self.labels)

    def first(self, count: int) -> HeldOut:
        """Returns the first images only."""
        return HeldOut(self.pixels[:count], self.labels[:count], self.reference[:count], self.batch_size)


def words(comparison: Comparison) -> str:
    """Returns what a line of a log says of a comparison on held-out images."""
    return f"SQNR {comparison.sqnr_db:.1f} dB, agreement {comparison.top1_agreement:.2%}"
