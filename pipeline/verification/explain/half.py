"""Values that a file's types cannot hold: FP16 ends at 65,504."""

from __future__ import annotations

from typing import Final

import numpy as np
from onnx import ModelProto, TensorProto, numpy_helper

from export.onnx_passes.graph import consumers, infer_shapes
from export.onnx_passes.layer_names import keras_layer
from export.words import count
from pipeline.verification.explain.fit import NEAR, Explanation, difference_in_words, fit_db
from pipeline.verification.explain.twin import AT_ONCE, float_tensors, in_fp32, run

LARGEST: Final = 65504.0  # of FP16
_KEEP = (
    "Keep this layer in FP32: raise quantize.max_kept_fp32 and run quantize again, which keeps what nears FP16's range "
    "in FP32; or scale the weights of the layers before it down."
)


def explain_range(
    model: ModelProto, pixels: np.ndarray, expected: np.ndarray, received: np.ndarray, precision: str
) -> list[Explanation]:
    """Explain logits by values beyond the range of FP16.

    Args:
        model: The file, with one input of pixels.
        pixels: Test images, those whose answers are not finite first.
        expected: Logits of the reference for them.
        received: Those of the file.
        precision: Of the file.
    """
    if found := _weights_beyond(model):
        return [found]
    few = pixels[:AT_ONCE]
    half = _half_tensors(model)
    twin = in_fp32(model)
    written = {name: node for name, node in float_tensors(twin) if name in half}
    logits = twin.graph.output[0].name
    values = run(twin, few, [logits, *written])
    twin_fit, without = fit_db(expected[: len(few)], values[logits]), fit_db(expected[: len(few)], received[: len(few)])
    for name, node in written.items():
        largest = float(np.abs(values[name]).max())
        if largest <= LARGEST:
            continue
        right = (
            f" In FP32 the same file is right: its logits differ by {difference_in_words(twin_fit)}."
            if twin_fit >= NEAR[precision] else ""
        )  # fmt: skip
        return [
            Explanation(
                "overflow",
                f"Values of layer {keras_layer(node.name)!r} are too large for FP16, whose largest number is 65,504; "
                "they become infinite.",
                f"The largest value behind {node.op_type} {node.name!r} is {largest:,.0f} on "
                f"{count(len(few), 'image')}.{right}",
                _KEEP,
                keras_layer(node.name),
                settles=twin_fit >= NEAR[precision] and without < NEAR[precision],
            )
        ]
    return []


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


def _half_tensors(model: ModelProto) -> set[str]:
    inferred = infer_shapes(model)
    return {
        info.name
        for info in (*inferred.value_info, *inferred.output)
        if info.type.tensor_type.elem_type == TensorProto.FLOAT16
    }


def _weights_beyond(model: ModelProto) -> Explanation | None:
    """Find weights that are not finite."""
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
        return Explanation(
            "overflow" if half else "weights",
            f"Weights of layer {layer!r} are not finite in the file"
            + (": they are too large for FP16, whose largest number is 65,504." if half else "."),
            f"{broken:,} of {count(values.size, 'value')} of {tensor.name!r} are NaN or infinite.",
            _KEEP if half else "Export the model again; if Keras' own weights are finite, the file is damaged.",
            layer,
        )
    return None
