"""Models that only Keras 2 opens: loaded with tf_keras, and rebuilt layer by layer in Keras 3.

The rest of the project sees Keras 3 models only. A rebuilt model must compute what tf_keras computes, or it is refused.
"""

from collections import Counter
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any

import keras
import numpy as np

from export.errors import ModelError, cause
from pipeline.artifacts.files import redirect_temporary_files
from pipeline.keras_files.keras2_comparison import first_difference
from pipeline.keras_files.keras2_layers import convert_layer, plain_name
from pipeline.keras_files.keras2_operations import convert_operation
from pipeline.keras_files.load_guards import check_tensors, keras_modules_only
from pipeline.keras_files.model_file import HALF, config_to_float32
from pipeline.terminal.console import start_tensorflow


def load_legacy(path: Path, *, lambdas: bool = False) -> keras.Model:
    """Load a model with tf_keras, and rebuild it in Keras 3.

    Args:
        path: an HDF5 file, an archive or a SavedModel of Keras 2 that passed the checks.
        lambdas: whether its Lambda layers may run; all of them are allowed by name. Defaults to False.

    Raises:
        ModelError: tf_keras is not installed, cannot load it either, or Keras 3 has no counterpart of a layer.
    """
    original = load_tf_keras(path, lambdas=lambdas)
    model = rebuild(original)
    check_tensors(model, str(path))  # before it runs for the first time
    try:
        difference = first_difference(original, model)
    except Exception as error:  # one of them does not run: channels first on a CPU, sizes that do not fit
        raise ModelError(f"Expected a model that runs on images. Received: {path}: {cause(error)}") from error
    if difference is not None:
        raise ModelError(
            f"Expected the predictions of Keras 2 from the model rebuilt in Keras 3. Received: {path}, {difference}. "
            "Save it as a SavedModel with model.export('folder') (in old versions tf.saved_model.save), and name that "
            "folder."
        )
    return model


