"""Exports a Keras classifier to ONNX: uint8 pixels in, logits and probabilities out, every BatchNorm folded.

tf2onnx converts the model, the passes of `export.onnx_passes` clean up the graph, and the result is checked against
Keras.
"""

import json
import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import keras
import onnx
from onnx import TensorProto

from export.errors import ProjectError
from export.from_keras.check import check_logits
from export.from_keras.logits import logits_model
from export.from_keras.tf2onnx_adapter import MOST_STEPS, convert, free_memory
from export.onnx_passes import graph, signature
from export.onnx_passes.file import check_model, save_model
from export.onnx_passes.folding import fold_affine, fold_pad_into_maxpool, unfolded_convs
from export.onnx_passes.layer_names import LayerTree, find_layer, name_by_layer
from export.onnx_passes.repairs import (
    convert_to_float32,
    expand_resizes,
    repair_biases,
    repair_groups,
    repair_transposed_padding,
)
from export.onnx_passes.shape_folding import fold_shapes, nodes_with_data_shapes
from export.preprocessing import PreprocessingSpec
from export.words import count, listed

logger = logging.getLogger(__name__)
PRODUCER = "keras-resnet-to-tensorrt"
_METADATA_KEYS = ("classes", "preprocessing", "input")


@dataclass(frozen=True)
class ExportSummary:
    """The summary of an export.

    Args:
        opset: The file's operator set.
        input_size: Height and width in pixels.
        classes: Number of classes.
        nodes: Number of nodes in the graph.
        parameters: Number of floating-point values in the graph, after folding.
        ops_before: Operator counts of tf2onnx's result.
        ops_after: Operator counts of the file.
    """

    opset: int
    input_size: tuple[int, int]
    classes: int
    nodes: int
    parameters: int
    ops_before: dict[str, int]
    ops_after: dict[str, int]


