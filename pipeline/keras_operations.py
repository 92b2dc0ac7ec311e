"""TensorFlow functions in the graph of a Keras 2 model (TFOpLambda layers), as operations of Keras 3.

They come from ``preprocess_input`` called on a layer's output, from ``x / 255`` and ``x[..., ::-1]``, and from
``tf.nn`` functions in hand-written blocks.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from pipeline.errors import ModelError


def convert_operation(layer: Any) -> Callable[..., Any]:
    """The Keras 3 operation of a TFOpLambda layer; it takes the same arguments.

    Raises:
        ModelError: none is known.
    """
    name = str(layer.get_config()["function"])
    short = name.removeprefix("compat.v1.").removeprefix("__operators__.").removeprefix("math.").removeprefix("nn.")
    table = _operations()
    if short not in table:
        raise ModelError(
            f"Expected an operation that Keras 3 has too. Received: tf.{name} in layer {layer.name!r}. Save the model "
            "as a SavedModel with Keras 2 and name that folder."
        )
    return table[short]


def _operations() -> dict[str, Callable[..., Any]]:
    from keras import ops

    def constant(value: Any) -> Any:
        """TensorFlow constants as numpy, which a saved Keras 3 model can hold."""
        return value.numpy() if hasattr(value, "numpy") else value

    def binary(operation: Callable[..., Any]) -> Callable[..., Any]:
        def call(x: Any, y: Any, name: str | None = None) -> Any:
            return operation(constant(x), constant(y))

        return call

    def unary(operation: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, name: str | None = None, **named: Any) -> Any:
            (x,) = (*args, *named.values())  # the one argument is x, features, tensor ... by the function
            return operation(x)

        return call

    def reduction(operation: Callable[..., Any]) -> Callable[..., Any]:
        def call(input_tensor: Any, axis: Any = None, keepdims: bool = False, name: str | None = None) -> Any:
            return operation(input_tensor, axis=tuple(axis) if isinstance(axis, list) else axis, keepdims=keepdims)

        return call

    def bias_add(value: Any, bias: Any, data_format: str | None = None, name: str | None = None) -> Any:
        if data_format not in (None, "NHWC", "channels_last"):
            raise ModelError(f"Expected channels last. Received: bias_add with {data_format}.")
        return ops.add(value, np.asarray(constant(bias)))

    def getitem(tensor: Any, slice_spec: Any, var: Any = None) -> Any:
        key = tuple(slice_spec) if isinstance(slice_spec, (list, tuple)) else (slice_spec,)
        parts = [slice(k["start"], k["stop"], k["step"]) if isinstance(k, dict) else k for k in key]
        rank = len(tensor.shape)
        if parts[-1] == slice(None, None, -1) and parts[:-1] in ([Ellipsis], [slice(None)] * (rank - 1)):
            return ops.take(tensor, np.arange(tensor.shape[-1])[::-1].copy(), axis=-1)  # RGB to BGR: one Gather
        return tensor[tuple(parts)]

    def cast(x: Any, dtype: Any, name: str | None = None) -> Any:
        return ops.cast(x, getattr(dtype, "name", dtype))

    def softmax(logits: Any, axis: int | None = None, name: str | None = None) -> Any:
        return ops.softmax(logits, axis=-1 if axis is None else axis)

    def clip(t: Any, clip_value_min: Any, clip_value_max: Any, name: str | None = None) -> Any:
        return ops.clip(t, clip_value_min, clip_value_max)

    def concat(values: Any, axis: int, name: str | None = None) -> Any:
        return ops.concatenate(values, axis=axis)

    def stack(values: Any, axis: int = 0, name: str | None = None) -> Any:
        return ops.stack(values, axis=axis)

    def expand_dims(input: Any, axis: int, name: str | None = None) -> Any:
        return ops.expand_dims(input, axis=axis)

    def reshape(tensor: Any, shape: Any, name: str | None = None) -> Any:
        return ops.reshape(tensor, tuple(int(n) for n in shape))

    def resize(images: Any, size: Any, method: str = "bilinear", name: str | None = None, **options: Any) -> Any:
        if any(options.values()):
            raise ModelError(f"Expected a plain resize. Received: tf.image.resize with {options}.")
        return ops.image.resize(images, tuple(size), interpolation=str(method))

    def leaky_relu(features: Any, alpha: float = 0.2, name: str | None = None) -> Any:
        return ops.leaky_relu(features, alpha)

    table: dict[str, Callable[..., Any]] = {
        "getitem": getitem,
        "cast": cast,
        "bias_add": bias_add,
        "softmax": softmax,
        "clip_by_value": clip,
        "concat": concat,
        "stack": stack,
        "expand_dims": expand_dims,
        "reshape": reshape,
        "image.resize": resize,
        "leaky_relu": leaky_relu,
        "convert_to_tensor": cast_or_same,
        "identity": unary(lambda x: x),
    }
    for name in ("add", "subtract", "multiply", "divide", "truediv", "maximum", "minimum", "matmul"):
        operation = {"truediv": ops.true_divide, "divide": ops.divide}.get(name) or getattr(ops, name)
        table[name] = binary(operation)
    table |= {"sub": table["subtract"], "mul": table["multiply"], "div": table["divide"], "pow": binary(ops.power)}
    table |= {"radd": table["add"], "rmul": table["multiply"], "rsub": binary(lambda y, x: ops.subtract(x, y))}
    for name in (
        "relu",
        "relu6",
        "sigmoid",
        "tanh",
        "exp",
        "square",
        "sqrt",
        "rsqrt",
        "abs",
        "softplus",
        "elu",
        "gelu",
    ):
        table[name] = unary(getattr(ops, name))
    table |= {"silu": unary(ops.silu), "swish": unary(ops.silu), "negative": unary(ops.negative)}
    for name in ("mean", "max", "sum", "min"):
        table[f"reduce_{name}"] = reduction(getattr(ops, name))
    return table


def cast_or_same(value: Any, dtype: Any = None, name: str | None = None, **options: Any) -> Any:
    """``tf.convert_to_tensor`` on what is a tensor already."""
    from keras import ops

    return value if dtype is None else ops.cast(value, getattr(dtype, "name", dtype))
