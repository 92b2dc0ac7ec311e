"""Values that a file's types cannot hold: FP16 ends at 65,504."""

from __future__ import annotations

import numpy as np
from onnx import ModelProto, TensorProto, numpy_helper

from export.onnx_passes.graph import consumers
from export.onnx_passes.layer_names import keras_layer
from export.words import count
from pipeline.verification.checks.overflow import Extreme
from pipeline.verification.explain.fit import NEAR, Explanation, difference_in_words, fit_db
from pipeline.verification.explain.remedies import AGAIN
from pipeline.verification.explain.twin import float_tensors, run

_KEEP = (
    "Keep this layer in FP32: raise quantize.max_kept_fp32 and run quantize again, which keeps what nears FP16's range "
    "in FP32; or scale the weights of the layers before it down."
)


def explain_overflow(
    extreme: Extreme, expected: np.ndarray, received: np.ndarray | None, precision: str
) -> Explanation:
    """Explain a failure by values beyond the range of FP16 that change answers.

    Args:
        extreme: What was found.
        expected: Logits of the reference.
        received: Those of the file, as a CPU computes it in FP32; None where there are none.
        precision: Of the file.
    """
    fit = -np.inf if received is None else fit_db(expected, received)
    right = (
        f" In FP32, as a CPU computes it, the same file is right: its logits differ by {difference_in_words(fit)}."
        if fit >= NEAR[precision] else ""
    )  # fmt: skip
    return Explanation(
        "overflow",
        f"Values of layer {extreme.layer!r} are too large for FP16, whose largest number is 65,504; they become "
        "infinite.",
        f"The largest value behind {extreme.node!r} is {extreme.largest:,.0f} on {count(extreme.images, 'image')}, of "
        f"whose answers {extreme.changed:,} change with infinity in its place.{right}",
        _KEEP,
        extreme.layer,
        settles=fit >= NEAR[precision],
    )


def first_not_finite(model: ModelProto, pixels: np.ndarray) -> str:
    """Return the Keras layer of the first tensor that is not finite; "" where there is none.

    What follows such a tensor is not finite either, so a search by halves finds it in a few runs.

    Args:
        model: The file, with one input of pixels.
        pixels: Images in one batch, as they were run.
    """
    tensors = float_tensors(model)

    def broken(index: int) -> bool:
        name = tensors[index][0]
        return not np.isfinite(run(model, pixels, [name], len(pixels))[name]).all()

    if not tensors or not broken(len(tensors) - 1):
        return ""
    low, high = 0, len(tensors) - 1
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if broken(middle) else (middle + 1, high)
    return keras_layer(tensors[low][1].name)


def explain_weights_beyond(model: ModelProto) -> list[Explanation]:
    """Explain a failure by weights that are not finite."""
    readers = consumers(model.graph)
    for tensor in model.graph.initializer:
        if tensor.data_type not in (TensorProto.FLOAT16, TensorProto.FLOAT):
            continue
        values = numpy_helper.to_array(tensor)
        broken = int((~np.isfinite(values)).sum())
        if not broken or not readers.get(tensor.name):
            continue
        node = readers[tensor.name][0]
        layer = keras_layer(node.name)
        half = tensor.data_type == TensorProto.FLOAT16
        found = Explanation(
            "overflow" if half else "weights",
            f"Weights of layer {layer!r} are not finite in the file"
            + (": they are too large for FP16, whose largest number is 65,504." if half else "."),
            f"{broken:,} of {count(values.size, 'value')} of {tensor.name!r} are NaN or infinite.",
            _KEEP if half else f"{AGAIN}; if Keras' own weights are finite, the file is damaged.",
            layer,
        )
        return [found]
    return []
