"""Facts of a model from its architecture: sizes, parameters, preprocessing, training mode. Imports no Keras.

In Keras 2, ``layer(x, training=True)`` holds in ``predict`` too: a BatchNormalization keeps using the statistics of the
batch, and a Dropout keeps dropping. Keras 3's ``predict`` overrides it.
"""

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from export.errors import ModelError
from export.records import MAX_DIGITS
from export.words import count, listed
from pipeline.keras_files.model_file import (
    ARCHIVE,
    ModelFile,
    batch_shape,
    inner_layers,
    layers_of,
    names_at,
    settings_of,
)

_MAIN = ("Conv", "Dense", "Separable", "Depthwise", "BatchNormalization", "MaxPool", "Flatten", "Global")
_NORMALISING = ("Rescaling", "Normalization")
_ARITHMETIC = ("Subtract", "Add", "Multiply", "Divide", "TrueDivide", "TFOpLambda")
_STATISTICS = (
    "moving_mean", "moving_variance", "running_mean", "running_std", "mean", "variance", "count", "vector_u",
)  # fmt: skip
_NO_ARITHMETIC = (": tf.cast", ": tf.image.resize", ": tf.reshape", ": tf.expand_dims", ": tf.identity")
_REORDER = ("GetItem", "SlicingOpLambda", "Stack", "Take", "Flip")


def preprocessing_inside(config: Mapping[str, Any] | None) -> tuple[str, ...]:
    """Describe the layers before the first convolution that change pixels."""
    steps: list[str] = []
    for name, kind, settings in layers_of(config):
        if kind.startswith(_MAIN):
            break
        if kind == "Rescaling":
            steps.append(f"Rescaling {name}: x * {settings.get('scale')} + {settings.get('offset', 0)}")
        elif kind in ("Normalization", "Lambda"):
            steps.append(f"{kind} {name}")
        elif kind in _ARITHMETIC or kind in _REORDER:
            function = settings.get("function")
            steps.append(f"{kind} {name}" + (f": tf.{function}" if function else ""))
    return tuple(steps)


def arithmetic_inside(config: Mapping[str, Any] | None) -> bool:
    """Whether layers before the first convolution may normalise pixels; only running them shows whether they do."""
    return any(
        text.split(" ")[0] in (*_NORMALISING, *_ARITHMETIC) and not text.endswith(_NO_ARITHMETIC)
        for text in preprocessing_inside(config)
    )


def layer_counts(config: Mapping[str, Any] | None) -> dict[str, int]:
    """Count the layers by class name, the most frequent first."""
    return dict(Counter(kind for _, kind, _ in layers_of(config)).most_common())


@dataclass(frozen=True)
class Parameters:
    """Numbers of values in a model's weights; ``trainable`` and ``frozen`` are None if the file does not show them."""

    total: int
    trainable: int | None = None
    frozen: int | None = None


def parameters(file: ModelFile) -> Parameters:
    """Count the total, trainable and frozen values."""
    total = sum(weight.size for weight in file.weights)
    layers = {name: (kind, settings) for name, kind, settings in layers_of(file.config)}
    numbered = file.kind == ARCHIVE and file.written_by.startswith("Keras 2")  # layers by number, not by name
    if numbered or not any(weight.layer in layers for weight in file.weights):  # a SavedModel numbers its variables
        return Parameters(total)
    frozen_models = _inside_frozen(file.config)
    trainable = 0
    for weight in file.weights:
        kind, settings = layers.get(weight.layer, ("", {}))
        frozen = (
            weight.name.endswith(_STATISTICS)
            or (kind == "BatchNormalization" and _is_statistic(weight.name, settings))
            or (kind == "SpectralNormalization" and file.kind == ARCHIVE)
            or kind == "Normalization"
            or settings.get("trainable") is False
            or weight.layer in frozen_models
        )
        trainable += 0 if frozen else weight.size
    return Parameters(total, trainable, total - trainable)


def input_shapes(file: ModelFile) -> tuple[str, ...]:
    """Describe the inputs: name, dtype and shape with the batch."""
    if file.config is None:
        return _signature(file, "inputs")
    inputs: list[str] = []
    for name, kind, settings in layers_of(file.config):
        shape = batch_shape(settings)
        if shape and (kind == "InputLayer" or not inputs):
            inputs.append(f"{name} {_dtype(settings)} ({', '.join(str(n) for n in shape)})")
            if file.config.get("class_name") == "Sequential":
                break
    outer = names_at(file.config, "input_layers")
    return tuple(text for text in inputs if not outer or text.split(" ")[0] in outer)


