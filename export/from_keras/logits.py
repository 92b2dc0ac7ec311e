"""Finds the logits of a Keras classifier: the value before its final softmax or sigmoid.

That activation need not be the last layer: a Reshape, a Flatten, a Dropout may follow, as MobileNet v1 of Keras 2
ends. What is taken off is a call, never a layer: one Activation object may be a gate elsewhere in the network.
"""

from dataclasses import dataclass
from typing import Any

import keras
import numpy as np

from export.errors import ProjectError
from export.words import count

# Layers and operations that are an activation and nothing else, by class name.
_ACTIVATIONS = {
    "Softmax": "softmax", "Sigmoid": "sigmoid", "LogSoftmax": "log_softmax", "HardSigmoid": "hard_sigmoid",
    "ReLU": "relu", "Relu": "relu", "Tanh": "tanh", "Sparsemax": "sparsemax",
}  # fmt: skip
# Layers whose activation is the last thing that they do.
_ACTIVATED = (
    "Dense", "EinsumDense", "Conv1D", "Conv2D", "Conv3D", "Conv1DTranspose", "Conv2DTranspose", "Conv3DTranspose",
    "DepthwiseConv1D", "DepthwiseConv2D", "SeparableConv1D", "SeparableConv2D",
)  # fmt: skip
# What hands on each value at inference, perhaps in another shape.
_HANDING_ON = (
    "ActivityRegularization", "AlphaDropout", "Copy", "Dropout", "ExpandDims", "Flatten", "GaussianDropout",
    "GaussianNoise", "Identity", "Ravel", "Reshape", "SpatialDropout1D", "SpatialDropout2D", "SpatialDropout3D",
    "Squeeze",
)  # fmt: skip
_LINEAR_LAYERS = (
    "Dense", "EinsumDense", "Conv1D", "Conv2D", "Conv3D", "Add", "BatchNormalization", "GlobalAveragePooling1D",
    "GlobalAveragePooling2D", "GlobalMaxPooling2D", "AveragePooling2D",
)  # fmt: skip
BOUNDED = ("softmax", "sigmoid", "hard_sigmoid", "sparsemax")  # their values lie in 0..1


@dataclass(frozen=True)
class End:
    """What a classifier ends with, reshaping and dropout behind it aside.

    Attributes:
        operation: the layer or operation.
        activation: its activation, ``"softmax"`` for each of its spellings; ``"linear"`` for a layer that has none
            and whose values may be logits; None where that cannot be told.
        removable: whether it is a softmax or sigmoid whose input can be had.
    """

    operation: Any
    activation: str | None
    removable: bool

    def __str__(self) -> str:
        """Return it for a message: class, name and activation."""
        kind = type(self.operation).__name__
        shown = f" with activation {self.activation!r}" if self.activation and self.activation != kind.lower() else ""
        return f"{kind} {self.operation.name!r}{shown}"


def logits_model(model: keras.Model, output: str = "auto") -> keras.Model:
    """Return a model whose single output is the logits; it shares its layers with the model passed in.

    A final softmax is left out, whether it is a layer's activation, an Activation or Softmax layer or
    ``keras.ops.softmax``, also at the end of a nested model and before a Reshape. A layer that is left without its
    activation is a copy. The model passed in is not changed.

    Args:
        model: Functional or Sequential (built), one input, one output of shape (batch, classes).
        output: What the model returns: ``"logits"`` (nothing is left out), ``"softmax"`` (its end must be found) or
            ``"auto"``. Defaults to ``"auto"``.

    Raises:
        ProjectError: If the end of the model is something else, or cannot be told.
    """
    if output not in ("auto", "logits", "softmax"):
        raise ProjectError(f"Expected output auto, logits or softmax. Received: {output!r} (name one of these).")
    _check_form(model)
    if output != "logits":
        end = end_of(model)
        if end.activation == "softmax" and end.removable:
            return before_activation(model)
        _check_linear(model, end, output)
    if isinstance(model, keras.Sequential):  # the exporter takes no Sequential
        return keras.Model(model.inputs[0], model.outputs[0], name=model.name)
    return model


