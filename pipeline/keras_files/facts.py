"""What an architecture says about a model: sizes, parameters, preprocessing, training mode. Imports no Keras.

What an architecture says about a model: sizes, parameters, preprocessing inside. Imports no Keras.

Layers that Keras 2 calls in training mode for ever, and what is said where they are taken at inference.

``layer(x, training=True)`` holds in Keras 2's ``predict`` too: a BatchNormalization goes on using the statistics of the
batch, a Dropout goes on dropping. Keras 3's ``predict`` overrides it. Imports no Keras.
"""

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from export.errors import ModelError
from export.records import MOST_DIGITS
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
    """Layers before the first convolution that change pixels, described for people."""
    found: list[str] = []
    for name, kind, settings in layers_of(config) if config else ():
        if kind.startswith(_MAIN):
            break
        if kind == "Rescaling":
            found.append(f"Rescaling {name}: x * {settings.get('scale')} + {settings.get('offset', 0)}")
        elif kind == "Normalization":
            found.append(f"Normalization {name}")
        elif kind == "Lambda":
            found.append(f"Lambda {name}")
        elif kind in _ARITHMETIC or kind in _REORDER:
            function = settings.get("function")
            found.append(f"{kind} {name}" + (f": tf.{function}" if function else ""))
    return tuple(found)


def arithmetic_inside(config: Mapping[str, Any] | None) -> bool:
    """Whether what comes before the first convolution may normalise pixels; that shows where it is run."""
    return any(
        text.split(" ")[0] in (*_NORMALISING, *_ARITHMETIC) and not text.endswith(_NO_ARITHMETIC)
        for text in preprocessing_inside(config)
    )


def layer_counts(config: Mapping[str, Any] | None) -> dict[str, int]:
    """Layers by class name, the most frequent first."""
    return dict(Counter(kind for _, kind, _ in layers_of(config)).most_common()) if config else {}


@dataclass(frozen=True)
class Parameters:
    """How many values a model has; two are None where the file does not tell them apart."""

    total: int
    trainable: int | None = None
    frozen: int | None = None


def parameters(file: ModelFile) -> Parameters:
    """Total, trainable and frozen values."""
    total = sum(weight.size for weight in file.weights)
    if file.config is None:
        return Parameters(total)
    layers = {name: (kind, settings) for name, kind, settings in layers_of(file.config)}
    numbered = file.kind == ARCHIVE and file.written_by.startswith("Keras 2")  # where only some numbers are names too
    if numbered or not any(weight.layer in layers for weight in file.weights):  # a SavedModel numbers its variables
        return Parameters(total)
    frozen_models = _inside_frozen(file.config)
    trainable = 0
    for weight in file.weights:
        kind, settings = layers.get(weight.layer, ("", {}))
        statistics = weight.name.endswith(_STATISTICS) or (
            kind == "BatchNormalization" and _is_statistic(weight.name, settings)
        )
        statistics = statistics or (kind == "SpectralNormalization" and file.kind == ARCHIVE)
        frozen = settings.get("trainable") is False or weight.layer in frozen_models or kind == "Normalization"
        trainable += 0 if statistics or frozen else weight.size
    return Parameters(total, trainable, total - trainable)


def input_shapes(file: ModelFile) -> tuple[str, ...]:
    """Inputs as the file describes them."""
    if file.config is None:
        return _signature(file, "inputs")
    found: list[str] = []
    for name, kind, settings in layers_of(file.config):
        shape = batch_shape(settings)
        if shape and (kind == "InputLayer" or not found):
            found.append(f"{name} {_dtype(settings)} ({', '.join(str(n) for n in shape)})")
            if file.config.get("class_name") == "Sequential":
                break
    outer = names_at(file.config, "input_layers")
    return tuple(text for text in found if not outer or text.split(" ")[0] in outer)


def outputs(file: ModelFile) -> tuple[str, ...]:
    """The last layers: name, class, units and activation."""
    if file.config is None:
        return _signature(file, "outputs")
    layers = list(layers_of(file.config))
    names = names_at(file.config, "output_layers")
    chosen: list[tuple[str, str, dict[str, object]]] = [entry for entry in layers if entry[0] in names] or layers[-1:]
    described = []
    for name, kind, settings in chosen:
        activation = settings.get("activation")
        activation = activation.get("config") if isinstance(activation, dict) else activation
        parts = [kind, name, f"{settings['units']} units" if "units" in settings else "", str(activation or "")]
        described.append(" ".join(part for part in parts if part))
    return tuple(described)


