"""Models that only Keras 2 opens: loaded with tf_keras, and rebuilt layer by layer in Keras 3.

Everything behind this module sees a Keras 3 model. The rebuilt one must give tf_keras' answers, or it is refused.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.errors import ModelError
from pipeline.files import own_temporary_files
from pipeline.keras_imports import only_kerass_modules
from pipeline.keras_operations import convert_operation
from pipeline.tensorflow_start import start_tensorflow
from pipeline.weight_budget import check_tensors

if TYPE_CHECKING:
    import keras

log = logging.getLogger(__name__)

TOLERANCE = 1e-4  # relative to the largest answer; another order of summation gives 1e-6
_RENAMED = {
    "BatchNormalizationV1": "BatchNormalization",
    "BatchNormalizationV2": "BatchNormalization",
    "SyncBatchNormalization": "BatchNormalization",
}


def load_legacy(path: Path, *, lambdas: bool = False) -> keras.Model:
    """Load with tf_keras, and rebuild it in Keras 3.

    Args:
        path: an HDF5 file, an archive or a SavedModel of Keras 2, checked before.
        lambdas: its Lambda layers may run; all of them were allowed by name.

    Raises:
        ModelError: tf_keras is not installed, cannot load it either, or Keras 3 has no counterpart of a layer.
    """
    original = load_tf_keras(path, lambdas=lambdas)
    try:
        model = rebuild(original)
    except ModelError:
        raise
    except Exception as error:  # Keras raises many types on what it cannot build
        raise ModelError(f"Expected layers that Keras 3 has too. Received: {path}: {_first_line(error)}") from error
    check_tensors(model, str(path))  # before it runs for the first time
    difference = largest_difference(original, model)
    if difference is None or difference > TOLERANCE:
        raise ModelError(
            f"Expected the answers of Keras 2 from the model rebuilt in Keras 3. Received: {path}, off by "
            f"{'NaN' if difference is None else f'{difference:.1e}'} of the largest. Save it as a SavedModel "
            "with Keras 2 and name that folder."
        )
    return model


def load_tf_keras(path: Path, *, lambdas: bool = False) -> Any:
    """The model as tf_keras loads it, not compiled; no layer of it in training mode.

    Args:
        path: as for ``load_legacy``, checked before.
        lambdas: its Lambda layers may run.

    Raises:
        ModelError: tf_keras is not installed, or cannot load it.
    """
    start_tensorflow()
    try:
        import tf_keras
    except ImportError as error:
        raise ModelError(
            f"Expected the package tf_keras, which opens models of Keras 2. Received: {error}. `make install` "
            "brings it (by hand: pip install --no-deps -r requirements-legacy.txt)."
        ) from error
    try:
        # tf_keras' own safe mode knows all or nothing, and looks at archives only; the check before is what counts.
        with own_temporary_files(), only_kerass_modules():
            model = tf_keras.models.load_model(str(path), compile=False, safe_mode=not lambdas)
    except Exception as error:  # tf_keras raises many types on what it cannot load
        raise ModelError(f"Expected a model that Keras 2 loads. Received: {path}: {_first_line(error)}") from error
    _leave_training_mode(model)
    return model


def rebuild(original: Any) -> keras.Model:
    """A Keras 3 model of the same layers, names and weights.

    Raises:
        ModelError: a layer or operation has no counterpart.
    """
    return _rebuild(original, {})


def largest_difference(original: Any, model: keras.Model) -> float | None:
    """Largest difference of the answers on random images, relative to the largest; None where they are not finite."""
    random = np.random.default_rng(0)
    shapes = [tuple(t.shape) for t in original.inputs]
    images = [random.uniform(0, 1, [2 if s[0] is None else s[0], *(n or 64 for n in s[1:])]) for s in shapes]
    worst = 0.0
    for scale in (1.0, 255.0):  # whatever the preprocessing, one of them moves the answers
        feed = [(x * scale).astype(np.float32) for x in images]
        before = _answers(original, feed)
        after = _answers(model, feed)
        if len(before) != len(after) or any(b.shape != a.shape for b, a in zip(before, after)):
            return None
        for expected, received in zip(before, after):
            if not (np.isfinite(expected).all() and np.isfinite(received).all()):
                return None
            worst = max(worst, float(np.abs(expected - received).max() / max(np.abs(expected).max(), 1e-30)))
    return worst


def saved_metadata(data: bytes) -> Any:
    """The nodes of a ``keras_metadata.pb``.

    Raises:
        ModelError: damaged, or tf_keras is not installed.
    """
    try:
        from tf_keras.protobuf import saved_metadata_pb2

        return saved_metadata_pb2.SavedMetadata.FromString(data).nodes
    except Exception as error:  # protobuf raises many types on a damaged file
        raise ModelError(f"Expected the metadata of a Keras 2 SavedModel. Received: {error}") from error


def _leave_training_mode(model: Any) -> None:
    """Makes layers that were called with ``training=True`` answer as Keras 3 lets them at inference.

    Keras 2 keeps to that argument for ever: a BatchNormalization goes on using the statistics of the batch, so that
    the answer for one image depends on the others, and a Dropout goes on dropping.
    """
    import tensorflow as tf

    for layer in getattr(model, "layers", ()):
        _leave_training_mode(layer)
        for node in getattr(layer, "_inbound_nodes", ()):
            if node.call_kwargs.get("training"):
                node.call_kwargs["training"] = False
                node._flat_arguments = tf.nest.flatten((node.call_args, node.call_kwargs.values()))


def _answers(model: Any, feed: list[np.ndarray]) -> list[np.ndarray]:
    form = getattr(model, "_inputs_struct", getattr(model, "_nested_inputs", None))  # of Keras 3, of Keras 2
    given: Any = feed[0] if len(feed) == 1 else feed
    if isinstance(form, Mapping):
        given = dict(zip(form, feed))
    elif isinstance(form, (list, tuple)):
        given = feed
    result = model(given, training=False)
    values = list(result.values()) if isinstance(result, Mapping) else result
    return [np.asarray(v) for v in (values if isinstance(values, (list, tuple)) else [values])]


def _rebuild(original: Any, made: dict[int, Any]) -> keras.Model:
    import keras
    import tf_keras

    name = original.name
    if isinstance(original, tf_keras.Sequential):
        if not original.inputs:
            raise ModelError(f"Expected a model of known input size. Received: Sequential {name!r} without one.")
        inputs = [_input(t) for t in original.inputs]
        x: Any = inputs[0]
        for layer in original.layers:
            if type(layer).__name__ != "InputLayer":
                x = _convert(layer, made)(x)
        return keras.Model(inputs[0], x, name=name)
    if not hasattr(original, "_nodes_by_depth"):
        raise ModelError(
            f"Expected a Functional or Sequential model. Received: {type(original).__name__} {name!r}, a class of its "
            "author's whose code is not in the file. Save it with model.export('folder') and name that folder."
        )
    inputs = [_input(t) for t in original.inputs]
    known = {id(t): new for t, new in zip(original.inputs, inputs)}
    for depth in sorted(original._nodes_by_depth, reverse=True):
        for node in original._nodes_by_depth[depth]:
            if node.is_input or any(i not in known for i in map(str_to_int, node.flat_input_ids)):
                continue
            _call(node, known, made)
    outputs = [known[id(t)] for t in original.outputs]
    return keras.Model(
        inputs[0] if len(inputs) == 1 else inputs, outputs[0] if len(outputs) == 1 else outputs, name=name
    )


def str_to_int(key: Any) -> int:
    """tf_keras keeps the ids of tensors as strings."""
    return int(key)


def _call(node: Any, known: dict[int, Any], made: dict[int, Any]) -> None:
    """Call the counterpart of a node's layer on the counterparts of its inputs, and note what comes out."""
    import tensorflow as tf

    def swap(value: Any) -> Any:
        return known.get(id(value), value)

    arguments, named = tf.nest.map_structure(swap, (node.call_args, node.call_kwargs), expand_composites=False)
    named = {k: v for k, v in named.items() if not (k == "mask" and v is None)}
    outcome = _convert(node.layer, made)(*arguments, **named)
    flat = list(outcome) if isinstance(outcome, (list, tuple)) else [outcome]
    for old, new in zip(tf.nest.flatten(node.outputs), flat):
        known[id(old)] = new


