"""The options of the search for the INT8 and FP16 graphs."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Literal

from export.int8.report import ShiftMode, WeightRounding
from export.int8.sensitivity import Budget

# Shows the progress through some names; the texts are a description of the names, and the word for one of them.
Track = Callable[[Sequence[str], str, str], Iterable[str]]


@dataclass(frozen=True)
class SearchOptions:
    """The options of the search.

    Args:
        method: The calibration method: one of `export.int8.scales.METHODS`, or ``"auto"``, which tries all of them.
        shift: Which activations get the eighth bit behind a ReLU: ``"auto"`` all that can, if that helps, ``"always"``
            all that can, ``"conv"`` those right behind a Conv, if that helps, ``"never"`` none. See
            `export.int8.shift`.
        rounding: Whether second-order rounding of the weights is tried, see `export.int8.second_order`.
        rounding_images: Number of calibration images that it sees, the first ones.
        trunk: Precision of scales, biases and Adds between quantized nodes, see `export.int8.trunk`.
        effort: ``"fast"`` tries fewer methods, equalizes without trying the model as it is, and rounds to nearest.
        equalize: Whether the channels of an activation are scaled to similar ranges.
        bias_correction: Whether biases are corrected for the mean quantization error, if that helps.
        sensitivity: Whether each layer is measured alone: ``"auto"`` if a graph misses its budget.
        sensitivity_images: Number of held-out images on which a layer is measured; whole graphs use all of them.
        max_kept: Largest share of the convolutions that may stay FP16 in the INT8 graph to meet the budget; at 0 no
            other layer is kept for it, either.
        max_kept_fp32: Largest share of the convolutions that may stay FP32 in the FP16 graph.
        int8: The budget of the INT8 graph on held-out images.
        fp16: The budget of the FP16 graph on held-out images, to which a margin is added.
    """

    method: str = "auto"
    shift: ShiftMode = "auto"
    rounding: WeightRounding = "second_order"
    rounding_images: int = 192
    trunk: Literal["fp32", "fp16"] = "fp32"
    effort: Literal["full", "fast"] = "full"
    equalize: bool = True
    bias_correction: bool = True
    sensitivity: Literal["auto", "always", "never"] = "auto"
    sensitivity_images: int = 32
    max_kept: float = 0.1
    max_kept_fp32: float = 0.75
    int8: Budget = field(default_factory=Budget)
    fp16: Budget = field(default_factory=Budget)

    @property
    def second_order(self) -> bool:
        """Return whether second-order rounding of the weights is tried."""
        return self.rounding == "second_order" and self.effort == "full"