def end_of(model: keras.Model) -> End:
    """Return what a model ends with, that of a nested model included.

    Args:
        model: Functional or Sequential (built), one output of shape (batch, classes).
    """
    tensor, said_linear = _behind(model.outputs[0])
    operation, inputs = _source(tensor)
    kind, name = type(operation).__name__, _activation_of(operation)
    if name == "linear" or (name is None and (said_linear or kind in _LINEAR_LAYERS)):
        return End(operation, "linear", False)
    removable = name in ("softmax", "sigmoid") and len(inputs) == 1
    if name == "softmax":
        axis = getattr(operation, "axis", -1)
        # One softmax over all classes: not one for each place of a map, flattened afterwards.
        whole = all(size == 1 for size in tensor.shape[1:-1]) and tensor.shape[-1] == model.outputs[0].shape[-1]
        removable = removable and axis in (-1, len(tensor.shape) - 1) and whole
    return End(operation, name, removable)


def before_activation(model: keras.Model) -> keras.Model:
    """Return a model that ends without its activation, which `end_of` says is removable.

    What follows the activation (Reshape, Flatten ...) is done to the values before it.
    """
    return keras.Model(model.inputs[0], _cut(model.outputs[0]), name=model.name)


def activations_at_the_end(model: keras.Model) -> set[str]:
    """Return the activations between the output and the last layers with weights, those layers' own included.

    Where one of `BOUNDED` is among them, the output may be made of probabilities without ending in them: a mean of
    several softmaxes, ``1 - sigmoid``.
    """
    found: set[str] = set()
    pending, seen = [model.outputs[0]], set()
    while pending:
        tensor = _inner(pending.pop())
        if id(tensor) in seen:
            continue
        seen.add(id(tensor))
        operation, inputs = _source(tensor)
        name = _activation_of(operation)
        if name is not None:
            found.add(name)
        if not getattr(operation, "weights", ()):
            pending += inputs
    return found


def _check_form(model: keras.Model) -> None:
    inputs, outputs = getattr(model, "inputs", None), getattr(model, "outputs", None)
    if not inputs or not outputs:
        raise ProjectError(
            f"Expected a built Functional or Sequential model. Received: {type(model).__name__} {model.name!r} "
            "without inputs and outputs (call it once, or wrap it: keras.Model(inputs, outputs))."
        )
    if len(inputs) != 1 or len(outputs) != 1 or len(outputs[0].shape) != 2:
        raise ProjectError(
            "Expected one input and one output of shape (batch, classes). Received: "
            f"{count(len(inputs), 'input')}, outputs {[tuple(tensor.shape) for tensor in outputs]} "
            "(wrap the model in one that has these alone)."
        )


def _check_linear(model: keras.Model, end: End, output: str) -> None:
    """Refuse an end whose values are no logits, or may not be."""
    if end.activation == "softmax":
        raise ProjectError(
            f"Expected a softmax over the classes. Received: {end} with axis {getattr(end.operation, 'axis', -1)} of "
            f"{tuple(end.operation.output.shape)} (let one softmax over all classes be the last layer, with axis -1)."
        )
    if output == "softmax":
        raise ProjectError(
            f"Expected a final softmax that can be taken off. Received: {end} "
            "(rebuild the head as Dense + Activation('softmax'), or set output to logits)."
        )
    bounded = sorted(activations_at_the_end(model) & set(BOUNDED))
    if bounded and end.activation in ("linear", None):
        raise ProjectError(
            f"Expected a classifier that ends in logits or softmax. Received: {end} on the values of "
            f"{', '.join(bounded)}, which are probabilities (end the model with that layer; if these values are "
            "logits all the same, set output to logits)."
        )
    if end.activation in ("sigmoid", "hard_sigmoid", "tanh", "relu", "sparsemax"):
        scores = "; if these values are the scores to rank classes by, set output to logits"
        raise ProjectError(
            f"Expected a classifier that ends in logits or softmax. Received: {end} "
            f"(train it with a linear or softmax head{'' if end.activation in BOUNDED else scores})."
        )
    if end.activation not in ("linear", "log_softmax"):  # the logarithms of probabilities are logits
        raise ProjectError(
            f"Expected an end that is clearly logits or softmax. Received: {end} "
            "(say which: set output to logits or to softmax)."
        )


