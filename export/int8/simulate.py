"""Exact INT8 arithmetic on a CPU at the speed of float32: quantize, dequantize, convolve in float."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import helper

from export.metrics.distances import Comparison, compare
from export.onnx_passes.graph import copy_model
from export.ort_session import open_session


def simulate(model: onnx.ModelProto, pixels: np.ndarray, batch_size: int = 8) -> np.ndarray:
    """Return a model's logits, float32 (N, classes).

    Q/DQ pairs are computed as the file says; none is fused into an INT8 kernel, which saturates on some CPUs. Float
    nodes may fuse, so that a model on an FP32 base takes hardly longer than without the pairs.

    Args:
        model: float32, with or without Q/DQ; its first output is the logits.
        pixels: uint8 (N, height, width, 3) RGB.
        batch_size: How many are run at once. Defaults to 8.
    """
    return next(simulate_variants(model, pixels, batch_size, [{}]))


def simulate_variants(
    model: onnx.ModelProto, pixels: np.ndarray, batch_size: int, variants: Iterable[Mapping[str, np.ndarray]]
) -> Iterator[np.ndarray]:
    """Yield what `simulate` returns for each variant of a model's constants; one session runs them all.

    Args:
        model: As for `simulate`.
        pixels: uint8 (N, height, width, 3) RGB.
        batch_size: How many are run at once.
        variants: Values in the place of some initializers, by name, the same names in each.
    """
    source, logits = model.graph.input[0].name, model.graph.output[0].name
    starts = range(0, len(pixels), batch_size)
    session = None
    for values in variants:
        session = session or open_session(_with_inputs(model, values), spinning=False)
        batches = [{source: pixels[i : i + batch_size], **values} for i in starts]
        yield np.concatenate([session.run([logits], batch)[0] for batch in batches])


def _with_inputs(model: onnx.ModelProto, values: Mapping[str, np.ndarray]) -> onnx.ModelProto:
    """Return the model with initializers that a run may give other values."""
    result = copy_model(model) if values else model
    types = [(name, helper.np_dtype_to_tensor_dtype(value.dtype), value.shape) for name, value in values.items()]
    result.graph.input.extend(helper.make_tensor_value_info(*each) for each in types)
    return result


@dataclass(frozen=True)
class HeldOut:
    """Images that gave no scales, by which quantized models are judged.

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
        """Run the FP32 model on the images."""
        return cls(pixels, labels, simulate(model, pixels, batch_size), batch_size)

    def __len__(self) -> int:
        return len(self.pixels)

    def judge(self, model: onnx.ModelProto) -> Comparison:
        """Return how close a model, on an FP32 base, comes to the reference."""
        return next(self.judge_variants(model, [{}]))

    def judge_variants(
        self, model: onnx.ModelProto, variants: Iterable[Mapping[str, np.ndarray]]
    ) -> Iterator[Comparison]:
        """Yield how close a model, on an FP32 base, comes with each variant, see `simulate_variants`."""
        for logits in simulate_variants(model, self.pixels, self.batch_size, variants):
            yield compare(self.reference, logits, self.labels)

    def first(self, count: int) -> HeldOut:
        """Return the first images only."""
        return HeldOut(self.pixels[:count], self.labels[:count], self.reference[:count], self.batch_size)


def words(comparison: Comparison) -> str:
    """Return what a line of a log says of a comparison on held-out images."""
    return f"SQNR {comparison.sqnr_db:.1f} dB, agreement {comparison.top1_agreement:.2%}"
