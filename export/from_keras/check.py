"""Runs a finished export on pictures made here, and compares it with the Keras model.

Pictures that make a network show what it computes: made here, equal on every machine.

Photographs would do, but an export must be checked where there are none. Noise alone does not do: it averages out
in the first pooling, all its pictures look alike to a network, and a part that only differs on large bright or dark
areas, or only for one channel, never differs.

A finished export, run on pictures made here and compared with the Keras model that it came from.

The export, tf2onnx and its passes are not trusted: what they get wrong is a wrong answer without a word. And what
only holds at one batch size, or gives each picture an answer that depends on its neighbours, is no classifier.
"""

import logging

import keras
import numpy as np
import onnx

from export.errors import ProjectError
from export.metrics.distances import relative_difference
from export.onnx_passes.graph import copy_model, op_counts
from export.onnx_passes.layer_names import keras_layer
from export.ort_session import open_session
from export.preprocessing import PreprocessingSpec
from export.words import count, listed


def probe_pixels(height: int, width: int, count: int = 16, seed: int = 0) -> np.ndarray:
    """Return uint8 (count, height, width, 3) RGB pictures, each of another kind, from 0 to 255.

    Blobs of several sizes, coloured gradients, stripes, a dark and a bright one, and noise; no two of one mean. The
    first pictures do not depend on `count`.

    Args:
        height: In pixels.
        width: In pixels.
        count: How many. Defaults to 16.
        seed: Of everything random. Defaults to 0.
    """
    pictures = np.empty((count, height, width, 3), dtype=np.uint8)
    for index in range(count):
        random = np.random.default_rng((seed, index))
        picture = _KINDS[index % len(_KINDS)](random, height, width)
        low, high = np.sort(random.uniform(0.0, 1.0, (2, 3)), axis=0)
        if index % 4 == 0:  # the whole range, as a photograph has it
            low, high = np.zeros(3), np.ones(3)
        pictures[index] = np.rint(255 * (low + picture * (high - low)))
    return pictures


def _blobs(random: np.random.Generator, height: int, width: int) -> np.ndarray:
    """Smooth colour patches, a few to a side."""
    cells = int(random.integers(2, 7))
    coarse = random.uniform(0.0, 1.0, (cells + 1, cells + 1, 3))
    y, x = np.linspace(0, cells, height), np.linspace(0, cells, width)
    rows, columns = np.minimum(y.astype(int), cells - 1), np.minimum(x.astype(int), cells - 1)
    down, right = (y - rows)[:, None, None], (x - columns)[None, :, None]
    upper = coarse[rows][:, columns] * (1 - right) + coarse[rows][:, columns + 1] * right
    lower = coarse[rows + 1][:, columns] * (1 - right) + coarse[rows + 1][:, columns + 1] * right
    return np.asarray(upper * (1 - down) + lower * down)


def _gradient(random: np.random.Generator, height: int, width: int) -> np.ndarray:
    """Each channel rises in another direction."""
    y, x = np.linspace(0, 1, height)[:, None, None], np.linspace(0, 1, width)[None, :, None]
    angle = random.uniform(0, 2 * np.pi, 3)
    ramp = x * np.cos(angle) + y * np.sin(angle)
    low, high = ramp.min(axis=(0, 1)), ramp.max(axis=(0, 1))
    return np.asarray((ramp - low) / np.maximum(high - low, 1e-9))


