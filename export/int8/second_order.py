"""Second-order rounding of weights: codes that change a convolution's output least, not its weights.

Source: Frantar et al., Optimal brain compression, NeurIPS 2022, and GPTQ, ICLR 2023.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx

from export.int8.scales import Scales
from export.int8.weights import RoundedWeight


@dataclass(frozen=True)
class SecondOrderWeights:
    """Rounded weights.

    Args:
        weights: Name of a weight -> its codes.
        gains_db: Name of a weight -> how much smaller the error of the convolution's output became, dB.
        images: Number of images that gave the statistics.
        skipped: Name of a quantized Conv that it does not round -> why, for people.
    """

    weights: Mapping[str, RoundedWeight]
    gains_db: Mapping[str, float]
    images: int
    skipped: Mapping[str, str]


def round_second_order(
    model: onnx.ModelProto,
    scales: Scales,
    batches: Callable[[str], Iterable[np.ndarray]],
    *,
    images: int,
    kind: str = "fp32",
    seed: int = 0,
    track: Callable[[Sequence[str]], Iterable[str]] = iter,
) -> SecondOrderWeights:
    """Return the weights of all quantized Convs."""
    raise NotImplementedError
