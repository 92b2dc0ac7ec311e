"""SavedModel folders: facts about them, and their models in Keras 3.

A SavedModel is a program. TensorFlow runs its operations, some already while loading, and some read and write files,
so it is loaded only if the recipe allows it. ``read_saved_model`` parses protocol buffers and runs nothing.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from export.errors import ModelError, cause
from export.records import parse_json, read_bounded
from export.words import listed
from pipeline.keras_files.code_scan import SAVED_MODEL, Finding, scan_part
from pipeline.keras_files.graph_bounds import check_file, check_graph
from pipeline.keras_files.graph_operations import find_saved_operations
from pipeline.keras_files.graph_rewriting import End, cast_graph_to_float32, free_batch, has_half, interpret_end
from pipeline.keras_files.model_file import HALF, SAVED_MODEL_FOLDER, ModelFile, Weight
from pipeline.keras_files.saved_comparison import describe_difference, signature_predictions
from pipeline.terminal.console import start_tensorflow

if TYPE_CHECKING:
    import keras

log = logging.getLogger(__name__)

# Parts of the names of variables that are no weights. model.export of Keras 3 repeats all in "_all_variables".
_NO_WEIGHT = (
    "OPTIMIZER_SLOT", "optimizer", "save_counter", "_CHECKPOINTABLE_OBJECT_GRAPH", "keras_api", "_all_variables",
)  # fmt: skip
_RANDOM_STATES = (("uint32", [2]), ("int64", [2]), ("int64", [3]))  # of Keras 3 and Keras 2


def read_saved_model(path: Path) -> ModelFile:
    """Read the facts of a SavedModel.

    Raises:
        ModelError: damaged, or beyond the limits of ``graph_bounds``.
    """
    try:
        check_file(path / "saved_model.pb", "SavedModel")
    except OSError as error:
        raise ModelError(f"Expected a SavedModel that can be read. Received: {path}: {error}") from error
    start_tensorflow()
    from tensorflow.core.protobuf import saved_model_pb2

    try:
        proto = saved_model_pb2.SavedModel.FromString((path / "saved_model.pb").read_bytes())
        graph = proto.meta_graphs[0]
    except Exception as error:  # protobuf raises many types on a damaged file
        raise ModelError(f"Expected a whole SavedModel. Received: {path}, damaged: {error}") from error
    config, version = _keras_metadata(path)
    operations, used = find_saved_operations(proto.meta_graphs)
    layers = layer_findings(path)
    findings = (
        Finding("SavedModel", SAVED_MODEL, "a program that TensorFlow runs as its author wrote it", True),
        *(Finding("operation", name, why, True) for name, why in operations),
        *(f for f in layers if f.kind == "Lambda"),
    )
    signatures = {
        name: {
            "inputs": {key: _tensor_text(info) for key, info in signature.inputs.items()},
            "outputs": {key: _tensor_text(info) for key, info in signature.outputs.items()},
        }
        for name, signature in graph.signature_def.items()
        if name != "__saved_model_init_op"
    }
    tensorflow = f"TensorFlow {graph.meta_info_def.tensorflow_version}"
    facts: dict[str, object] = {"signatures": signatures, "operations": used}
    if config is not None and (unfit := _unfit(layers)):
        facts["taken from"] = f"its graph, not its layers ({unfit})"
    written_by = f"{version}, {tensorflow}" if version else tensorflow
    return ModelFile(path, SAVED_MODEL_FOLDER, written_by, config, tuple(_variables(path)), findings, facts)


def _variables(path: Path) -> Iterator[Weight]:
    """Yield the weights of a SavedModel; none for a graph without variables or a frozen one."""
    import tensorflow as tf

    try:
        reader = tf.train.load_checkpoint(str(path / "variables" / "variables"))
        shapes, dtypes = reader.get_variable_to_shape_map(), reader.get_variable_to_dtype_map()
    except (tf.errors.OpError, ValueError):
        return
    for name, shape in sorted(shapes.items()):
        if (dtypes[name].name, shape) not in _RANDOM_STATES and not any(part in name for part in _NO_WEIGHT):
            layer, _, weight = name.removesuffix("/.ATTRIBUTES/VARIABLE_VALUE").rpartition("/")
            yield Weight(layer, weight, tuple(shape))


def load_saved_model(file: ModelFile) -> keras.Model:
    """Load a SavedModel that the recipe allows as a Keras 3 model.

    A model that Keras 2 saved is rebuilt layer by layer; for any other, the graph of the serving signature is used.

    Raises:
        ModelError: it does not load, or no signature has one input and one output.
    """
    import tensorflow as tf

    from pipeline.keras_files.keras2 import load_legacy

    problem = ""
    if file.config is not None:
        findings = layer_findings(file.path)
        if unfit := _unfit(findings):  # the graph still defines the model
            problem = f" (its layers: {unfit})"
        else:
            try:
                model = load_legacy(file.path, lambdas=bool(findings))
            except ModelError as error:
                problem = f" (its layers: {error})"
            else:
                _warn_of_signature(model, file.path)
                return model
    try:
        loaded = tf.saved_model.load(str(file.path))
    except Exception as error:  # TensorFlow raises many types on what it cannot load
        raise ModelError(f"Expected a SavedModel that loads. Received: {file.path}: {error}{problem}") from error
    signatures = dict(loaded.signatures)
    name = _serving_signature(list(signatures))
    if name is None:
        raise ModelError(
            f"Expected a SavedModel with a signature serving_default. Received: {file.path} with "
            f"{listed(signatures) or 'none'}. Save it with model.export(...).{problem}"
        )
    return _graph_model(signatures[name], file.path, name)


def _warn_of_signature(model: keras.Model, path: Path) -> None:
    """Warn if a SavedModel's signature predicts differently from its layers, which are what Keras' predict runs."""
    import tensorflow as tf

    signatures = dict(tf.saved_model.load(str(path)).signatures)
    name = _serving_signature(list(signatures))
    if name is None:
        return
    try:
        key, spec = _image_input(signatures[name], path, name)
        expected = signature_predictions(signatures[name], key, spec, f"{path}, signature {name}")
    except ModelError as error:  # the layers are used; a signature of strings or of a batch is not theirs
        log.debug("%s", error)
        return
    if problem := describe_difference(model, expected):
        log.warning(
            "%s: its signature %s predicts differently from its layers (%s). The layers are used, as load_model(...) "
            "and predict() run them; to use the signature, save it alone with tf.saved_model.save.",
            *(path.name, name, problem),
        )


def _serving_signature(names: list[str]) -> str | None:
    """Name the signature to use: the one for serving, or the only one that is not for training."""
    if "serving_default" in names:
        return "serving_default"
    others = [name for name in names if "train" not in name.lower()]
    return others[0] if len(others) == 1 else None


def _graph_model(signature: Any, path: Path, name: str) -> keras.Model:
    from tensorflow.python.framework.convert_to_constants import convert_variables_to_constants_v2

    key, spec = _image_input(signature, path, name)
    where = f"{path}, signature {name}"
    expected = signature_predictions(signature, key, spec, where)
    try:
        # Loops stay functions: lowered, they would hold constants that the layer's weights cannot replace.
        frozen = convert_variables_to_constants_v2(signature, lower_control_flow=False)
    except Exception as error:  # TensorFlow raises many types on what it cannot freeze
        raise ModelError(
            f"Expected a graph whose variables do not change. Received: {where}: {cause(error)}. Export the model "
            "with training=False."
        ) from error
    definition = frozen.graph.as_graph_def()
    feed, output = frozen.inputs[0].name, frozen.outputs[0].name
    if has_half(definition):
        definition = cast_graph_to_float32(definition)
    if spec.shape[0] is not None:
        definition = free_batch(definition, feed, spec.shape[0], lambda tensor: _known_shape(frozen.graph, tensor))
    problem = ""
    for end in interpret_end(definition, output):
        model = _with_end(end, feed, spec)
        problem = describe_difference(model, expected)
        if not problem:
            return model
    if spec.shape[0] is not None:
        raise ModelError(
            f"Expected a SavedModel for any number of images. Received: {where}, for exactly {spec.shape[0]}, whose "
            f"graph takes no other batch: {problem}. Export the model again with a free batch: an input of shape "
            f"{(None, *spec.shape[1:])}."
        )
    raise ModelError(
        f"Expected a graph that predicts the same outside its SavedModel. Received: {where}: {problem}. Save the model "
        "as a .keras or .h5 file."
    )


def _image_input(signature: Any, path: Path, name: str) -> tuple[str, Any]:
    """Return the name and the ``tf.TensorSpec`` of a signature's one input, a batch of images.

    Raises:
        ModelError: the signature has other inputs or outputs.
    """
    inputs, outputs = signature.structured_input_signature[1], signature.structured_outputs
    if len(inputs) != 1 or len(outputs) != 1:
        raise ModelError(
            f"Expected an image classifier with one input and one output. Received: {path}, whose signature {name} "
            f"takes {_shapes(inputs)} and gives {_shapes(outputs)}. Save a signature serving_default that takes "
            "images and gives the scores alone."
        )
    key, spec = next(iter(inputs.items()))
    if spec.shape.rank != 4 or not (spec.dtype.is_floating or spec.dtype.is_integer):
        advice = " Save one that takes pixels, not files." if spec.dtype.name == "string" else ""
        raise ModelError(
            f"Expected an image classifier, input (N, height, width, 3). Received: {path}, whose signature {name} "
            f"takes {_shapes(inputs)}.{advice}"
        )
    return key, spec


def _with_end(end: End, feed: str, spec: Any) -> keras.Model:
    import keras

    from pipeline.keras_files.frozen_graph import from_graph_def

    pixels = keras.Input(tuple(spec.shape[1:]), name="pixels")
    dtype = "float32" if spec.dtype.name in HALF else spec.dtype.name
    x = from_graph_def(end.definition, feed, end.fetch, dtype, "graph")(pixels)
    if end.activation is not None:
        x = keras.layers.Activation(end.activation, name="predictions")(x)
    return keras.Model(pixels, x, name="saved_model")


def _known_shape(graph: Any, tensor: str) -> list[int | None] | None:
    shape = graph.get_tensor_by_name(tensor).shape
    return None if shape.rank is None else shape.as_list()


def layer_findings(path: Path) -> list[Finding]:
    """Find custom parts and code in the layers that Keras 2 describes beside the graph and would build.

    A model with custom layers is loaded from its graph, so only its Lambda layers need the recipe's permission.
    """
    findings = [
        finding
        for node, metadata in _metadata_nodes(path)
        for finding in scan_part(
            {key: value for key, value in metadata.items() if key != "training_config"},  # it is not compiled
            is_layer=node.identifier != "_tf_keras_metric",
        )
    ]
    return list({(finding.kind, finding.name): finding for finding in findings}.values())


def _unfit(findings: list[Finding]) -> str:
    """Describe why layers with these findings are not built; empty if they may be."""
    return next((f"{f.name}: {f.why}" for f in findings if f.kind != "Lambda"), "")


def _metadata_nodes(path: Path) -> list[tuple[Any, dict[str, Any]]]:
    """List the objects that Keras 2 describes beside the graph; none if Keras 2 did not write it.

    Raises:
        ModelError: damaged.
    """
    file = path / "keras_metadata.pb"
    if not file.is_file():
        return []
    from pipeline.keras_files.keras2 import parse_saved_metadata

    try:
        data = read_bounded(file)
        check_graph(data, "Metadata", str(file))
        nodes = [(node, parse_json(node.metadata, file.name, finite=False)) for node in parse_saved_metadata(data)]
    except (OSError, ValueError) as error:
        raise ModelError(
            f"Expected the metadata of a Keras 2 SavedModel. Received: {file}, damaged: {error}"
        ) from error
    if not all(isinstance(metadata, dict) for _, metadata in nodes):
        raise ModelError(f"Expected the metadata of a Keras 2 SavedModel. Received: {file}, damaged.")
    return nodes


def _keras_metadata(path: Path) -> tuple[dict[str, object] | None, str]:
    """Return the architecture that Keras 2 stores beside the graph, and the version of Keras."""
    for node, metadata in _metadata_nodes(path):
        if node.node_path == "root":
            version = f"Keras {metadata.get('keras_version', '2')}"
            if isinstance(metadata.get("config"), dict) and "layers" in metadata["config"]:
                return {"class_name": metadata.get("class_name"), "config": metadata["config"]}, version
            return None, version
    return None, "Keras 2" if (path / "keras_metadata.pb").is_file() else ""


def _tensor_text(info: Any) -> str:
    import tensorflow as tf

    dims = [d.size if d.size >= 0 else None for d in info.tensor_shape.dim]
    return f"{tf.dtypes.as_dtype(info.dtype).name} {tuple(dims)}"


def _shapes(tensors: dict[str, Any]) -> str:
    return listed(f"{name}: {t.dtype.name} {tuple(t.shape)}" for name, t in sorted(tensors.items())) or "nothing"
