"""Conversion of Keras 2 layers to Keras 3 layers that compute the same.

Most layers keep their name and need some settings renamed. A layer that Keras 3 lacks or defines differently is built
from standard layers of Keras 3, so that the saved model needs no custom code.
"""

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
from keras import ops

from export.errors import ModelError

_RENAMED = {
    "BatchNormalizationV1": "BatchNormalization",
    "BatchNormalizationV2": "BatchNormalization",
    "SyncBatchNormalization": "BatchNormalization",
    "GRUV1": "GRU",
    "LSTMV1": "LSTM",
}
_SETTINGS = {"LeakyReLU": {"alpha": "negative_slope"}}
# hard_sigmoid is clip(0.2 x + 0.5) in Keras 2 and clip(x / 6 + 0.5) in Keras 3.
SLOPE, STEEPER = 0.2, 1.2
# Blocks of a recurrent layer's weights along their last axis, and the blocks of the gates, which have an activation.
_GATES = {"LSTM": (4, (0, 1, 3)), "GRU": (3, (0, 1)), "ConvLSTM1D": (4, (0, 1, 3)), "ConvLSTM2D": (4, (0, 1, 3))}
# The same for the candidate, where its activation applies to nothing else.
_CANDIDATES = {"GRU": (3, (2,)), "SimpleRNN": (1, (0,))}


@dataclass
class _Part:
    """A Keras 3 layer before it is built, its weights for then, and whether a hard_sigmoid follows it."""

    layer: Any
    weights: list[np.ndarray]
    hard_sigmoid: bool = False


def plain_name(name: str) -> str:
    """Return a layer's name without slashes, as in DenseNet and MobileNet v3 of Keras 2; Keras 3 refuses them."""
    return name.replace("/", "_")


def convert_layer(layer: Any, name: str, model: Callable[[Any], Any]) -> Callable[..., Any]:
    """Return the Keras 3 counterpart of a tf_keras layer, a callable on tensors that gets its weights when called.

    Args:
        layer: built tf_keras layer.
        name: name of the counterpart.
        model: rebuilds a model inside a layer.

    Raises:
        ModelError: the layer has no counterpart.
    """
    kind = type(layer).__name__
    special: dict[str, Callable[..., Callable[..., Any]]] = {
        "ThresholdedReLU": _thresholded_relu,
        "LocallyConnected2D": _locally_connected,
        "CustomScaleLayer": _custom_scale,
        "RandomCrop": _crop_at_inference,
        "LayerScale": _layer_scale,
    }
    if kind in special:
        return special[kind](layer, name)
    part = _part(layer, name, model)

    def call(x: Any, *args: Any, **named: Any) -> Any:
        y = part.layer(x, *args, **named)
        if part.weights:
            part.layer.set_weights(part.weights)
        return hard_sigmoid(y, name) if part.hard_sigmoid else y

    return call


def hard_sigmoid(x: Any, name: str) -> Any:
    """Apply the hard_sigmoid of Keras 2: clip(0.2 x + 0.5, 0, 1)."""
    rescaled = keras.layers.Rescaling(SLOPE, offset=0.5, name=f"{name}_rescaled")(x)
    return keras.layers.ReLU(max_value=1.0, name=name)(rescaled)


def _part(layer: Any, name: str, model: Callable[[Any], Any]) -> _Part:
    kind = _RENAMED.get(type(layer).__name__, type(layer).__name__)
    if kind == "Lambda":
        return _Part(keras.layers.Lambda(layer.function, name=name, arguments=layer.arguments), [])
    if kind == "Normalization":
        return _Part(_normalization(layer, name), [])
    target = getattr(keras.layers, kind, None)
    if target is None:
        raise ModelError(
            f"Expected layers that Keras 3 has too. Received: {kind} {layer.name!r}. Save the model as a SavedModel "
            "with Keras 2 without it, or replace the layer."
        )
    renamed = _SETTINGS.get(kind, {})
    config = {renamed.get(key, key): value for key, value in (layer.get_config() | {"name": name}).items()}
    config = {key: value for key, value in config.items() if key in _parameters(target)}
    if isinstance(config.get("axis"), (list, tuple)) and len(config["axis"]) == 1:
        config["axis"] = config["axis"][0]
    if kind in ("Bidirectional", "TimeDistributed"):
        return _wrapped(layer, target, config, model)
    if "cell" in config:
        raise ModelError(
            f"Expected recurrent layers of Keras' own. Received: {kind} {layer.name!r} around a cell. Use LSTM, GRU "
            "or SimpleRNN."
        )
    weights = [np.asarray(w) for w in layer.get_weights()] if not kind.startswith("Random") else []
    weights = _with_keras2s_gates(layer, kind, weights)
    follows = _is_hard_sigmoid(layer, "activation") and kind not in _CANDIDATES
    if follows:
        config |= {"activation": "linear", "name": f"{name}_linear"}
    converted = target.from_config(config)
    converted.trainable = layer.trainable
    return _Part(converted, weights, follows)


def _wrapped(layer: Any, target: Any, config: dict[str, object], model: Callable[[Any], Any]) -> _Part:
    """Convert a wrapper: the inner layer is converted, and its weights become those of the wrapper."""
    if type(layer).__name__ == "TimeDistributed":
        inner = layer.layer
        part = _Part(model(inner), []) if hasattr(inner, "layers") else _part(inner, plain_name(inner.name), model)
        name = f"{config['name']}_linear" if part.hard_sigmoid else config["name"]
        return _Part(target(part.layer, name=name), part.weights, part.hard_sigmoid)
    forward = _part(layer.forward_layer, plain_name(layer.forward_layer.name), model)
    backward = _part(layer.backward_layer, plain_name(layer.backward_layer.name), model)
    converted = target(forward.layer, merge_mode=layer.merge_mode, backward_layer=backward.layer, name=config["name"])
    return _Part(converted, [*forward.weights, *backward.weights])