def _source(tensor: Any) -> tuple[Any, list[Any]]:
    """Return the operation that makes a Keras tensor, and its inputs."""
    operation, index, _ = tensor._keras_history  # Keras has no public way to ask a tensor
    return operation, list(operation._inbound_nodes[index].input_tensors)


def _inner(tensor: Any) -> Any:
    """Return the tensor inside nested models that a tensor is."""
    while True:
        operation, _, position = tensor._keras_history
        if not isinstance(operation, keras.Model):
            return tensor
        tensor = operation.outputs[position]


def _behind(tensor: Any) -> tuple[Any, bool]:
    """Return the tensor whose values reach the output as they are, and whether a linear activation says so."""
    said_linear = False
    while True:
        tensor = _inner(tensor)
        operation, inputs = _source(tensor)
        if not _hands_on(operation) or len(inputs) != 1:
            return tensor, said_linear
        said_linear = said_linear or type(operation).__name__ == "Activation"
        tensor = inputs[0]


def _hands_on(operation: Any) -> bool:
    kind = type(operation).__name__
    return kind in _HANDING_ON or (kind == "Activation" and _activation_name(operation.activation) == "linear")


def _cut(tensor: Any) -> Any:
    """Return the Keras tensor that `tensor` would be without the activation that its values come from."""
    operation, inputs = _source(tensor)
    if isinstance(operation, keras.Model):
        inner = keras.Model(operation.inputs, _cut(operation.outputs[0]), name=operation.name)
        # Called at inference: a backbone that is called in training mode must not become part of the logits.
        return inner(inputs[0] if len(inputs) == 1 else inputs, training=False)
    if _hands_on(operation):
        return operation(_cut(inputs[0]))
    if type(operation).__name__ in _ACTIVATED:
        return remade(operation, {"activation": "linear", "dtype": "float32"})(inputs[0])
    return inputs[0]


def remade(layer: Any, changes: dict[str, Any]) -> Any:
    """Return a layer of the same class and weights with some settings changed."""
    config = layer.get_config() | changes
    new = type(layer).from_config(_with_dtype(config, changes["dtype"]) if "dtype" in changes else config)
    if layer.weights:
        new.build(*_build_shapes(layer))
        new.set_weights([np.asarray(w) for w in layer.get_weights()])
    return new


def _with_dtype(config: Any, dtype: str) -> Any:
    """Return a config whose layers inside, those of a Bidirectional or of an RNN of cells, compute in `dtype` too."""
    if isinstance(config, dict):
        return {k: dtype if k == "dtype" and v is not None else _with_dtype(v, dtype) for k, v in config.items()}
    return [_with_dtype(value, dtype) for value in config] if isinstance(config, (list, tuple)) else config


def _build_shapes(layer: Any) -> list[Any]:
    config = layer.get_build_config() or {}
    if "input_shape" in config:
        return [tuple(config["input_shape"])]
    if "shapes_dict" in config:
        return [tuple(shape) for shape in config["shapes_dict"].values()]
    return [tuple(layer.input.shape)]


def _activation_of(operation: Any) -> str | None:
    kind = type(operation).__name__
    if kind in _ACTIVATIONS:
        return _ACTIVATIONS[kind]
    # A recurrent layer has one too, but inside: it is not the last thing that it does.
    return _activation_name(operation.activation) if kind == "Activation" or kind in _ACTIVATED else None


def _activation_name(activation: Any) -> str | None:
    """Return the name of an activation, ``"softmax"`` for each of its spellings, None where there is none."""
    if activation is None:
        return None
    name = getattr(activation, "__name__", None) or type(activation).__name__.lower()
    return "softmax" if name == "softmax_v2" else str(name)  # as tf.nn.softmax calls itself