def _signature(file: ModelFile, side: str) -> tuple[str, ...]:
    return tuple(f"{name} {text}" for name, text in file.signature[1].get(side, {}).items())


def _is_statistic(index: str, settings: Mapping[str, Any]) -> bool:
    """Whether a BatchNormalization's weight is one, in archives that number weights instead of naming them."""
    own = int(settings.get("scale", True)) + int(settings.get("center", True))
    return index.isdecimal() and len(index) <= MOST_DIGITS and int(index) >= own


def _inside_frozen(config: Mapping[str, Any]) -> set[str]:
    inside: set[str] = set()
    for layer in inner_layers(config):
        if "layers" in settings_of(layer):
            frozen = settings_of(layer).get("trainable") is False
            inside |= {name for name, _, _ in layers_of(layer)} if frozen else _inside_frozen(layer)
    return inside


def _dtype(settings: Mapping[str, Any]) -> str:
    dtype = settings.get("dtype", "float32")
    return str(dtype.get("config", {}).get("name", "float32")) if isinstance(dtype, dict) else str(dtype)


_NORMALISING_LAYERS = "BatchNormalization"
_RATES = ("rate", "dropout", "recurrent_dropout", "stddev", "factor")


def taken_at_inference(file: ModelFile, choice: Literal["refuse", "inference"]) -> tuple[str, ...]:
    """How the model that is taken over differs from its file, as sentences; empty where it does not.

    Args:
        file: the model's.
        choice: ``model.called_in_training`` of the recipe.

    Raises:
        ModelError: layers were called in training mode, and the recipe does not take them at inference.
    """
    called = _called(file)
    if not called:
        return ()
    names = [name for name, _ in called]
    named = listed(names)
    why = " and ".join(dict.fromkeys(reason for _, reason in called))
    if choice == "refuse":
        raise ModelError(
            f"Expected layers that answer as at inference. Received: {file.path}, with training=True in the calls of "
            f"{count(len(names), 'layer')} ({named}). Keras 2 keeps to that, so that the answer for a picture depends "
            f"on {why}, which no engine can follow. To take these layers at inference, as Keras 3 does, with other "
            "answers than the file's: --set model.called_in_training=inference"
        )
    were = "was" if len(names) == 1 else "were"
    return (
        f"The model does not answer as {file.path.name} does in Keras 2: {len(names):,} of its layers ({named}) {were} "
        f"called with training=True, so that an answer depends on {why}. Here it answers as at inference, as "
        "model.called_in_training asks. Parity is to the model so taken, not to the file.",
    )


def called_in_training(file: ModelFile) -> tuple[str, ...]:
    """Names of the layers that Keras 2 calls with ``training=True`` and that mind it, nested models' included."""
    return tuple(name for name, _ in _called(file))


def _called(file: ModelFile) -> list[tuple[str, str]]:
    return list(dict(_search(file.config)).items()) if file.legacy else []


def _search(config: Any) -> Iterator[tuple[str, str]]:
    for layer in inner_layers(config):
        if any(options.get("training") in (True, 1) for options in _call_options(layer.get("inbound_nodes"))):
            yield from ((str(layer.get("name")), reason) for reason in _minds(layer))
        yield from _search(layer)


def _minds(layer: dict[str, Any]) -> list[str]:
    """What a layer's answer depends on in training mode; empty where the mode makes no difference."""
    kind, settings = str(layer.get("class_name")), settings_of(layer)
    inner = [*inner_layers(layer), *(part for part in (settings.get("layer"),) if isinstance(part, dict))]
    if inner:
        return sorted({reason for part in inner for reason in _minds(part)}, reverse=True)[:1]
    if _NORMALISING_LAYERS in kind:  # a frozen one keeps to what it has learned, in either mode
        return [] if settings.get("trainable") is False else ["the other pictures of its batch"]
    given = [settings[key] for key in _RATES if key in settings]
    return ["chance"] if kind.startswith("Random") or any(given) else []


def _call_options(nodes: Any) -> Iterator[dict[str, Any]]:
    """The named arguments of every call: ``{"kwargs": {...}}`` in Keras 3, ``[name, node, tensor, {...}]`` before."""
    if isinstance(nodes, dict):
        if isinstance(nodes.get("kwargs"), dict):
            yield nodes["kwargs"]
    elif isinstance(nodes, list):
        if len(nodes) == 4 and isinstance(nodes[3], dict):
            yield nodes[3]
        for node in nodes:
            if isinstance(node, (dict, list)):
                yield from _call_options(node)
