"""Runs a finished export on generated images, and compares its logits with those of the Keras model.

An error of tf2onnx or of a pass changes the logits without a message, and so does a layer that computes over the batch.
The images are generated, as an export must be checked where there are no photos. Noise alone averages out in the first
pooling, so an error on large bright or dark areas, or in one channel, would not show.
"""

import logging

import keras
import numpy as np
import onnx

from export.errors import ProjectError, cause
from export.from_keras.probes import probe_pixels
from export.metrics.difference import relative_difference
from export.onnx_passes.graph import copy_model, op_counts
from export.onnx_passes.layer_names import keras_layer
from export.ort_session import open_session
from export.preprocessing import PreprocessingSpec
from export.words import count, listed

logger = logging.getLogger(__name__)

PICTURES = 8
# Relative to the largest logit. Float32 logits of deep networks differ by up to 3e-5; an error at the border of a layer
# alone may be 1e-3 or less.
TOLERANCE = 3e-4
# The export may differ by this factor more than Keras itself does when its input moves by one ulp: a network that
# rounds or thresholds inside amplifies rounding errors, and is correct nevertheless.
_OWN_NOISE = 10.0


def check_logits(model: onnx.ModelProto, source: keras.Model, preprocessing: PreprocessingSpec) -> float:
    """Compare an export's logits with those of Keras at batches of 1, 2 and 7, and with each other.

    Args:
        model: From uint8 pixels (batch, height, width, 3) to logits, its first output.
        source: The Keras model of these logits.
        preprocessing: The preprocessing in `model`.

    Returns:
        The largest difference, relative to the largest logit.

    Raises:
        ProjectError: If the logits differ, depend on the batch or on chance, or a model fails at a batch size.
    """
    source = keras.Model(source.inputs[0], source.outputs[0])  # its inputs and outputs may be in lists or dicts
    _, height, width, _ = source.input_shape
    pixels = probe_pixels(height, width, PICTURES)
    inputs = preprocessing.apply(pixels)
    expected = _keras(source, inputs)
    parts = [slice(0, 7), slice(5, 7), slice(7, 8), slice(0, 1)]
    answers = [logits for (logits,) in _run(model, [model.graph.output[0].name], [pixels[part] for part in parts])]
    difference = max(relative_difference(expected[part], logits) for part, logits in zip(parts, answers))
    seven, pair, _, alone = answers
    mixed = max(relative_difference(seven[5:7], pair), relative_difference(seven[:1], alone))
    own = relative_difference(expected[:1], _keras(source, inputs[:1]))
    if max(difference, mixed, own) <= TOLERANCE:
        logger.debug("the export differs from Keras by %.1e of the largest logit", difference)
        return difference
    if (random := relative_difference(expected, _keras(source, inputs))) > TOLERANCE:
        raise ProjectError(
            "Expected a model that gives one answer for one picture. Received: logits of one batch that differ by "
            f"{random:.1e} of the largest one from run to run (a Dropout, noise or augmentation runs at inference: "
            "save the model without training=True)."
        )
    moved = (np.nextafter(inputs, np.float32(end)) for end in (np.inf, -np.inf))
    noise = max(relative_difference(expected, _keras(source, values)) for values in moved)
    allowed = max(TOLERANCE, _OWN_NOISE * noise)
    if own > allowed or mixed > allowed:
        raise ProjectError(
            "Expected answers that do not depend on the other pictures of a batch. Received: logits that differ by "
            f"{max(own, mixed):.1e} of the largest one between a picture alone and the same in a batch, "
            f"{'in Keras too' if own > allowed else 'in the export, not in Keras'} (a layer computes over the batch: "
            "look for a mean, a sort or a reshape over axis 0)."
        )
    if difference > allowed:
        raise ProjectError(
            f"Expected an export that gives the model's logits. Received: a difference of {difference:.1e} of the "
            f"largest logit, {_where(model, source, pixels[:1], inputs[:1])} (replace that layer by one that computes "
            "the same from usual ones, and please report it)."
        )
    logger.warning(
        "  the export differs from Keras by %.1e of the largest logit; so does Keras itself when a pixel moves by "
        "one bit: the model rounds or thresholds inside",
        difference,
    )
    return difference


def _keras(source: keras.Model, inputs: np.ndarray) -> np.ndarray:
    """Return the logits of a Keras model.

    Raises:
        ProjectError: If the model does not take that many images at once.
    """
    try:
        # predict() would trace the model once more, which takes longer than eight images. A GPU would compute in TF32,
        # whose error is larger than the tolerance.
        with keras.device("cpu:0"):
            return np.asarray(source(inputs, training=False), dtype=np.float32)
    except Exception as error:  # whatever a layer raises
        raise ProjectError(
            f"Expected a model that takes a batch of any size. Received: {type(error).__name__} for "
            f"{count(len(inputs), 'picture')}: {cause(error)} (a layer fixes the batch, for example a Reshape with "
            "a constant)."
        ) from error


def _run(model: onnx.ModelProto, outputs: list[str], batches: list[np.ndarray]) -> list[list[np.ndarray]]:
    """Return some outputs, by name, for each batch of pixels.

    Raises:
        ProjectError: If ONNX Runtime does not load or run the model.
    """
    try:
        session = open_session(model, log_severity=4)  # the error contains the log message
        return [session.run(outputs, {model.graph.input[0].name: pixels}) for pixels in batches]
    except Exception as error:  # ONNX Runtime's errors have no common class
        raise ProjectError(
            f"Expected an export that ONNX Runtime runs. Received: {type(error).__name__}: {cause(error)} "
            "(replace the layer that is named, and please report it)."
        ) from error


def _where(model: onnx.ModelProto, source: keras.Model, pixels: np.ndarray, inputs: np.ndarray) -> str:
    """Return the first Keras layer whose values the export does not contain, else the operators of the export.

    A layer's sorted values are compared with those of all tensors of the graph, as the export is NCHW and Keras NHWC.
    After folding some layers have no tensor of their own, so a layer is correct if one that reads it is.
    """
    try:
        operations = [operation for operation in source.operations if operation.output is not source.inputs[0]]
        with keras.device("cpu:0"):
            values = keras.Model(source.inputs, [o.output for o in operations])([inputs], training=False)
        probe = copy_model(model)
        names = [name for node in model.graph.node for name in node.output if name]
        del probe.graph.output[:]
        probe.graph.output.extend(onnx.helper.make_empty_tensor_value_info(name) for name in names)
        (tensors,) = _run(probe, names, [pixels])
        computed = [np.sort(np.ravel(tensor)) for tensor in tensors if tensor.dtype == np.float32]
    except Exception:  # a layer that is called twice, or returns a list: the message names no layer
        return f"in a graph of {listed(op_counts(model))}"
    correct: set[str] = set()
    first = operations[-1]
    for operation, value in reversed(list(zip(operations, values))):
        expected = np.sort(np.ravel(np.asarray(value)))
        if operation.name in correct or any(relative_difference(expected, x) <= TOLERANCE for x in computed):
            correct.update(parent.operation.name for node in operation._inbound_nodes for parent in node.parent_nodes)
        else:
            first = operation
    inside = sorted({node.op_type for node in model.graph.node if keras_layer(node.name) == first.name})
    return f"first in the layer {first.name!r} ({type(first).__name__}{': ' if inside else ''}{listed(inside)})"
