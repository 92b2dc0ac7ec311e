"""Inputs and outputs of a model, read from its file without building it, and why it is not an image classifier.

Shapes are traced back from the last layer as far as the architecture states them; what it leaves open is found out
when the model is imported. Imports no Keras.
"""

import ast
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from export.words import count, listed
from pipeline.keras_files.model_file import (
    ModelFile,
    batch_shape,
    by_name,
    inner_layers,
    is_model,
    layers_of,
    name_of,
    names_at,
    settings_of,
)
from pipeline.models.original import SMALLEST, layout_of

Shape = tuple[int | None, ...]  # without the batch

_SAME = frozenset(
    """
    Activation ActivityRegularization AlphaDropout BatchNormalization BatchNormalizationV1 Dropout ELU GaussianDropout
    GaussianNoise GroupNormalization Identity LayerNormalization LeakyReLU PReLU ReLU Softmax SpatialDropout2D
    ThresholdedReLU UnitNormalization Add Average Maximum Minimum Multiply Subtract
    """.split()  # noqa: SIM905
)
_PASSING = frozenset("ActivityRegularization AlphaDropout Dropout Flatten GaussianDropout Identity Reshape".split())  # noqa: SIM905

_ACTIVATIONS = frozenset(("ELU", "LeakyReLU", "PReLU", "ReLU", "Sigmoid", "Softmax", "ThresholdedReLU"))
_CONVOLUTIONS = ("Conv2D", "SeparableConv2D", "Conv2DTranspose", "Convolution2D")
_BEHIND_POOLING = _PASSING | {"BatchNormalization", "BatchNormalizationV1", "LayerNormalization"}


@dataclass(frozen=True)
class ModelOutput:
    """The output of a layer.

    Attributes:
        shape: without the batch; None where the architecture does not say.
        activation: the last one; None where there is none or it is not known.
    """

    shape: Shape | None
    activation: str | None

    @property
    def classes(self) -> int | None:
        """Number of classes: two for a single unit, None where the shape is not known."""
        units = self.shape[0] if self.shape is not None and len(self.shape) == 1 else None
        return 2 if units == 1 else units


def first_output(file: ModelFile) -> ModelOutput:
    """Return the first output of a model."""
    if file.config is not None:
        return _ending(file.config)
    return ModelOutput(next((shape for _, shape in signature(file, "outputs").values()), None), None)


def output_layers(config: Mapping[str, Any]) -> list[tuple[str, ModelOutput]]:
    """Return the output layers of a model, each with its output.

    The output is unknown for a layer that gives several outputs or is called several times.
    """
    layers = by_name(config)
    names = names_at(config, "output_layers")
    ends = []
    for name in names:
        layer = layers.get(name, {})
        several = len(names_at(layer, "output_layers")) > 1 or len(layer.get("inbound_nodes") or ()) > 1
        known = not several and names.count(name) == 1
        ends.append((name, _of(layers, name, set()) if known else ModelOutput(None, None)))
    return ends


def before_argmax(config: Mapping[str, Any]) -> list[tuple[str, ModelOutput]]:
    """Return the layer before a final argmax, with its output; empty where the model does not end in one."""
    layers = by_name(config)
    last = next(iter(names_at(config, "output_layers")), None)
    name = _last_but(layers, last, _names_a_class)
    return [(name, _of(layers, name, set()))] if name is not None and name != last else []


def why_no_classifier(file: ModelFile) -> str | None:
    """Return why a model cannot be deployed, as a sentence without a full stop; None where no reason is known."""
    if forbidden := [f for f in file.findings if not f.allowable]:
        return f"{forbidden[0].name}: {forbidden[0].why}"
    if file.config is None:
        signatures = file.facts.get("signatures", {})
        if "serving_default" not in signatures and len(signatures) != 1:
            return f"no signature serving_default, but {listed(signatures) or 'none at all'}"
        inputs, outputs = list(signature(file, "inputs").values()), list(signature(file, "outputs").items())
    else:
        inputs = list(_inputs(file.config))
        outputs = [("", ("", None))] * max(1, len(names_at(file.config, "output_layers")))
    if len(inputs) > 1:
        return f"it takes {count(len(inputs), 'input')}, and an image classifier takes one image"
    if len(outputs) > 1:
        ends = (
            output_layers(file.config)
            if file.config is not None
            else [(n, ModelOutput(s, None)) for n, (_, s) in outputs]
        )
        names = listed(f"{name} {_text(end.shape)}" if end.shape is not None else name for name, end in ends)
        return f"it gives {count(len(outputs), 'output')} ({names}), and an image classifier gives one, (N, classes)"
    return (
        (_why_no_image(*inputs[0]) if inputs else None)
        or (_why_no_layers(file.config) if file.config is not None else None)
        or _why_no_classes(first_output(file), inputs)
        or (_why_features(file.config) if file.config is not None else None)
    )


