"""A float model with what its INT8 scales are made from."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import numpy_helper

from export.calibration import ChannelStatistics, Histogram, Ranges, collect_histograms
from export.int8.bias_correction import BiasError, bias_errors, collect_mean_maps, correct_biases
from export.int8.equalization import Equalized, equalize
from export.int8.placement import quantizable_tensors, quantized_edges
from export.int8.scales import Scales
from export.int8.weights import RoundedWeight, round_to_nearest
from export.onnx_passes.graph import constants


@dataclass(frozen=True)
class Calibrated:
    """A float model with histograms of the activations that will be quantized.

    Args:
        model: float32; its weights will be rounded.
        histograms: Tensor name -> its histogram.
        images: Number of calibration images.
        strength: Of the equalization; None if the model is as it was.
        equalized: Number of activations whose ranges equalization changed.
        factors: From `export.int8.equalization.Equalized`.
    """

    model: onnx.ModelProto
    histograms: Mapping[str, Histogram]
    images: int
    strength: float | None
    equalized: int
    factors: Mapping[str, np.ndarray]

    def scales(self, method: str, shifted: Collection[str] = (), kind: str = "fp32") -> Scales:
        """Return the scales of a method of `METHODS`.

        Args:
            method: The method.
            shifted: The tensors that are shifted. Defaults to none.
            kind: The type that the file holds scales in, ``"fp32"`` or ``"fp16"``. Defaults to ``"fp32"``.
        """
        return Scales.from_histograms(self.histograms, method, images=self.images, shifted=shifted).of_type(kind)

    def nearest(self, kind: str = "fp32") -> dict[str, RoundedWeight]:
        """Return the weight of each quantized Conv, by its name, rounded to nearest."""
        nodes, table = {node.name: node for node in self.model.graph.node}, constants(self.model.graph)
        readers = [nodes[edge.node] for edge in quantized_edges(self.model)]
        names = dict.fromkeys(node.input[1] for node in readers if node.op_type == "Conv")
        return {name: round_to_nearest(numpy_helper.to_array(table[name]), kind) for name in names}

    def bias_errors(
        self, scales: Scales, weights: Mapping[str, RoundedWeight], batches: Iterable[np.ndarray]
    ) -> list[BiasError]:
        """Return the mean error of each quantized node with some scales and rounded weights."""
        return bias_errors(self.model, collect_mean_maps(self.model, batches, scales), weights)

    def corrected(self, errors: Sequence[BiasError], kept: Collection[str] = ()) -> onnx.ModelProto:
        """Return the model with its biases corrected for these errors, except those of kept nodes."""
        return correct_biases(self.model, errors, kept)[0] if errors else self.model


def calibrate(
    model: onnx.ModelProto,
    statistics: Mapping[str, ChannelStatistics],
    batches: Iterable[np.ndarray],
    images: int,
    strengths: Sequence[float | None],
) -> list[Calibrated]:
    """Return the model, equalized by each of some strengths, with the histograms for its scales.

    The images run through the model once: an equalized activation is the original one, divided by its factors.

    Args:
        model: float32.
        statistics: From `export.calibration.collect_statistics`.
        batches: Calibration images, uint8 (N, height, width, 3) RGB.
        images: Number of images.
        strengths: See `export.int8.equalization.equalize`; None leaves the model as it is.
    """
    bases = [
        Equalized(model, dict(statistics), 0, {}) if strength is None else equalize(model, statistics, strength)
        for strength in strengths
    ]
    names = quantizable_tensors(model)
    ranges = [Ranges({name: base.statistics[name].limit for name in names}, base.factors) for base in bases]
    found = collect_histograms(model, batches, ranges)
    return [
        Calibrated(base.model, histograms, images, strength, base.tensors, base.factors)
        for base, histograms, strength in zip(bases, found, strengths)
    ]