def export_keras(
    model: keras.Model,
    path: str | os.PathLike[str],
    *,
    preprocessing: PreprocessingSpec,
    classes: Sequence[str],
    opset: int = 17,
    metadata: Mapping[str, str] | None = None,
    output: str = "auto",
    input_name: str = "images",
    logits_name: str = "logits",
    probabilities_name: str = "probabilities",
    top_k: int = 0,
    top_names: tuple[str, str] = ("top_probabilities", "top_classes"),
) -> ExportSummary:
    """Write a Keras classifier as ONNX, preprocessing and softmax included.

    The file takes `input_name`, uint8 (batch, height, width, 3) RGB at the model's own size with a symbolic batch,
    and returns `logits_name` and `probabilities_name`, float32 (batch, classes). Its metadata holds ``classes``,
    ``preprocessing`` and ``input`` as JSON. Each node is named ``<keras layer>/<operator>``. The model passed in is
    not changed, and two exports of one model are byte for byte equal.

    Args:
        model: Functional or Sequential, with an input (batch, height, width, 3) float32 from `preprocessing`.
        path: The file, which is written atomically.
        preprocessing: The preprocessing of RGB pixels that the model expects.
        classes: Names of the classes, one per output.
        opset: tf2onnx converts to opset 17; the ONNX version converter converts to others. Defaults to 17.
        metadata: Additional entries for the file. Defaults to None.
        output: What the model returns, see `logits_model`. Defaults to ``"auto"``.
        input_name: Name of the input. Defaults to ``"images"``.
        logits_name: Name of the first output. Defaults to ``"logits"``.
        probabilities_name: Name of the second output. Defaults to ``"probabilities"``.
        top_k: Number of best classes that the graph returns as well, see `append_top_k`. Defaults to 0: none.
        top_names: Names of their outputs: float32 probabilities and int32 indices, (batch, top_k). Defaults to
            ``("top_probabilities", "top_classes")``.

    Raises:
        ProjectError: If the model is no classifier, the classes do not fit, a layer has no ONNX counterpart, or the
            file does not return the model's logits.
    """
    height, width = _input_size(model)
    logits = logits_model(model, output)
    _check_classes(classes, logits.outputs[0].shape[-1])
    _check_policy(logits)
    if taken := sorted(set(metadata or {}) & set(_METADATA_KEYS)):
        raise ProjectError(f"Expected metadata beside {_METADATA_KEYS}. Received: {taken} (rename these entries).")

    converted = convert(logits, input_name)
    before = graph.op_counts(converted)
    result = _tidy(converted, logits, logits_name)
    result = signature.prepend_preprocessing(result, preprocessing)
    result = signature.append_softmax(result, logits_name, probabilities_name)
    if top_k:
        result = signature.append_top_k(result, probabilities_name, top_k, top_names)
    result = graph.convert_opset(result, opset)

    result.producer_name, result.producer_version, result.doc_string = PRODUCER, "", ""
    result.graph.name, result.graph.doc_string = model.name, ""
    image = {"name": input_name, "dtype": "uint8", "layout": "NHWC", "channel_order": "RGB", "size": [height, width]}
    entries = {
        "classes": json.dumps(list(classes), ensure_ascii=False),
        "preprocessing": json.dumps(preprocessing.to_dict(values=False)),
        "input": json.dumps(image),
    }
    onnx.helper.set_model_props(result, {**entries, **(metadata or {})})
    full = dict.fromkeys((logits_name, probabilities_name), (TensorProto.FLOAT, len(classes)))
    best = {name: (kind, top_k) for name, kind in zip(top_names, (TensorProto.FLOAT, TensorProto.INT32)) if top_k}
    check_interface(result, input_name, full | best)
    check_model(result)
    free_memory()  # of the passes, before Keras and ONNX Runtime hold a model each
    check_logits(result, logits, preprocessing)
    free_memory()  # of the check, before the file is serialized in memory
    save_model(result, path)
    after = graph.op_counts(result)
    logger.info(
        "  %s: opset %d, %s: %s",
        os.path.basename(path),
        opset,
        count(sum(after.values()), "node"),
        ", ".join(f"{number} {op}" for op, number in after.items()),
    )
    return ExportSummary(
        opset=graph.opset(result),
        input_size=(height, width),
        classes=len(classes),
        nodes=len(result.graph.node),
        parameters=graph.parameter_count(result),
        ops_before=before,
        ops_after=after,
    )


def _input_size(model: keras.Model) -> tuple[int, int]:
    shape = tuple(getattr(model, "input_shape", None) or ()) if getattr(model, "inputs", None) else ()
    if len(shape) != 4 or shape[0] is not None or None in shape[1:] or shape[3] != 3:
        raise ProjectError(
            f"Expected a model with one input of shape (None, height, width, 3). Received: {shape} "
            "(build it for one image size, with a free batch)."
        )
    return shape[1], shape[2]


def _check_classes(classes: Sequence[str], width: int | None) -> None:
    if isinstance(classes, str) or len(classes) != width or len(set(classes)) != len(classes):
        unique = "" if isinstance(classes, str) else f", {len(set(classes))} of them different"
        raise ProjectError(
            f"Expected {width} different class names, as the model has outputs. "
            f"Received: {len(classes)}{unique} (use the list the model was trained with)."
        )


def _layers(model: Any) -> list[Any]:
    """Return all layers, including those of nested models."""
    return [inner for layer in getattr(model, "layers", ()) for inner in (layer, *_layers(layer))]


def _check_policy(model: keras.Model) -> None:
    if mixed := [layer.name for layer in _layers(model) if getattr(layer, "compute_dtype", "float32") != "float32"]:
        raise ProjectError(
            f"Expected layers that compute in float32. Received: {count(len(mixed), 'other')}, such as {mixed[0]!r} "
            "(rebuild the model under keras.config.set_dtype_policy('float32') and load its weights)."
        )


def _tree(model: keras.Model) -> LayerTree:
    """Return the layers by name, and the operations of keras.ops, which are no layers."""
    return {
        part.name: _tree(part) if hasattr(part, "layers") else {} for part in getattr(model, "operations", model.layers)
    }


