"""Models that only Keras 2 opens: loaded with tf_keras, and rebuilt layer by layer in Keras 3.

Everything behind this module sees a Keras 3 model. The rebuilt one must give tf_keras' answers, or it is refused.
"""

from collections import Counter
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any

import keras
import numpy as np

from export.errors import ModelError, cause
from pipeline.artifacts.files import own_temporary_files
from pipeline.keras_files.keras2_comparison import first_difference
from pipeline.keras_files.keras2_layers import convert_layer, plain_name
from pipeline.keras_files.keras2_operations import convert_operation
from pipeline.keras_files.load_guards import check_tensors, only_kerass_modules
from pipeline.keras_files.model_file import HALF, in_single
from pipeline.terminal.console import start_tensorflow


def load_legacy(path: Path, *, lambdas: bool = False) -> keras.Model:
    """Load with tf_keras, and rebuild it in Keras 3.

    Args:
        path: an HDF5 file, an archive or a SavedModel of Keras 2, checked before.
        lambdas: its Lambda layers may run; all of them were allowed by name.

    Raises:
        ModelError: tf_keras is not installed, cannot load it either, or Keras 3 has no counterpart of a layer.
    """
    original = load_tf_keras(path, lambdas=lambdas)
    model = rebuild(original)
    check_tensors(model, str(path))  # before it runs for the first time
    try:
        found = first_difference(original, model)
    except Exception as error:  # one of them does not run: channels first on a CPU, sizes that do not fit
        raise ModelError(f"Expected a model that runs on pictures. Received: {path}: {cause(error)}") from error
    if found is not None:
        raise ModelError(
            f"Expected the answers of Keras 2 from the model rebuilt in Keras 3. Received: {path}, {found}. Save it as "
            "a SavedModel with model.export('folder') (in old versions tf.saved_model.save), and name that folder."
        )
    return model


def load_tf_keras(path: Path, *, lambdas: bool = False) -> Any:
    """The model as tf_keras loads it, not compiled; no layer of it in training mode, none in half precision.

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
        with own_temporary_files(), only_kerass_modules(), _application_layers():
            model = tf_keras.models.load_model(str(path), compile=False, safe_mode=not lambdas)
    except Exception as error:  # tf_keras raises many types on what it cannot load
        raise ModelError(f"Expected a model that Keras 2 loads. Received: {path}: {cause(error)}") from error
    _leave_training_mode(model)
    return _in_float32(model)


def rebuild(original: Any) -> keras.Model:
    """A Keras 3 model of the same layers, names and weights.

    Raises:
        ModelError: a layer or operation has no counterpart.
    """
    try:
        return _rebuild(original, {})
    except ModelError:
        raise
    except Exception as error:  # Keras raises many types on what it cannot build
        raise ModelError(f"Expected layers that Keras 3 has too. Received: {original.name}: {cause(error)}") from error


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


def _in_float32(model: Any) -> Any:
    """The same model with every layer in float32: the reference of a conversion computes in it.

    Half precision rounds to three digits, and nothing that is rebuilt could be held against such answers.
    """
    import tf_keras
    from tf_keras.src.saving.serialization_lib import SafeModeScope

    if not any(str(layer.compute_dtype) in HALF for layer in model._flatten_layers()):
        return model
    if not hasattr(model, "_nodes_by_depth"):
        return model  # of its author's class; ``rebuild`` says so
    kind = tf_keras.Sequential if isinstance(model, tf_keras.Sequential) else tf_keras.Model
    with SafeModeScope(False), _application_layers():  # what is not allowed by name was refused before it was loaded
        single = kind.from_config(in_single(model.get_config()))
    single.set_weights([np.asarray(w, np.float32) for w in model.get_weights()])
    _leave_training_mode(single)
    return single


def _application_layers() -> Any:
    """Within it, tf_keras finds the layers that keras.applications defines for one family, which files name alone."""
    import tf_keras
    from tf_keras.src.applications.convnext import LayerScale
    from tf_keras.src.applications.inception_resnet_v2 import CustomScaleLayer

    return tf_keras.utils.custom_object_scope({"LayerScale": LayerScale, "CustomScaleLayer": CustomScaleLayer})


def _rebuild(original: Any, made: dict[int, Callable[..., Any]]) -> keras.Model:
    import tf_keras

    name = plain_name(original.name)
    if isinstance(original, tf_keras.Sequential):
        if not original.inputs:
            raise ModelError(f"Expected a model of known input size. Received: Sequential {name!r} without one.")
        inputs = [_input(t) for t in original.inputs]
        x: Any = inputs[0]
        for layer in original.layers:
            if type(layer).__name__ != "InputLayer":
                x = _convert(layer, made)(x)
        _name_apart([x])
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
            if not node.is_input and all(int(i) in known for i in node.flat_input_ids):  # kept as text
                _call(node, known, made)
    outputs = [known[id(t)] for t in original.outputs]
    _name_apart(outputs)
    return keras.Model(
        inputs[0] if len(inputs) == 1 else inputs, outputs[0] if len(outputs) == 1 else outputs, name=name
    )


def _call(node: Any, known: dict[int, Any], made: dict[int, Callable[..., Any]]) -> None:
    """Call the counterpart of a node's layer on the counterparts of its inputs, and note what comes out."""
    import tensorflow as tf

    def swap(value: Any) -> Any:
        return known.get(id(value), value)

    arguments, named = tf.nest.map_structure(swap, (node.call_args, node.call_kwargs), expand_composites=False)
    named = {k: v for k, v in named.items() if not (k == "mask" and v is None)}
    outcome = _convert(node.layer, made)(*arguments, **named)
    flat = list(outcome) if isinstance(outcome, (list, tuple)) else [outcome]
    _name_operation(flat[0], node.layer.name, known)
    for old, new in zip(tf.nest.flatten(node.outputs), flat):
        known[id(old)] = new


