"""Finds the logits of a Keras classifier: the value before a final softmax."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from export.errors import ExportError

if TYPE_CHECKING:
    import keras

_SOFTMAX = ("softmax", "softmax_v2")  # tf.nn.softmax calls itself softmax_v2
_LINEAR_LAYERS = (
    "Dense",
    "Conv2D",
    "Add",
    "BatchNormalization",
    "GlobalAveragePooling2D",
    "GlobalMaxPooling2D",
    "AveragePooling2D",
    "Flatten",
    "Reshape",
    "Dropout",
    "Identity",
)


def logits_model(model: keras.Model, output: str = "auto") -> keras.Model:
    """Returns a model whose single output is the logits; it shares its weights with the model passed in.

    A final softmax is left out, whether it is a Dense's activation, an Activation or Softmax layer or
    ``keras.ops.softmax``, also at the end of a nested model. The model passed in is not changed.

    Args:
        model: Functional or Sequential (built), one input, one output of shape (batch, classes).
        output: What the model returns: ``"logits"`` (nothing is left out), ``"softmax"`` (its end must be found) or
            ``"auto"``. Defaults to ``"auto"``.

    Raises:
        ExportError: If the end of the model is something else, or cannot be told.
    """
    import keras

    if output not in ("auto", "logits", "softmax"):
        raise ExportError(f"Expected output auto, logits or softmax. Received: {output!r} (name one of these).")
    inputs, outputs = getattr(model, "inputs", None), getattr(model, "outputs", None)
    if not inputs or not outputs:
        raise ExportError(
            f"Expected a built Functional or Sequential model. Received: {type(model).__name__} {model.name!r} "
            "without inputs and outputs (call it once, or wrap it: keras.Model(inputs, outputs))."
        )
    if len(inputs) != 1 or len(outputs) != 1 or len(outputs[0].shape) != 2:
        shapes = [tuple(t.shape) for t in outputs]
        raise ExportError(
            "Expected one input and one output of shape (batch, classes). "
            f"Received: {len(inputs)} inputs, outputs {shapes} (wrap the model in one that has these alone)."
        )
    logits = None if output == "logits" else _before_softmax(outputs[0], output)
    if logits is None:
        if not isinstance(model, keras.Sequential):
            return model
        logits = outputs[0]  # the exporter takes no Sequential
    return keras.Model(inputs[0], logits, name=model.name)


def _source(tensor: Any) -> tuple[Any, list[Any]]:
    """Returns the operation that makes a Keras tensor, and its inputs."""
    operation, index, _ = tensor._keras_history  # Keras has no public way to ask a tensor
    return operation, list(operation._inbound_nodes[index].input_tensors)


def final_activation(model: keras.Model) -> tuple[Any, str | None]:
    """Returns the last operation of a model, that of a nested model included, and the name of its activation.

    Args:
        model: Functional or Sequential (built), one output.
    """
    import keras

    operation, _ = _source(model.outputs[0])
    while isinstance(operation, keras.Model):
        operation, _ = _source(operation.outputs[0])
    kind = type(operation).__name__
    if kind in ("Softmax", "Sigmoid"):
        return operation, kind.lower()
    return operation, _activation_name(getattr(operation, "activation", None))


def _before_softmax(tensor: Any, output: str) -> Any | None:
    """Returns the Keras tensor of the logits, None where `tensor` is that already.

    Raises:
        ExportError: If it is neither logits nor softmax, or cannot be told.
    """
    import keras

    operation, inputs = _source(tensor)
    if isinstance(operation, keras.Model):
        inner = logits_model(operation, output)
        # Called at inference: a backbone that is called in training mode must not become part of the logits.
        return None if inner is operation else inner(inputs[0], training=False)
    kind = type(operation).__name__
    where = f"{kind} {operation.name!r}"
    activation = getattr(operation, "activation", None)
    if kind == "Softmax":
        axis = getattr(operation, "axis", -1)
        if axis not in (-1, len(tensor.shape) - 1):
            raise ExportError(f"Expected a softmax over the classes. Received: {where} with axis {axis} (use -1).")
        return inputs[0]
    name = _activation_name(activation)
    if name == "softmax" and kind == "Activation":
        return inputs[0]
    if name == "softmax" and kind == "Dense":
        return _linear_view(operation)(inputs[0])
    if name in ("sigmoid", "hard_sigmoid", "tanh", "relu") or kind in ("ReLU", "Sigmoid", "Tanh"):
        raise ExportError(
            f"Expected a classifier that ends in logits or softmax. Received: {where}"
            f"{f' with activation {name!r}' if name else ''} (train it with a linear or softmax head; "
            "if these values are the scores to rank classes by, set output to logits)."
        )
    linear = name == "linear" or (activation is None and kind in _LINEAR_LAYERS)
    if linear and output == "auto":
        return None
    if output == "softmax":
        raise ExportError(
            f"Expected a final softmax that can be taken off. Received: {where} "
            "(rebuild the head as Dense + Activation('softmax'), or set output to logits)."
        )
    raise ExportError(
        f"Expected an end that is clearly logits or softmax. Received: {where}"
        f"{f' with activation {name!r}' if name else ''} (say which: set output to logits or to softmax)."
    )


def _activation_name(activation: Any) -> str | None:
    """Returns the name of an activation, ``"softmax"`` for each of its spellings, None where there is none."""
    if activation is None:
        return None
    name = getattr(activation, "__name__", None) or type(activation).__name__.lower()
    return "softmax" if name in _SOFTMAX else str(name)


def _linear_view(dense: Any) -> Any:
    """Returns a layer that is `dense` without its activation, on the very same variables."""
    import keras

    class LinearView(keras.layers.Layer):
        """A Dense without its activation."""

        def __init__(self, source: Any) -> None:
            super().__init__(name=source.name, dtype=source.dtype_policy)
            self.source = source
            self.built = True

        def call(self, inputs: Any) -> Any:
            result = keras.ops.matmul(inputs, self.source.kernel)
            return result if self.source.bias is None else keras.ops.add(result, self.source.bias)

    return LinearView(dense)
