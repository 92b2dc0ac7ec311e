"""The records of the search: ``calibration.json`` and ``placement.json``. Standard library only, Python 3.10 syntax."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from export.int8.simulate import Judged


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
        median_db: Median over the images of each image's own SQNR in dB; None as for `sqnr_db`.
        low_db: Its 5th percentile.
        worst_db: Its smallest value.
        tail_db: Its mean over the worst twentieth of the images.
    """

    sqnr_db: float | None
    top1_agreement: float
    accuracy_drop: float | None
    median_db: float | None = None
    low_db: float | None = None
    worst_db: float | None = None
    tail_db: float | None = None

    @classmethod
    def of(cls, judged: Judged) -> Distances:
        """Return the distances of a comparison on held-out images."""
        values = (judged.sqnr_db, judged.median_db, judged.low_db, judged.worst_db, judged.tail_db)
        sqnr, median, low, worst, tail = (value if math.isfinite(value) else None for value in values)
        return cls(sqnr, judged.top1_agreement, judged.accuracy_drop, median, low, worst, tail)


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
class Equalization:
    """The effect of equalization on the scales of one method.

    Args:
        used: Whether an equalized model is used.
        before: Without it.
        strengths: Each strength -> with it.
        strength: The best of them.
    """

    used: bool
    before: Distances
    strengths: Mapping[str, Distances]
    strength: str

    @property
    def after(self) -> Distances:
        """Return the distances with the best strength."""
        return self.strengths[self.strength]


@dataclass(frozen=True)
class Refusal:
    """Why a quantized tensor behind a ReLU cannot be shifted.

    Args:
        kind: The reason, without names.
        node: Name of the node that is the reason; empty if there is none.
    """

    kind: str
    node: str = ""

    def __str__(self) -> str:
        return f"{self.kind} ({self.node!r})" if self.node else self.kind


ShiftMode = Literal["auto", "always", "conv", "never"]
WeightRounding = Literal["second_order", "nearest"]


@dataclass(frozen=True)
class ShiftReport:
    """The effect of the eighth bit behind a ReLU, see `export.int8.shift`.

    Args:
        used: Whether it is used.
        shifted: Names of the tensors that are shifted with INT8 throughout; empty if it is not used.
        refused: Name of each other quantized tensor with the values of a ReLU -> why it cannot be shifted.
        quantized: Number of all quantized tensors.
        plain: Without it; None if only the shifted graph was tried.
        after: With it; None if no tensor can be shifted, or the recipe turns it off.
    """

    used: bool
    shifted: tuple[str, ...]
    refused: Mapping[str, Refusal]
    quantized: int
    plain: Distances | None = None
    after: Distances | None = None


@dataclass(frozen=True)
class SecondOrder:
    """The effect of second-order rounding of the weights, see `export.int8.second_order`.

    Args:
        used: Whether the weights that it rounded are used.
        images: Number of images that gave the second-order statistics.
        before: With weights rounded to nearest.
        after: With it.
        skipped: Name of each convolution that it does not round -> why.
    """

    used: bool
    images: int
    before: Distances
    after: Distances
    skipped: Mapping[str, str]


@dataclass(frozen=True)
class WeightRecord:
    """How the weight of one convolution was rounded.

    Args:
        node: Its name in the graph; of a shared weight that of the first convolution.
        method: How its codes were chosen.
        codes_sha256: Of its codes, int8 in C order.
        most_steps: Largest distance of a rounded weight from the float one, in scales of its channel; rounding to
            nearest moves none by more than a half.
        gain_db: How much smaller second-order rounding makes the error of the convolution's output on the images that
            it saw, in dB; None for nearest.
    """

    node: str
    method: WeightRounding
    codes_sha256: str
    most_steps: float
    gain_db: float | None = None


@dataclass(frozen=True)
class RoundingReport:
    """The record ``rounding.json``.

    Args:
        weights: The INT8 weights, in the order of the graph.
        schema: Version of this file's format.
    """

    weights: tuple[WeightRecord, ...]
    schema: int = 1


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
        methods: Distances with each method that was tried, with weights rounded to nearest.
        all_int8: Distances with INT8 throughout.
        kept: Nodes that stay in float, once layers were kept for the budget; empty before.
        budget_met: Whether the result meets the budget.
        shift: The eighth bit behind a ReLU.
        equalization: None if the recipe turns it off, or does not try the model without it.
        rounding: Second-order rounding of the weights; None if the recipe turns it off.
        bias_correction: None if the recipe turns it off.
        mixed: Distances with the kept nodes in float.
        trunk: Precision of scales, biases and Adds between quantized nodes in the INT8 file.
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
    shift: ShiftReport
    equalization: Equalization | None = None
    rounding: SecondOrder | None = None
    bias_correction: BiasCorrection | None = None
    mixed: Distances | None = None
    trunk: Literal["fp32", "fp16"] = "fp32"
    schema: int = 2