def _stripes(random: np.random.Generator, height: int, width: int) -> np.ndarray:
    """Hard edges, some pixels apart, in two colours."""
    period = random.integers(2, max(3, min(height, width) // 2) + 1, 3)
    y, x = np.arange(height)[:, None, None], np.arange(width)[None, :, None]
    return ((x * random.integers(0, 2, 3) + y) // period % 2).astype(float)


def _spots(random: np.random.Generator, height: int, width: int) -> np.ndarray:
    """A few bright discs on black."""
    y, x = np.mgrid[0:height, 0:width]
    picture = np.zeros((height, width, 3))
    for _ in range(4):
        top, left, radius = random.uniform(0, height), random.uniform(0, width), min(height, width) / 5
        picture[(y - top) ** 2 + (x - left) ** 2 < radius**2] = random.uniform(0.2, 1.0, 3)
    return picture


def _noise(random: np.random.Generator, height: int, width: int) -> np.ndarray:
    """Every pixel for itself."""
    return random.uniform(0.0, 1.0, (height, width, 3))


_KINDS = (_blobs, _gradient, _spots, _stripes, _noise)


logger = logging.getLogger(__name__)

PICTURES = 8
# Of the largest logit. Deep networks differ by up to 3e-5 in float32; a layer that is wrong at the border alone, by
# 1e-3 and less.
TOLERANCE = 3e-4
# How many times more than Keras itself, when its input moves by one ulp, the export may differ: a network that
# rounds or thresholds inside multiplies the last bit, and is not wrong for it.
_OWN_NOISE = 10.0


def check_answers(model: onnx.ModelProto, source: keras.Model, preprocessing: PreprocessingSpec) -> float:
    """Compare an export's logits with Keras' at batches of 1, 2 and 7, and with each other.

    Args:
        model: uint8 pixels (batch, height, width, 3) in, logits first out.
        source: The Keras model of these logits.
        preprocessing: What stands before it in `model`.

    Returns:
        The largest difference, relative to the largest logit.

    Raises:
        ProjectError: If they differ, depend on the batch or on chance, or cannot be had at each batch size.
    """
    source = keras.Model(source.inputs[0], source.outputs[0])  # no lists or dicts around them
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
    allowed = max(TOLERANCE, _OWN_NOISE * _own_noise(source, inputs, expected))
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
    """Return Keras' logits.

    Raises:
        ProjectError: If the model does not take that many pictures at once.
    """
    try:
        # Called, not predicted: predict() would trace the model once more, which takes longer than eight pictures. On
        # the CPU: a GPU computes in TF32, which is another model by more than the tolerance.
        with keras.device("cpu:0"):
            return np.asarray(source(inputs, training=False), dtype=np.float32)
    except Exception as error:  # whatever a layer raises
        raise ProjectError(
            f"Expected a model that takes a batch of any size. Received: {type(error).__name__} for "
            f"{count(len(inputs), 'picture')}: {_first_line(error)} (a layer fixes the batch, for one a Reshape with "
            "a constant)."
        ) from error


def _first_line(error: Exception) -> str:
    """Return what an error says, without the arguments that Keras lists below it."""
    return " ".join([line.strip() for line in str(error).splitlines() if line.strip()][:2])[:300]


def _run(model: onnx.ModelProto, outputs: list[str], batches: list[np.ndarray]) -> list[list[np.ndarray]]:
    """Return the outputs that are named, for each batch of pixels.

    Raises:
        ProjectError: If ONNX Runtime does not take the model, or does not run it.
    """
    try:
        session = open_session(model, log_severity=4)  # what it would log is in the error
        return [session.run(outputs, {model.graph.input[0].name: pixels}) for pixels in batches]
    except Exception as error:  # ONNX Runtime's errors have no common class
        raise ProjectError(
            f"Expected an export that ONNX Runtime runs. Received: {type(error).__name__}: {_first_line(error)} "
            "(replace the layer that is named, and please report it)."
        ) from error


def _own_noise(source: keras.Model, inputs: np.ndarray, expected: np.ndarray) -> float:
    """Return by how much Keras' own logits move when its input does by one ulp, up or down."""
    moved = [np.nextafter(inputs, np.float32(sign * np.inf)) for sign in (1, -1)]
    return max(relative_difference(expected, _keras(source, values)) for values in moved)


def _where(model: onnx.ModelProto, source: keras.Model, pixels: np.ndarray, inputs: np.ndarray) -> str:
    """Return at which Keras layer the export parts from Keras, else of which operators it is.

    A layer's values are looked for among all of the graph's, whatever their order: the export works on NCHW where
    Keras works on NHWC. Folding leaves some layers without values of their own, so a layer counts as right where
    one that reads it is.
    """
    try:
        operations = [operation for operation in source.operations if operation.output is not source.inputs[0]]
        with keras.device("cpu:0"):
            values = keras.Model(source.inputs, [o.output for o in operations])([inputs], training=False)
        every = copy_model(model)
        names = [name for node in model.graph.node for name in node.output if name]
        del every.graph.output[:]
        every.graph.output.extend(onnx.helper.make_empty_tensor_value_info(name) for name in names)
        (found,) = _run(every, names, [pixels])
        computed = [np.sort(np.ravel(value)) for value in found if value.dtype == np.float32]
    except Exception:  # a layer that is called twice, or gives a list: the sentence does without
        return f"in a graph of {listed(op_counts(model))}"
    right: set[str] = set()
    first = operations[-1]
    for operation, value in reversed(list(zip(operations, values))):
        wanted = np.sort(np.ravel(np.asarray(value)))
        if operation.name in right or any(relative_difference(wanted, one) <= TOLERANCE for one in computed):
            right.update(parent.operation.name for node in operation._inbound_nodes for parent in node.parent_nodes)
        else:
            first = operation
    inside = sorted({node.op_type for node in model.graph.node if keras_layer(node.name) == first.name})
    return f"first in the layer {first.name!r} ({type(first).__name__}{': ' if inside else ''}{listed(inside)})"