def _why_no_layers(config: Mapping[str, Any]) -> str | None:
    """Return why the import will refuse the model's layers, as far as the file tells."""
    if (first := next(iter(inner_layers(config)), None)) is not None and config.get("class_name") == "Sequential":
        shape = settings_of(config).get("build_input_shape") or _batched(settings_of(first)) or _recorded(first)
        if shape is None and not inner_layers(first):
            return "it does not say what size of image it takes. Call it once on an image, and save it again"
    name = next(iter(names_at(config, "output_layers")), None)
    for layer in inner_layers(config):
        if name_of(layer) == name and _names_a_class(layer):
            return (
                f"it ends in {layer.get('class_name')} {name!r}, which names a class and gives no value for the others"
            )
    for name, _, settings in layers_of(config):
        if settings.get("stateful") is True:
            return f"its layer {name} remembers the images before (stateful=True)"
        dtype = settings.get("dtype")
        if isinstance(dtype, dict) and str(dtype.get("class_name")).startswith("Quantized"):
            return f"Keras quantized its layer {name} (model.quantize). Save the model before that step"
    return None


def _names_a_class(layer: Mapping[str, Any]) -> bool:
    """Whether a layer is an argmax, or a one-hot encoding of one."""
    function = str(settings_of(layer).get("function", "")).rpartition(".")[2]
    kind = str(layer.get("class_name")).lower().replace("_", "")
    return kind in ("argmax", "onehot") or function in ("argmax", "one_hot")


def _why_no_image(kind: str, shape: Shape | None) -> str | None:
    if kind == "string":
        return "it takes texts or encoded images, and an image classifier takes pixels"
    if shape is None:
        return None
    layout, kind = layout_of(shape)
    if layout is None:
        return f"it takes {kind}, {_text(shape)}; an image classifier takes images, (N, height, width, 3 or 1)"
    sides = shape[1:] if layout == "first" else shape[:2]
    too_small = any(side is not None and side < SMALLEST for side in sides)
    return f"it takes {_text(shape)}, which is too small for an image" if too_small else None


def _why_no_classes(end: ModelOutput, inputs: list[tuple[str, Shape | None]]) -> str | None:
    shape = end.shape
    if shape is None:
        return None
    if len(shape) != 1:
        taken = inputs[0][1] if inputs else None
        same = taken is not None and len(shape) == 3 and shape[0] == taken[0] and shape[0] is not None
        kind = "an image or a map for each input" if same else "a feature map" if len(shape) == 3 else "a sequence"
        return f"it gives {kind}, {_text(shape)}, and an image classifier gives (N, classes)"
    if shape[0] == 1 and end.activation not in (None, "sigmoid", "hard_sigmoid"):
        return (
            "it gives one number without a sigmoid, as a regression does. If that is the logit of the second of two "
            "classes, say so in a recipe: model.output: logits"
        )
    return None


def _why_features(config: Mapping[str, Any]) -> str | None:
    """Return why a model that ends in global pooling is a backbone.

    It is none where a convolution before the pooling gives one channel for each class.
    """
    layers = by_name(config)
    last = next(iter(names_at(config, "output_layers") or list(layers)[-1:]), None)
    name = _last_but(layers, last, lambda layer: layer.get("class_name") in _BEHIND_POOLING)
    if name is None:
        return None
    kind = str(layers[name].get("class_name"))
    if inner_layers(layers[name]):
        return _why_features(layers[name])
    if not (kind.startswith("Global") and "Pool" in kind):
        return None
    source = _last_but(layers, _source(layers, name), lambda layer: layer.get("class_name") in _PASSING)
    before = layers.get(source or "", {})
    if before.get("class_name") in _CONVOLUTIONS and settings_of(before).get("activation") in (None, "linear"):
        return None
    return (
        f"it ends in {kind} {name!r}, the features of a backbone, and not in a value for each class. Train a head "
        "for it (a last Dense layer), or, if these are scores to rank classes by, say so in a recipe: model.output: "
        "logits"
    )


def _last_but(layers: Mapping[str, Any], name: str | None, passed: Callable[[Mapping[str, Any]], bool]) -> str | None:
    """Return the layer itself or, where it is to be skipped, the nearest one before it that is not."""
    seen: set[str] = set()
    while name is not None and name in layers and name not in seen and passed(layers[name]):
        seen.add(name)
        name = _source(layers, name)
    return name if name in layers else None


def _ending(config: Mapping[str, Any]) -> ModelOutput:
    layers = by_name(config)
    names = names_at(config, "output_layers") or list(layers)[-1:]
    return _of(layers, names[0], set()) if names and names[0] in layers else ModelOutput(None, None)