def load_tf_keras(path: Path, *, lambdas: bool = False) -> Any:
    """Load a model with tf_keras, not compiled, with every layer in inference mode and in float32.

    Args:
        path: as for ``load_legacy``.
        lambdas: whether its Lambda layers may run. Defaults to False.

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
        # tf_keras' own safe mode allows all or nothing, and for archives only; the earlier checks are what protects.
        with redirect_temporary_files(), keras_modules_only(), _application_layers():
            model = tf_keras.models.load_model(str(path), compile=False, safe_mode=not lambdas)
    except Exception as error:  # tf_keras raises many types on what it cannot load
        raise ModelError(f"Expected a model that Keras 2 loads. Received: {path}: {cause(error)}") from error
    _leave_training_mode(model)
    return _in_float32(model)


def rebuild(original: Any) -> keras.Model:
    """Build a Keras 3 model with the same layers, names and weights.

    Raises:
        ModelError: a layer or operation has no counterpart.
    """
    try:
        return _rebuild(original, {})
    except ModelError:
        raise
    except Exception as error:  # Keras raises many types on what it cannot build
        raise ModelError(f"Expected layers that Keras 3 has too. Received: {original.name}: {cause(error)}") from error


def parse_saved_metadata(data: bytes) -> Any:
    """Parse the nodes of a ``keras_metadata.pb``.

    Raises:
        ModelError: damaged, or tf_keras is not installed.
    """
    try:
        from tf_keras.protobuf import saved_metadata_pb2

        return saved_metadata_pb2.SavedMetadata.FromString(data).nodes
    except Exception as error:  # protobuf raises many types on a damaged file
        raise ModelError(f"Expected the metadata of a Keras 2 SavedModel. Received: {error}") from error


def _leave_training_mode(model: Any) -> None:
    """Put layers that were called with ``training=True`` into inference mode, as Keras 3's predict does.

    In Keras 2 that argument holds in predict too: a BatchNormalization keeps using the statistics of the batch, so that
    the prediction for an image depends on the others, and a Dropout keeps dropping.
    """
    import tensorflow as tf

    for layer in getattr(model, "layers", ()):
        _leave_training_mode(layer)
        for node in getattr(layer, "_inbound_nodes", ()):
            if node.call_kwargs.get("training"):
                node.call_kwargs["training"] = False
                node._flat_arguments = tf.nest.flatten((node.call_args, node.call_kwargs.values()))


def _in_float32(model: Any) -> Any:
    """Copy a model with every layer in float32, in which the reference of a conversion computes.

    Half precision rounds to three digits, too few to compare a rebuilt model with.
    """
    import tf_keras
    from tf_keras.src.saving.serialization_lib import SafeModeScope

    half = any(str(layer.compute_dtype) in HALF for layer in model._flatten_layers())
    if not half or not hasattr(model, "_nodes_by_depth"):  # ``rebuild`` refuses a custom class
        return model
    kind = tf_keras.Sequential if isinstance(model, tf_keras.Sequential) else tf_keras.Model
    with SafeModeScope(False), _application_layers():  # code that is not allowed by name was refused before loading
        single = kind.from_config(config_to_float32(model.get_config()))
    single.set_weights([np.asarray(w, np.float32) for w in model.get_weights()])
    _leave_training_mode(single)
    return single


def _application_layers() -> Any:
    """Let tf_keras find the layers of keras.applications, which files name without their module."""
    import tf_keras
    from tf_keras.src.applications.convnext import LayerScale
    from tf_keras.src.applications.inception_resnet_v2 import CustomScaleLayer

    return tf_keras.utils.custom_object_scope({"LayerScale": LayerScale, "CustomScaleLayer": CustomScaleLayer})


def _rebuild(original: Any, converted: dict[int, Callable[..., Any]]) -> keras.Model:
    import tf_keras

    name = plain_name(original.name)
    if isinstance(original, tf_keras.Sequential) and not original.inputs:
        raise ModelError(f"Expected a model of known input size. Received: Sequential {name!r} without one.")
    if not hasattr(original, "_nodes_by_depth"):
        raise ModelError(
            f"Expected a Functional or Sequential model. Received: {type(original).__name__} {name!r}, a custom "
            "class whose code is not in the file. Save it with model.export('folder') and name that folder."
        )
    inputs = [_input(t) for t in original.inputs]
    tensors = {id(t): new for t, new in zip(original.inputs, inputs)}
    for depth in sorted(original._nodes_by_depth, reverse=True):
        for node in original._nodes_by_depth[depth]:
            if not node.is_input and all(int(i) in tensors for i in node.flat_input_ids):  # these are strings
                _call(node, tensors, converted)
    outputs = [tensors[id(t)] for t in original.outputs]
    _make_names_unique(outputs)
    return keras.Model(
        inputs[0] if len(inputs) == 1 else inputs, outputs[0] if len(outputs) == 1 else outputs, name=name
    )


def _call(node: Any, tensors: dict[int, Any], converted: dict[int, Callable[..., Any]]) -> None:
    """Call the counterpart of a node's layer on the counterparts of its inputs, and add its outputs to ``tensors``."""
    import tensorflow as tf

    def counterpart(value: Any) -> Any:
        return tensors.get(id(value), value)

    arguments, named = tf.nest.map_structure(counterpart, (node.call_args, node.call_kwargs), expand_composites=False)
    named = {k: v for k, v in named.items() if not (k == "mask" and v is None)}
    result = _convert(node.layer, converted)(*arguments, **named)
    outputs = list(result) if isinstance(result, (list, tuple)) else [result]
    operation = outputs[0]._keras_history.operation
    if not isinstance(operation, keras.Layer) and all(outputs[0] is not other for other in tensors.values()):
        operation.name = plain_name(node.layer.name)
    tensors |= {id(old): new for old, new in zip(tf.nest.flatten(node.outputs), outputs)}


def _make_names_unique(outputs: list[Any]) -> None:
    """Rename operations that share a name, such as Keras' default ``add``: a model needs unique names."""
    operations: dict[tuple[int, int], Any] = {}
    waiting = [t._keras_history for t in outputs]
    while waiting:
        operation, index, _ = waiting.pop()
        if (id(operation), index) not in operations:
            operations[(id(operation), index)] = operation
            waiting += [t._keras_history for t in operation._inbound_nodes[index].input_tensors]
    unique = {id(operation): operation for operation in operations.values()}
    uses = Counter(operation.name for operation in unique.values())
    for operation in unique.values():
        name = operation.name
        if uses[name] > 1:
            uses[name] -= 1
            operation.name = next(f"{name}_{n}" for n in count(1) if f"{name}_{n}" not in uses)
            uses[operation.name] = 1


def _input(tensor: Any) -> Any:
    batch, *shape = tensor.shape
    name = plain_name(tensor.name.split(":")[0]) if tensor.name else None
    return keras.Input(shape, batch_size=batch, dtype=tensor.dtype.name, name=name)


def _convert(layer: Any, converted: dict[int, Callable[..., Any]]) -> Callable[..., Any]:
    """Return the Keras 3 counterpart of a tf_keras layer, one for each layer, with its weights."""
    import tf_keras

    if id(layer) not in converted:
        if isinstance(layer, tf_keras.Model):
            converted[id(layer)] = _rebuild(layer, converted)
        elif type(layer).__name__ in ("TFOpLambda", "SlicingOpLambda"):
            converted[id(layer)] = convert_operation(layer)
        else:
            converted[id(layer)] = convert_layer(
                layer, plain_name(layer.name), lambda model: _convert(model, converted)
            )
    return converted[id(layer)]
