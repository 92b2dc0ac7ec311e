"""What the search reports: ``calibration.json`` and ``placement.json``. Standard library only, Python 3.10 syntax.

A row of the table that says what each node of the INT8 graph computes in.

What the search says of its work: the record ``calibration.json``. Standard library only, Python 3.10 syntax.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from export.metrics.distances import Comparison


@dataclass(frozen=True)
class Placement:
    """What one node computes in, and why.

    Args:
        node: Its name in the graph.
        keras_layer: The layer it comes from.
        op: The ONNX operator.
        precision: ``"int8"``, ``"fp16"`` or ``"fp32"``. ``"int8"`` says that all data inputs are quantized.
        why: The rule, for people.
    """

    node: str
    keras_layer: str
    op: str
    precision: str
    why: str


CALIBRATION_SCHEMA = 1
Rounding = Literal["nearest", "mean"]


@dataclass(frozen=True)
class Distances:
    """How far from the float model on held-out images; SQNR in dB, None: equal, or not finite."""

    sqnr_db: float | None
    top1_agreement: float
    accuracy_drop: float | None

    @classmethod
    def of(cls, comparison: Comparison) -> Distances:
        """Take what a table shows of a comparison."""
        sqnr = comparison.sqnr_db if math.isfinite(comparison.sqnr_db) else None
        return cls(sqnr, comparison.top1_agreement, comparison.accuracy_drop)


@dataclass(frozen=True)
class BiasCorrection:
    """What taking the mean error out of the biases brought."""

    used: bool
    before: Distances
    after: Distances


@dataclass(frozen=True)
class Fp16Rounding:
    """How the weights of the FP16 graph were rounded."""

    chosen: Rounding
    nearest: Distances
    mean: Distances


@dataclass(frozen=True)
class Fp16Report:
    """How the FP16 graph came about.

    Attributes:
        rounding: of its weights.
        kept_fp32: nodes that stay FP32, and why.
        budget: what was asked of it on held-out images, in words.
        budget_met: whether the result does.
        kept: the first node of each layer that stays FP32 to meet it.
        mixed: with these layers in FP32; None where there are none.
    """

    rounding: Fp16Rounding
    kept_fp32: Mapping[str, str]
    budget: str = "nothing"
    budget_met: bool = True
    kept: tuple[str, ...] = ()
    mixed: Distances | None = None


@dataclass(frozen=True)
class CalibrationReport:
    """``quantize/calibration.json``.

    Attributes:
        fp16: the FP16 graph.
        equalized_activations: how many.
        held_out_images: that judged every choice.
        scale_images: that gave the scales.
        int8_convolutions: of ``convolutions``.
        convolutions: in the graph.
        budget: what was asked of INT8, in words.
        method: of the scales.
        methods: what each came to.
        all_int8: INT8 throughout.
        kept: nodes that stay in float.
        budget_met: whether the result does what was asked.
        bias_correction: None where the recipe turned it off.
        mixed: with the kept nodes in float.
        schema: of this file.
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
    schema: int = CALIBRATION_SCHEMA
