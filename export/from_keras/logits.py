"""Finds the logits of a Keras classifier: the values before its final softmax or sigmoid.

The activation need not be the last layer: a Reshape, a Flatten or a Dropout may follow, as in MobileNet v1 of Keras 2.
The call of the activation is removed, not the layer, which may be called elsewhere in the network, for example as a
gate.
"""

from dataclasses import dataclass
from typing import Any

import keras
import numpy as np

from export.errors import ProjectError
from export.words import count

# Layers and operations that only apply an activation, by class name.
_ACTIVATIONS = {
    "Softmax": "softmax", "Sigmoid": "sigmoid", "LogSoftmax": "log_softmax", "HardSigmoid": "hard_sigmoid",
    "ReLU": "relu", "Relu": "relu", "Tanh": "tanh", "Sparsemax": "sparsemax",
}  # fmt: skip
# Layers that apply their activation last.
_ACTIVATED = (
    "Dense", "EinsumDense", "Conv1D", "Conv2D", "Conv3D", "Conv1DTranspose", "Conv2DTranspose", "Conv3DTranspose",
    "DepthwiseConv1D", "DepthwiseConv2D", "SeparableConv1D", "SeparableConv2D",
)  # fmt: skip
# Layers and operations that keep each value at inference, perhaps in another shape.
_PASSING = (
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
    """The end of a classifier, before reshaping and dropout.

    Args:
        operation: The layer or operation.
        activation: Its activation, ``"softmax"`` for each of its spellings; ``"linear"`` for a layer that has none
            and whose values may be logits; None if it is unknown.
        removable: Whether it is a softmax or sigmoid that can be removed.
    """

    operation: Any
    activation: str | None
    removable: bool

    def __str__(self) -> str:
        """Return class, name and activation, for a message."""
        kind = type(self.operation).__name__
        shown = f" with activation {self.activation!r}" if self.activation and self.activation != kind.lower() else ""
        return f"{kind} {self.operation.name!r}{shown}"


def logits_model(model: keras.Model, output: str = "auto") -> keras.Model:
    """Return a model whose single output is the logits; it shares its layers with the model passed in.

    A final softmax is removed, whether it is a layer's activation, an Activation or Softmax layer or
    ``keras.ops.softmax``, also at the end of a nested model and before a Reshape. A layer whose activation is removed
    is copied. The model passed in is not changed.

    Args:
        model: Functional or Sequential (built), one input, one output of shape (batch, classes).
        output: What the model returns: ``"logits"`` (nothing is removed), ``"softmax"`` (which must be found) or
            ``"auto"``. Defaults to ``"auto"``.

    Raises:
        ProjectError: If the end of the model is something else, or is unknown.
    """
    if output not in ("auto", "logits", "softmax"):
        raise ProjectError(f"Expected output auto, logits or softmax. Received: {output!r} (name one of these).")
    _check_form(model)
    if output != "logits":
        end = end_of(model)
        if end.activation == "softmax" and end.removable:
            return before_activation(model)
        _check_linear(model, end, output)
    # tf2onnx takes no Sequential.
    sequential = isinstance(model, keras.Sequential)
    return keras.Model(model.inputs[0], model.outputs[0], name=model.name) if sequential else model


def end_of(model: keras.Model) -> End:
    """Return the end of a model, that of a nested model included.

    Args:
        model: Functional or Sequential (built), one output of shape (batch, classes).
    """
    tensor, marked_linear = _behind(model.outputs[0])
    operation, inputs = _source(tensor)
    kind, name = type(operation).__name__, _activation_of(operation)
    if name == "linear" or (name is None and (marked_linear or kind in _LINEAR_LAYERS)):
        return End(operation, "linear", False)
    removable = name in ("softmax", "sigmoid") and len(inputs) == 1
    if name == "softmax":
        # One softmax over all classes, not one per position of a map that is flattened afterwards.
        whole = all(size == 1 for size in tensor.shape[1:-1]) and tensor.shape[-1] == model.outputs[0].shape[-1]
        removable = removable and getattr(operation, "axis", -1) in (-1, len(tensor.shape) - 1) and whole
    return End(operation, name, removable)


def before_activation(model: keras.Model) -> keras.Model:
    """Return the model without its final activation, which must be removable, see `end_of`.

    Layers behind the activation (Reshape, Flatten ...) are applied to the values before it.
    """
    return keras.Model(model.inputs[0], _cut(model.outputs[0]), name=model.name)


def activations_at_the_end(model: keras.Model) -> set[str]:
    """Return the activations between the output and the last layers with weights, including those of these layers.

    If one of `BOUNDED` is among them, the output may be computed from probabilities, for example as a mean of several
    softmaxes or as ``1 - sigmoid``.
    """
    activations: set[str | None] = set()
    pending, seen = [model.outputs[0]], set()
    while pending:
        tensor = _inner(pending.pop())
        if id(tensor) not in seen:
            seen.add(id(tensor))
            operation, inputs = _source(tensor)
            activations.add(_activation_of(operation))
            if not getattr(operation, "weights", ()):
                pending += inputs
    return {name for name in activations if name is not None}


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
    bounded = sorted(activations_at_the_end(model) & set(BOUNDED))
    classifier = "a classifier that ends in logits or softmax"
    scores = "; if these values are the scores to rank classes by, set output to logits"
    # whether it is refused, what is expected, what follows the received end, what to do
    refusals = (
        (
            output == "softmax",
            "a final softmax that can be taken off",
            "",
            "rebuild the head as Dense + Activation('softmax'), or set output to logits",
        ),
        (
            bool(bounded) and end.activation in ("linear", None),
            classifier,
            f" on the values of {', '.join(bounded)}, which are probabilities",
            "end the model with that layer; if these values are logits all the same, set output to logits",
        ),
        (
            end.activation in ("sigmoid", "hard_sigmoid", "tanh", "relu", "sparsemax"),
            classifier,
            "",
            f"train it with a linear or softmax head{'' if end.activation in BOUNDED else scores}",
        ),
        (
            end.activation not in ("linear", "log_softmax"),  # the logarithms of probabilities are logits
            "an end that is clearly logits or softmax",
            "",
            "say which: set output to logits or to softmax",
        ),
    )
    for refused, expected, detail, remedy in refusals:
        if refused:
            raise ProjectError(f"Expected {expected}. Received: {end}{detail} ({remedy}).")


def _source(tensor: Any) -> tuple[Any, list[Any]]:
    """Return the operation that computes a Keras tensor, and its inputs."""
    operation, index, _ = tensor._keras_history  # Keras has no public attribute for it
    return operation, list(operation._inbound_nodes[index].input_tensors)


def _inner(tensor: Any) -> Any:
    """Return the tensor of the innermost nested model that a tensor is an output of."""
    while True:
        operation, _, position = tensor._keras_history
        if not isinstance(operation, keras.Model):
            return tensor
        tensor = operation.outputs[position]


def _behind(tensor: Any) -> tuple[Any, bool]:
    """Return the tensor whose values reach the output unchanged, and whether a linear activation is behind it."""
    marked_linear = False
    while True:
        tensor = _inner(tensor)
        operation, inputs = _source(tensor)
        if not _passes(operation) or len(inputs) != 1:
            return tensor, marked_linear
        marked_linear = marked_linear or type(operation).__name__ == "Activation"
        tensor = inputs[0]


def _passes(operation: Any) -> bool:
    kind = type(operation).__name__
    return kind in _PASSING or (kind == "Activation" and _activation_name(operation.activation) == "linear")


def _cut(tensor: Any) -> Any:
    """Return the Keras tensor that `tensor` would be without the activation before it."""
    operation, inputs = _source(tensor)
    if isinstance(operation, keras.Model):
        inner = keras.Model(operation.inputs, _cut(operation.outputs[0]), name=operation.name)
        # A backbone that is called in training mode must not become part of the logits.
        return inner(inputs[0] if len(inputs) == 1 else inputs, training=False)
    if _passes(operation):
        return operation(_cut(inputs[0]))
    if type(operation).__name__ in _ACTIVATED:
        return rebuild_layer(operation, {"activation": "linear", "dtype": "float32"})(inputs[0])
    return inputs[0]


def rebuild_layer(layer: Any, changes: dict[str, Any]) -> Any:
    """Return a layer of the same class and weights with some entries of its config changed."""
    config = layer.get_config() | changes
    new = type(layer).from_config(_with_dtype(config, changes["dtype"]) if "dtype" in changes else config)
    if layer.weights:
        new.build(*_build_shapes(layer))
        new.set_weights([np.asarray(w) for w in layer.get_weights()])
    return new


def _with_dtype(config: Any, dtype: str) -> Any:
    """Return a config with another dtype, also of inner layers, such as those of a Bidirectional or an RNN."""
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
    # A recurrent layer has an activation too, but does not apply it last.
    return _activation_name(operation.activation) if kind == "Activation" or kind in _ACTIVATED else None


def _activation_name(activation: Any) -> str | None:
    """Return the name of an activation, ``"softmax"`` for each of its spellings, None if there is none."""
    if activation is None:
        return None
    name = getattr(activation, "__name__", None) or type(activation).__name__.lower()
    return "softmax" if name == "softmax_v2" else str(name)  # the name of tf.nn.softmax
