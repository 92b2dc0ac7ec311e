"""What is asked of the search."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Literal

from export.int8.sensitivity import Budget

# Shows the progress through some names: of what they are, and what one is called.
Track = Callable[[Sequence[str], str, str], Iterable[str]]


@dataclass(frozen=True)
class SearchOptions:
    """What is asked of the search.

    Args:
        method: How scales are chosen: one of `export.int8.scales.METHODS`, or ``"auto"``, which tries all of them.
        equalize: Give the channels of an activation alike ranges.
        bias_correction: Take the mean error of quantization out of the biases, where that helps.
        sensitivity: Whether each layer is measured alone: ``"auto"`` where a graph misses its budget throughout.
        sensitivity_images: Held-out images that measure a layer; all of them judge the whole model.
        max_kept: Share of the convolutions that may stay in FP16 in the INT8 graph.
        max_kept_fp32: Share of the convolutions that may stay in FP32 in the FP16 graph.
        int8: What the INT8 graph must reach on held-out images.
        fp16: What the FP16 graph must reach there, to which a margin comes.
    """

    method: str = "auto"
    equalize: bool = True
    bias_correction: bool = True
    sensitivity: Literal["auto", "always", "never"] = "auto"
    sensitivity_images: int = 32
    max_kept: float = 0.1
    max_kept_fp32: float = 0.75
    int8: Budget = field(default_factory=Budget)
    fp16: Budget = field(default_factory=Budget)
