"""Nodes that are named after no layer get the name of the Keras layer that they belong to, by the values of tensors."""

import numpy as np
from onnx import ModelProto

from export.onnx_passes.graph import consumers, copy_model, producers
from export.onnx_passes.layer_names import keras_layer
from export.tensorrt.sidecar import Precision
from pipeline.verification.layers.keras_layers import INPUT, KerasLayers
from pipeline.verification.layers.mapping import Mapping, map_layers
from pipeline.verification.layers.subject import Subject

_IMAGES = 2
_OUTSIDE = ("preprocessing", "logits", "probabilities")  # begin the names of nodes before and behind the layers
_WEIGHTED = ("Conv", "Gemm", "MatMul", "ConvTranspose", "ConvInteger", "QLinearConv")
_WEIGHTED_KINDS = ("Conv", "DepthwiseConv", "SeparableConv", "Dense")


def name_by_values(
    model: ModelProto, precision: Precision, keras_layers: KerasLayers, pixels: np.ndarray
) -> ModelProto:
    """Return the model with nodes that are all named after Keras layers, as far as that is known.

    A node that writes a layer's tensor is of that layer. Of the others, those of a file without such names are of the
    layer behind them, whose tensor they lead to; single ones among nodes that are named were put in behind a layer, and
    are of that one.

    Args:
        model: Takes pixels, see `Subject`.
        precision: Of the file.
        keras_layers: The reference.
        pixels: uint8 (N, height, width, 3) RGB, at least as many as the file's batch where that is fixed.
    """
    inner = [node for node in model.graph.node if keras_layer(node.name) not in _OUTSIDE]
    nameless = [node.output[0] for node in inner if keras_layer(node.name) not in keras_layers.layers]
    if not nameless:
        return model
    subject = Subject("", precision, model)
    mapping = map_layers(keras_layers, subject, pixels[: subject.batch or _IMAGES])
    result = copy_model(model)
    layers = {layer.tensor: layer.name for layer in mapping.layers if layer.name != INPUT}
    (_lead_on if 2 * len(nameless) < len(inner) else _lead_back)(result, layers)
    weighted = _weighted(keras_layers, mapping)
    for node in result.graph.node:
        if node.output[0] in nameless and (layer := layers.get(node.output[0])):
            owner = weighted.get(layer, layer) if node.op_type in _WEIGHTED else layer
            node.name = f"{owner}/{node.name or node.output[0]}"
    return result


def _lead_on(model: ModelProto, layers: dict[str, str]) -> None:
    """Give each tensor of no layer that of the named node before it (in place)."""
    written = producers(model.graph)
    for node in model.graph.node:
        before = [layers.get(name) or keras_layer(written[name].name) for name in node.input if name in written]
        for name in node.output:
            if before and before[0] not in _OUTSIDE:
                layers.setdefault(name, before[0])


def _lead_back(model: ModelProto, layers: dict[str, str]) -> None:
    """Give each tensor of no layer that of a node behind it (in place)."""
    readers = consumers(model.graph)
    for node in reversed(model.graph.node):
        behind = (layers.get(reader.output[0]) for name in node.output for reader in readers.get(name, ()))
        if (layer := layers.get(node.output[0]) or next(filter(None, behind), None)) is not None:
            layers[node.output[0]] = layer


def _weighted(keras_layers: KerasLayers, mapping: Mapping) -> dict[str, str]:
    """Return the layers with weights that are folded into others, by those."""
    return {
        why.removeprefix("folded into "): name
        for name, why in mapping.without_tensor.items()
        if keras_layers.layers[name].kind.startswith(_WEIGHTED_KINDS)
    }
