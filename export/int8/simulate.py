"""Simulation of INT8 on a CPU at the speed of float32: quantize, dequantize, convolve in float."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

import numpy as np
import onnx

from export.metrics.distances import Comparison, compare
from export.metrics.per_image import sqnr_by_image
from export.ort_session import open_session
from export.words import percent

_TAIL = 0.05  # share of the images


def simulate(model: onnx.ModelProto, pixels: np.ndarray, batch_size: int = 8) -> np.ndarray:
    """Return a model's logits, float32 (N, classes).

    Q/DQ pairs are computed as in the file; none is fused into an INT8 kernel, which saturates on some CPUs. Float nodes
    may be fused, so a model on an FP32 base takes hardly longer than without the pairs.

    Args:
        model: float32, with or without Q/DQ; its first output is the logits.
        pixels: uint8 (N, height, width, 3) RGB.
        batch_size: Number of images per run. Defaults to 8.
    """
    source, logits = model.graph.input[0].name, model.graph.output[0].name
    session = open_session(model, spinning=False)
    batches = [pixels[i : i + batch_size] for i in range(0, len(pixels), batch_size)]
    return np.concatenate([session.run([logits], {source: batch})[0] for batch in batches])


@dataclass(frozen=True)
class Judged(Comparison):
    """A comparison on held-out images, with the spread over them: one image can carry a third of all noise.

    Args:
        median_db: Median over the images of each image's own SQNR, dB; inf if most are equal, -inf if most are not
            finite.
        low_db: Its 5th percentile.
        worst_db: Its smallest value.
        tail_db: Its mean over the worst twentieth of the images, the expected shortfall: of a hundred images the 5th
            percentile is a single one, which another sample would replace.
    """

    median_db: float = math.inf
    low_db: float = math.inf
    worst_db: float = math.inf
    tail_db: float = math.inf

    @classmethod
    def of(cls, reference: np.ndarray, logits: np.ndarray, labels: np.ndarray) -> Judged:
        """Compare logits, (N, classes), with those of the reference."""
        comparison = compare(reference, logits, labels)
        by_image = np.sort(sqnr_by_image(reference, logits))
        # The nearest rank, as no mean is taken of infinite values.
        median, low = (float(by_image[math.floor(share * (len(by_image) - 1))]) for share in (0.5, _TAIL))
        worst = float(by_image[0])
        tail = float(by_image[: math.ceil(_TAIL * len(by_image))].mean()) if math.isfinite(worst) else worst
        values = {field.name: getattr(comparison, field.name) for field in fields(comparison)}
        return cls(**values, median_db=median, low_db=low, worst_db=worst, tail_db=tail)


@dataclass(frozen=True)
class HeldOut:
    """Images that gave no scales, on which quantized models are compared with FP32.

    Args:
        pixels: uint8 (N, height, width, 3) RGB.
        labels: int64 (N,).
        reference: The FP32 model's logits, float32 (N, classes).
        batch_size: Number of images per run. Defaults to 8.
    """

    pixels: np.ndarray
    labels: np.ndarray
    reference: np.ndarray
    batch_size: int = 8

    @classmethod
    def of(cls, model: onnx.ModelProto, pixels: np.ndarray, labels: np.ndarray, batch_size: int = 8) -> HeldOut:
        """Run the FP32 model on the images."""
        return cls(pixels, labels, simulate(model, pixels, batch_size), batch_size)

    def __len__(self) -> int:
        return len(self.pixels)

    def judge(self, model: onnx.ModelProto) -> Judged:
        """Return the comparison of a model, on an FP32 base, with the reference."""
        return Judged.of(self.reference, simulate(model, self.pixels, self.batch_size), self.labels)

    def first(self, count: int) -> HeldOut:
        """Return the first images only."""
        return HeldOut(self.pixels[:count], self.labels[:count], self.reference[:count], self.batch_size)


def describe_comparison(comparison: Comparison) -> str:
    """Return a comparison on held-out images in a few words, for the log."""
    return f"SQNR {comparison.sqnr_db:.1f} dB, agreement {percent(comparison.top1_agreement)}"
