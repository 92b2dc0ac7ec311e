"""The records of the search: ``calibration.json`` and ``placement.json``. Standard library only, Python 3.10 syntax."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from export.metrics.distances import Comparison


@dataclass(frozen=True)
class Placement:
    """The precision of one node.

    Args:
        node: Its name in the graph.
        keras_layer: Its Keras layer.
        op: The ONNX operator.
        precision: ``"int8"``, ``"fp16"`` or ``"fp32"``. ``"int8"`` means that all data inputs are quantized.
        why: The rule, for people.
    """

    node: str
    keras_layer: str
    op: str
    precision: str
    why: str


@dataclass(frozen=True)
class PlacementReport:
    """The record ``placement.json``.

    Args:
        nodes: The precision of each node of the INT8 graph, in its order.
        schema: Version of this file's format.
    """

    nodes: tuple[Placement, ...]
    schema: int = 1


Rounding = Literal["nearest", "mean"]


@dataclass(frozen=True)
class Distances:
    """Distances of a graph from the float model on held-out images.

    Args:
        sqnr_db: Signal to quantization noise ratio in dB; None if the logits are equal, or not finite.
        top1_agreement: Share of images with the same top class.
        accuracy_drop: Accuracy lost; None without labels.
    """

    sqnr_db: float | None
    top1_agreement: float
    accuracy_drop: float | None

    @classmethod
    def of(cls, comparison: Comparison) -> Distances:
        """Return the distances of a comparison."""
        sqnr = comparison.sqnr_db if math.isfinite(comparison.sqnr_db) else None
        return cls(sqnr, comparison.top1_agreement, comparison.accuracy_drop)


@dataclass(frozen=True)
class BiasCorrection:
    """The effect of bias correction.

    Args:
        used: Whether the corrected biases are used.
        before: Without correction.
        after: With correction.
    """

    used: bool
    before: Distances
    after: Distances


@dataclass(frozen=True)
class Fp16Rounding:
    """The rounding of the FP16 graph's weights.

    Args:
        chosen: The rounding that is used.
        nearest: Rounded to nearest.
        mean: Rounded so that the mean of each output channel is kept.
    """

    chosen: Rounding
    nearest: Distances
    mean: Distances


@dataclass(frozen=True)
class Fp16Report:
    """The report of the search for the FP16 graph.

    Args:
        rounding: The rounding of its weights.
        kept_fp32: Nodes that stay FP32 -> why.
        budget: The budget on held-out images, in words.
        budget_met: Whether the result meets it.
        kept: The first node of each layer that stays FP32 to meet it.
        mixed: With these layers in FP32; None if there are none.
    """

    rounding: Fp16Rounding
    kept_fp32: Mapping[str, str]
    budget: str = "nothing"
    budget_met: bool = True
    kept: tuple[str, ...] = ()
    mixed: Distances | None = None


@dataclass(frozen=True)
class CalibrationReport:
    """The file ``quantize/calibration.json``.

    Args:
        fp16: The FP16 graph.
        equalized_activations: Number of activations whose ranges equalization changed.
        held_out_images: Number of images on which graphs were compared.
        scale_images: Number of images that gave the scales.
        int8_convolutions: Number of convolutions in INT8.
        convolutions: Number of all convolutions.
        budget: The INT8 budget, in words.
        method: The calibration method that is used.
        methods: Distances with each method.
        all_int8: Distances with INT8 throughout.
        kept: Nodes that stay in float.
        budget_met: Whether the result meets the budget.
        bias_correction: None if the recipe turns it off.
        mixed: Distances with the kept nodes in float.
        schema: Version of this file's format.
    """

    fp16: Fp16Report
    equalized_activations: int
    held_out_images: int
    scale_images: int
    int8_convolutions: int
    convolutions: int
    budget: str
    method: str
    methods: Mapping[str, Distances]
    all_int8: Distances
    kept: tuple[str, ...]
    budget_met: bool
    bias_correction: BiasCorrection | None = None
    mixed: Distances | None = None
    schema: int = 1