def outputs(file: ModelFile) -> tuple[str, ...]:
    """Describe the last layers: class, name, units and activation."""
    if file.config is None:
        return _signature(file, "outputs")
    layers = list(layers_of(file.config))
    names = names_at(file.config, "output_layers")
    described = []
    for name, kind, settings in [layer for layer in layers if layer[0] in names] or layers[-1:]:
        activation = settings.get("activation")
        activation = activation.get("config") if isinstance(activation, dict) else activation
        units = f"{settings['units']} units" if "units" in settings else ""
        described.append(" ".join(part for part in (kind, name, units, str(activation or "")) if part))
    return tuple(described)


def _signature(file: ModelFile, side: str) -> tuple[str, ...]:
    return tuple(f"{name} {text}" for name, text in file.signature[1].get(side, {}).items())


def _is_statistic(index: str, settings: Mapping[str, Any]) -> bool:
    """Whether a numbered weight of a BatchNormalization is a statistic; these come after gamma and beta."""
    learned = int(settings.get("scale", True)) + int(settings.get("center", True))
    return index.isdecimal() and len(index) <= MAX_DIGITS and int(index) >= learned


def _inside_frozen(config: Any) -> set[str]:
    inside: set[str] = set()
    for layer in inner_layers(config):
        if "layers" in settings_of(layer):
            trains = settings_of(layer).get("trainable") is not False
            inside |= _inside_frozen(layer) if trains else {name for name, _, _ in layers_of(layer)}
    return inside


def _dtype(settings: Mapping[str, Any]) -> str:
    dtype = settings.get("dtype", "float32")
    return str(dtype.get("config", {}).get("name", "float32")) if isinstance(dtype, dict) else str(dtype)


_RATES = ("rate", "dropout", "recurrent_dropout", "stddev", "factor")


def inference_deviations(file: ModelFile, choice: Literal["refuse", "inference"]) -> tuple[str, ...]:
    """Describe how the imported model differs from its file because of layers called with ``training=True``.

    Args:
        file: file of the model.
        choice: ``model.called_in_training`` of the recipe.

    Returns:
        Sentences; empty if there is no difference.

    Raises:
        ModelError: layers were called in training mode, and ``choice`` is "refuse".
    """
    reasons = _training_calls(file)
    if not reasons:
        return ()
    named = listed(reasons)
    why = " and ".join(dict.fromkeys(reasons.values()))
    if choice == "refuse":
        raise ModelError(
            f"Expected layers that run in inference mode. Received: {file.path}, with training=True in the calls of "
            f"{count(len(reasons), 'layer')} ({named}). Keras 2 runs them in training mode, so that the prediction for "
            f"an image depends on {why}, which no engine can reproduce. To run these layers in inference mode, as "
            "Keras 3 does, with other predictions than the file's: --set model.called_in_training=inference"
        )
    were = "was" if len(reasons) == 1 else "were"
    return (
        f"The model does not predict as {file.path.name} does in Keras 2: {len(reasons):,} of its layers ({named}) "
        f"{were} called with training=True, so that a prediction depends on {why}. Here they run in inference mode, as "
        "model.called_in_training asks. Parity is with this model, not with the file.",
    )


def called_in_training(file: ModelFile) -> tuple[str, ...]:
    """Name the layers that Keras 2 calls with ``training=True`` and that it changes, nested models' included."""
    return tuple(_training_calls(file))


def _training_calls(file: ModelFile) -> dict[str, str]:
    return dict(_search(file.config)) if file.legacy else {}


def _search(config: Any) -> Iterator[tuple[str, str]]:
    for layer in inner_layers(config):
        if any(options.get("training") in (True, 1) for options in _call_options(layer.get("inbound_nodes"))):
            yield from ((str(layer.get("name")), reason) for reason in _dependencies(layer))
        yield from _search(layer)


def _dependencies(layer: dict[str, Any]) -> list[str]:
    """Name what a layer's output depends on in training mode; empty if the mode makes no difference."""
    kind, settings = str(layer.get("class_name")), settings_of(layer)
    inner = [*inner_layers(layer), *(part for part in (settings.get("layer"),) if isinstance(part, dict))]
    if inner:
        return sorted({reason for part in inner for reason in _dependencies(part)}, reverse=True)[:1]
    if "BatchNormalization" in kind:  # a frozen one uses its moving statistics in either mode
        return [] if settings.get("trainable") is False else ["the other images of its batch"]
    return ["chance"] if kind.startswith("Random") or any(settings.get(key) for key in _RATES) else []


def _call_options(nodes: Any) -> Iterator[dict[str, Any]]:
    """Yield the keyword arguments of every call: ``{"kwargs": {...}}`` in Keras 3."""
    if isinstance(nodes, dict):
        if isinstance(nodes.get("kwargs"), dict):
            yield nodes["kwargs"]
    elif isinstance(nodes, list):  # Keras 1 and 2: [name, node, tensor, {...}]
        if len(nodes) == 4 and isinstance(nodes[3], dict):
            yield nodes[3]
        for node in nodes:
            yield from _call_options(node)