def _name_operation(tensor: Any, name: str, known: dict[int, Any]) -> None:
    """Call an operation as Keras 2 called the layer that it stands for."""
    operation = tensor._keras_history.operation
    if not isinstance(operation, keras.Layer) and all(tensor is not other for other in known.values()):
        operation.name = plain_name(name)


def _name_apart(outputs: list[Any]) -> None:
    """Rename what has the name of another, such as an operation that Keras called ``add``: it wants all different."""
    found: dict[tuple[int, int], Any] = {}
    waiting = [t._keras_history for t in outputs]
    while waiting:
        operation, index, _ = waiting.pop()
        if (id(operation), index) not in found:
            found[(id(operation), index)] = operation
            waiting += [t._keras_history for t in operation._inbound_nodes[index].input_tensors]
    operations = list({id(operation): operation for operation in found.values()}.values())
    taken = Counter(operation.name for operation in operations)
    for operation in operations:
        name = operation.name
        if taken[name] > 1:
            taken[name] -= 1
            number = next(n for n in count(1) if f"{name}_{n}" not in taken)
            operation.name = f"{name}_{number}"
            taken[operation.name] = 1


def _input(tensor: Any) -> Any:
    batch, *shape = tensor.shape
    name = getattr(tensor, "name", None)
    name = name and plain_name(name.split(":")[0])
    return keras.Input(shape, batch_size=batch, dtype=tensor.dtype.name, name=name)


def _convert(layer: Any, made: dict[int, Callable[..., Any]]) -> Callable[..., Any]:
    """The Keras 3 counterpart of a tf_keras layer, once for each, with its weights."""
    import tf_keras

    if id(layer) not in made:
        if isinstance(layer, tf_keras.Model):
            made[id(layer)] = _rebuild(layer, made)
        elif type(layer).__name__ in ("TFOpLambda", "SlicingOpLambda"):
            made[id(layer)] = convert_operation(layer)
        else:
            made[id(layer)] = convert_layer(layer, plain_name(layer.name), lambda model: _convert(model, made))
    return made[id(layer)]