def _tidy(model: onnx.ModelProto, source: keras.Model, logits_name: str) -> onnx.ModelProto:
    """Run the passes over the result of tf2onnx, and check that INT8 placement can handle the graph."""
    result = model
    for step in (
        convert_to_float32, signature.rename_batch, repair_biases, repair_transposed_padding, repair_groups,
        fold_shapes,
        expand_resizes, graph.constant_reshape, graph.strip_noops, fold_affine, fold_pad_into_maxpool,
    ):  # fmt: skip
        result = step(result)
    _check_operators(result, source)
    result = name_by_layer(result, source.name, _tree(source))
    result = signature.rename_tensor(result, result.graph.output[0].name, logits_name)
    if unfolded := unfolded_convs(result):
        logger.warning(
            "  %s an affine step behind that is not folded: slower, and as exact (%s)",
            count(len(unfolded), "Conv has", "Convs have"),
            listed(unfolded),
        )
    if loops := [node.name for node in result.graph.node if node.op_type in ("Loop", "Scan")]:
        raise ProjectError(
            f"Expected recurrent layers of a fixed number of steps, {MOST_STEPS} at most. "
            f"Received: {listed(loops)} (give the layer fewer steps, or use an LSTM, which ONNX has as one node; a "
            "loop in a SavedModel's own graph cannot be unrolled: bring the model's .keras or .h5 file)."
        )
    if "Shape" in graph.op_counts(result) and (free := nodes_with_data_shapes(result)):
        raise ProjectError(
            "Expected shapes that are constant but for the batch. "
            f"Received: {free[0]!r}, of which they are not ({count(len(free), 'such operation')}; replace that layer, "
            "or give the model a fixed image size)."
        )
    return result


def _check_operators(model: onnx.ModelProto, source: keras.Model) -> None:
    """Refuse operations that tf2onnx left under their TensorFlow names, as they have no ONNX counterpart."""
    unknown: dict[str, list[str]] = {}
    tree = _tree(source)
    for node in model.graph.node:
        if node.domain not in ("", "ai.onnx") or not onnx.defs.has(node.op_type, graph.opset(model)):
            layer = find_layer([node.name, *node.output], source.name, tree)
            where = f"layer {layer!r}" if layer else f"the operation {node.name!r}, which is in no layer"
            unknown.setdefault(where, []).append(node.op_type)
    if unknown:
        places = listed((f"{', '.join(sorted(set(ops)))} in {where}" for where, ops in unknown.items()), separator="; ")
        raise ProjectError(
            f"Expected TensorFlow operations that ONNX has too. Received: {places} (replace the layer by one that "
            "computes the same from the usual ones: keras.layers, sums, products, exp, erf, tanh)."
        )


def check_interface(model: onnx.ModelProto, input_name: str, outputs: Mapping[str, tuple[int, int]]) -> None:
    """Check types, shapes and the symbolic batch of a finished model.

    Args:
        model: As it will be written.
        input_name: Name of the uint8 pixels.
        outputs: Name -> type and width, in order.

    Raises:
        ProjectError: If the interface differs from that of `export_keras`.
    """
    shapes = graph.tensor_shapes(model)
    infos = (*model.graph.input, *model.graph.output)
    received = {info.name: (info.type.tensor_type.elem_type, shapes.get(info.name)) for info in infos}
    results = {name: (kind, (graph.BATCH, width)) for name, (kind, width) in outputs.items()}
    image = shapes.get(input_name, ())
    expected = {input_name: (TensorProto.UINT8, (graph.BATCH, *image[1:])), **results}
    if list(received.items()) != list(expected.items()) or len(image) != 4:
        raise ProjectError(
            f"Expected uint8 {input_name!r} (batch, H, W, 3) and the outputs {results} (type, shape). "
            f"Received: {received} "
            "(a layer fixes the batch size: look for a Reshape with a constant batch)."
        )