def _with_keras2s_gates(layer: Any, kind: str, weights: list[np.ndarray]) -> list[np.ndarray]:
    """Scale the weights by 1.2 where a hard_sigmoid follows, so that Keras 3's equals that of Keras 2."""
    for setting, blocks in (("recurrent_activation", _GATES), ("activation", _CANDIDATES)):
        if not _is_hard_sigmoid(layer, setting):
            continue
        if kind in blocks:
            weights = [_scaled(w, *blocks[kind]) for w in weights]
        elif setting == "recurrent_activation" or kind in _GATES:
            raise ModelError(
                f"Expected activations that Keras 3 has too. Received: {kind} {layer.name!r} with hard_sigmoid as its "
                f"{setting}, which is another function in Keras 3. Save the model as a SavedModel with "
                "model.export('folder'), and name that folder."
            )
    return weights


def _scaled(weight: np.ndarray, blocks: int, gates: tuple[int, ...]) -> np.ndarray:
    factors = np.where(np.isin(np.arange(blocks), gates), STEEPER, 1.0)
    return np.asarray(weight * np.repeat(factors, weight.shape[-1] // blocks), weight.dtype)


def _is_hard_sigmoid(layer: Any, setting: str) -> bool:
    return getattr(getattr(layer, setting, None), "__name__", "") == "hard_sigmoid"


def _normalization(layer: Any, name: str) -> Any:
    mean, variance = np.asarray(layer.mean), np.asarray(layer.variance)
    axis: Any = tuple(layer.axis) if layer.axis else None
    if axis in ((3,), (-1,)):
        axis, mean, variance = -1, mean.reshape(-1), variance.reshape(-1)
    elif axis is None:
        mean, variance = mean.reshape(()), variance.reshape(())
    return keras.layers.Normalization(axis, mean, variance, invert=getattr(layer, "invert", False), name=name)


def _thresholded_relu(layer: Any, name: str) -> Any:
    return keras.layers.ReLU(threshold=float(layer.theta), name=name)  # both: x where x > threshold, else 0


def _crop_at_inference(layer: Any, name: str) -> Callable[..., Any]:
    """Resize the largest centred crop: RandomCrop at inference, which Keras 3 leaves out."""
    resizing = keras.layers.Resizing(layer.height, layer.width, crop_to_aspect_ratio=True, name=name)
    return lambda x, **named: resizing(x)


def _custom_scale(layer: Any, name: str) -> Callable[..., Any]:
    """Add a scaled second input to the first, as in InceptionResNetV2."""

    def call(inputs: Any, **named: Any) -> Any:
        scaled = keras.layers.Rescaling(float(layer.scale), name=f"{name}_scaled")(inputs[1])
        return keras.layers.Add(name=name)([inputs[0], scaled])

    return call


def _layer_scale(layer: Any, name: str) -> Callable[..., Any]:
    """Multiply each channel by a factor, as in ConvNeXt."""
    gamma = np.asarray(layer.get_weights()[0])
    return lambda x, **named: ops.multiply(x, gamma)


def _locally_connected(layer: Any, name: str) -> Callable[..., Any]:
    """Build a convolution with weights of its own at each position: a grouped one, with the windows as channels."""
    if layer.implementation != 1 or layer.data_format != "channels_last":
        raise ModelError(
            f"Expected layers that Keras 3 has too. Received: LocallyConnected2D {layer.name!r} of implementation "
            f"{layer.implementation}, {layer.data_format}. Build it with implementation=1 and channels last in Keras "
            "2, give it the weights, and save the model again."
        )
    kernel = np.asarray(layer.kernel)  # (positions, values of a window, filters)
    positions, window, filters = kernel.shape
    weights: list[Any] = [kernel.transpose(1, 0, 2).reshape(1, 1, window, positions * filters)]
    if layer.use_bias:
        weights.append(np.asarray(layer.bias).reshape(-1))
    flatten = keras.layers.Reshape((1, 1, positions * window), name=f"{name}_windows")
    grouped = keras.layers.Conv2D(
        positions * filters, 1, groups=positions, use_bias=layer.use_bias, name=f"{name}_convolution"
    )
    follows = _is_hard_sigmoid(layer, "activation")
    activation = None if follows else keras.layers.Activation(layer.get_config()["activation"], name=name)

    def call(x: Any, **named: Any) -> Any:
        windows = ops.image.extract_patches(x, tuple(layer.kernel_size), tuple(layer.strides), padding="valid")
        y = grouped(flatten(windows))
        grouped.set_weights(weights)
        y = keras.layers.Reshape((layer.output_row, layer.output_col, filters), name=f"{name}_places")(y)
        return hard_sigmoid(y, name) if activation is None else activation(y)

    return call


def _parameters(target: type) -> set[str]:
    """List the arguments of a Keras 3 layer that a Keras 2 configuration may set."""
    names = {"name"}
    for base in target.__mro__:
        parameters = inspect.signature(vars(base).get("__init__", base)).parameters
        names |= parameters.keys()
        if not any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
            break
    # No dtype: all layers compute in float32, as the reference of a conversion must. Nothing for training alone either.
    names -= {"self", "dtype", "args", "kwargs", "batch_input_shape", "input_shape"}
    return {name for name in names if not name.endswith(("_constraint", "_regularizer", "_initializer"))}