def _input(tensor: Any) -> Any:
    import keras

    shape = tuple(tensor.shape)
    name = getattr(tensor, "name", None)
    return keras.Input(shape[1:], batch_size=shape[0], dtype=tensor.dtype.name, name=name and name.split(":")[0])


def _convert(layer: Any, made: dict[int, Any]) -> Callable[..., Any]:
    """The Keras 3 counterpart of a tf_keras layer, once for each, with its weights."""
    import tf_keras

    if id(layer) not in made:
        if isinstance(layer, tf_keras.Model):
            made[id(layer)] = _rebuild(layer, made)
        elif type(layer).__name__ in ("TFOpLambda", "SlicingOpLambda"):
            made[id(layer)] = convert_operation(layer)
        else:
            made[id(layer)] = _convert_layer(layer)
    return made[id(layer)]


def _convert_layer(layer: Any) -> Callable[..., Any]:
    import keras

    kind = _RENAMED.get(type(layer).__name__, type(layer).__name__)
    if kind == "Lambda":
        return keras.layers.Lambda(layer.function, name=layer.name, arguments=layer.arguments)
    if kind == "Normalization":
        mean, variance = np.asarray(layer.mean), np.asarray(layer.variance)
        axis: Any = None if not layer.axis else tuple(layer.axis)
        flat = [v.reshape(-1) if axis == (3,) or axis == (-1,) else v for v in (mean, variance)]
        axis = -1 if axis in ((3,), (-1,)) else axis
        return keras.layers.Normalization(axis, flat[0], flat[1], name=layer.name)
    target = getattr(keras.layers, kind, None)
    if target is None:
        raise ModelError(f"Expected layers that Keras 3 has too. Received: {kind} {layer.name!r}.")
    config = {k: v for k, v in layer.get_config().items() if k in _parameters(target)}
    if isinstance(config.get("axis"), (list, tuple)) and len(config["axis"]) == 1:
        config["axis"] = config["axis"][0]
    wrapped = config.get("layer")
    if isinstance(wrapped, dict):
        raise ModelError(f"Expected plain layers. Received: {kind} {layer.name!r}, which wraps another.")
    converted = target.from_config(config)
    converted.trainable = layer.trainable
    weights = layer.get_weights()
    if not weights or kind.startswith("Random"):
        return converted

    def build_and_call(x: Any, *args: Any, **kwargs: Any) -> Any:
        y = converted(x, *args, **kwargs)
        converted.set_weights(weights)
        return y

    return build_and_call


def _parameters(target: type) -> set[str]:
    """The arguments of a Keras 3 layer that a Keras 2 configuration may set."""
    names = {"name"}
    for base in target.__mro__:
        parameters = inspect.signature(vars(base).get("__init__", base)).parameters
        names |= set(parameters)
        if not any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
            break
    # dtype: everything computes in float32, as the reference of a conversion must.
    return names - {"self", "dtype", "args", "kwargs", "batch_input_shape", "input_shape", "activity_regularizer"}


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:300]