def _of(layers: Mapping[str, Any], name: str, seen: set[str]) -> ModelOutput:
    """Return the output of a layer. ``seen`` holds the layers on the way: in a damaged file they may form a cycle."""
    layer = layers.get(name)
    if layer is None or name in seen:
        return ModelOutput(None, None)
    kind, settings = str(layer.get("class_name")), settings_of(layer)
    if is_model(layer):
        return _ending(layer)
    if kind == "InputLayer":
        return ModelOutput(_batched(settings), None)
    source = _source(layers, name)
    if len(layer.get("inbound_nodes") or ()) > 1 or len(set(_histories(layer.get("inbound_nodes")))) > 1:
        return ModelOutput(_shape(kind, settings, None), None)  # which call or which shape applies is not known here
    before = _of(layers, source, seen | {name}) if source is not None else ModelOutput(_batched(settings), None)
    own = settings.get("activation")
    activation = own.get("config") if isinstance(own, dict) else own
    if kind in _ACTIVATIONS:
        activation = kind.lower()
    if kind in _PASSING or (kind == "Activation" and activation == "linear"):
        activation = before.activation
    shape = _shape(kind, settings, _recorded(layer) or before.shape)
    return ModelOutput(shape, activation if isinstance(activation, str) else None)


def _shape(kind: str, settings: Mapping[str, Any], shape: Shape | None) -> Shape | None:
    """Return the output shape of a layer with this input shape."""
    units = settings.get("units", settings.get("output_dim"))
    if kind == "Dense" and isinstance(units, int):
        return (units,) if shape is None else (*shape[:-1], units)
    if kind == "Flatten":
        sizes = [n for n in shape or () if n is not None]
        return (math.prod(sizes),) if shape is not None and len(sizes) == len(shape) else (None,)
    if kind == "Reshape":
        target = settings.get("target_shape")
        return tuple(n if n != -1 else None for n in target) if isinstance(target, list) else None
    channels = shape[-1] if shape else None
    if kind in _CONVOLUTIONS:
        filters = settings.get("filters", settings.get("nb_filter"))
        same = settings.get("padding") == "same" and settings.get("strides") in (1, [1, 1], (1, 1))
        sides = shape[:2] if same and shape is not None and len(shape) == 3 else (None, None)
        return (*sides, filters if isinstance(filters, int) else None)
    if kind.startswith("Global") and kind.endswith("2D"):
        return (1, 1, channels) if settings.get("keepdims") else (channels,)
    if kind.startswith(("MaxPool", "AveragePool", "UpSampling", "ZeroPadding", "Cropping")) and kind.endswith("2D"):
        return (None, None, channels)
    return shape if kind in _SAME else None


def _source(layers: Mapping[str, Any], name: str) -> str | None:
    """Return the layer whose output a layer takes first; in a Sequential, the one before it."""
    if nodes := layers[name].get("inbound_nodes"):
        return next(_histories(nodes), None)
    order = list(layers)
    index = order.index(name)
    return order[index - 1] if index and not any(layer.get("inbound_nodes") for layer in layers.values()) else None


def _histories(nodes: Any) -> Iterator[str]:
    """Yield the names of the source layers, from the node formats of Keras 2 and 3."""
    if isinstance(nodes, dict):
        history = settings_of(nodes).get("keras_history")
        if isinstance(history, list) and history:
            yield str(history[0])
        else:
            for value in nodes.values():
                yield from _histories(value)
    elif isinstance(nodes, list):
        if len(nodes) >= 3 and isinstance(nodes[0], str) and isinstance(nodes[1], int):
            yield nodes[0]
        else:
            for value in nodes:
                yield from _histories(value)


def _recorded(layer: Mapping[str, Any]) -> Shape | None:
    """Return the input shape that Keras 3 records beside a layer."""
    build = layer.get("build_config")
    return _without_batch(build.get("input_shape") if isinstance(build, dict) else None)


def _batched(settings: Mapping[str, Any]) -> Shape | None:
    return _without_batch(batch_shape(settings))


def _without_batch(shape: Any) -> Shape | None:
    known = isinstance(shape, list) and shape and all(n is None or isinstance(n, int) for n in shape[1:])
    return tuple(shape[1:]) if known else None


def _inputs(config: Mapping[str, Any]) -> Iterator[tuple[str, Shape | None]]:
    """Yield the dtype and shape of every input of the whole model."""
    layers = by_name(config)
    for name in names_at(config, "input_layers") or list(layers)[:1]:
        settings = settings_of(layers.get(name, {}))
        dtype = settings.get("dtype", "float32")
        yield dtype if isinstance(dtype, str) else "float32", _batched(settings)


def signature(file: ModelFile, side: str) -> dict[str, tuple[str, Shape | None]]:
    """Return dtype and shape of a SavedModel's inputs or outputs, parsed from ``float32 (None, 32, 32, 3)``.

    Args:
        file: a SavedModel.
        side: "inputs" or "outputs".
    """
    return {
        name: (dtype, tuple(ast.literal_eval(shape))[1:] if shape not in ("", "()") else None)
        for name, text in file.signature[1].get(side, {}).items()
        for dtype, _, shape in [text.partition(" ")]
    }


def _text(shape: Shape) -> str:
    return f"(N{''.join(f', {n}' for n in shape)})"
