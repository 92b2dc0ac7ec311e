"""Conversion of TensorFlow functions in a Keras 2 model (TFOpLambda layers) to operations of Keras 3.

They come from ``preprocess_input`` called on a layer's output, from ``x / 255`` and ``x[..., ::-1]``, and from
``tf.nn`` functions in hand-written blocks.
"""

import math
from collections.abc import Callable
from itertools import accumulate
from typing import Any

import keras
import numpy as np
from keras import ops

from export.errors import ModelError
from pipeline.keras_files.keras2_layers import SLOPE

_PREFIXES = ("compat.v1.", "__operators__.", "math.", "nn.", "keras.activations.", "keras.backend.", "linalg.")


def convert_operation(layer: Any) -> Callable[..., Any]:
    """Return the Keras 3 operation of a TFOpLambda layer; it takes the same arguments.

    Raises:
        ModelError: no operation is known.
    """
    name = short = str(layer.get_config()["function"])
    for prefix in _PREFIXES:
        short = short.removeprefix(prefix)
    table = _operations()
    if short not in table:
        raise ModelError(
            f"Expected an operation that Keras 3 has too. Received: tf.{name} in layer {layer.name!r}. Save the model "
            "with model.export('folder') in Keras 2 (in old versions tf.saved_model.save), and name that folder."
        )
    return table[short]


def _operations() -> dict[str, Callable[..., Any]]:
    same_name = """
        add subtract multiply divide maximum minimum matmul greater greater_equal less less_equal equal not_equal
        logical_and logical_or
    """
    other_name = {
        "sub": "subtract",
        "mul": "multiply",
        "radd": "add",
        "rmul": "multiply",
        "truediv": "true_divide",
        "div": "true_divide",
        "floordiv": "floor_divide",
        "floormod": "mod",
    }
    unary = """
        relu6 sigmoid tanh exp square sqrt rsqrt abs softplus softsign selu negative log log1p expm1 floor ceil round
        sign sin cos erf reciprocal zeros_like ones_like logical_not
    """
    reductions = {name: _reduction(getattr(ops, name)) for name in ("mean", "max", "sum", "min", "prod")}
    return {
        **{name: _binary(getattr(ops, name)) for name in same_name.split()},
        **{name: _binary(getattr(ops, target)) for name, target in other_name.items()},
        **{name: _unary(getattr(ops, name)) for name in unary.split()},
        **reductions,
        **{f"reduce_{name}": reduction for name, reduction in reductions.items()},
        "reduce_std": _reduction(ops.std),
        "reduce_variance": _reduction(ops.var),
        "getitem": _getitem,
        "cast": _cast,
        "bias_add": _bias_add,
        "softmax": lambda logits, axis=None, name=None: ops.softmax(logits, axis=-1 if axis is None else axis),
        "log_softmax": lambda logits, axis=None, name=None: ops.log_softmax(logits, axis=-1 if axis is None else axis),
        "clip_by_value": lambda t, clip_value_min, clip_value_max, name=None: ops.clip(
            t, _constant(clip_value_min), _constant(clip_value_max)
        ),
        "clip": lambda x, min_value, max_value: ops.clip(x, min_value, max_value),
        "concat": lambda values, axis, name=None: ops.concatenate(values, axis=axis),
        "concatenate": lambda tensors, axis=-1: ops.concatenate(tensors, axis=axis),
        "stack": lambda values, axis=0, name=None: ops.stack(values, axis=axis),
        "expand_dims": lambda input, axis, name=None: ops.expand_dims(input, axis=axis),
        "squeeze": lambda input, axis=None, name=None: ops.squeeze(input, axis=_axes(axis)),
        "transpose": lambda a, perm=None, conjugate=False, name=None: ops.transpose(a, _axes(perm)),
        "reverse": lambda tensor, axis, name=None: ops.flip(tensor, axis=_axes(axis)),
        "roll": lambda input, shift, axis, name=None: ops.roll(input, _axes(shift), axis=_axes(axis)),
        "pad": _pad,
        "reshape": _reshape,
        "image.resize": _resize,
        "leaky_relu": lambda features, alpha=0.2, name=None: ops.leaky_relu(features, alpha),
        "gelu": lambda features, approximate=False, name=None: ops.gelu(features, approximate=bool(approximate)),
        "elu": lambda features, alpha=1.0, name=None: ops.elu(features, float(alpha)),
        "relu": _relu,
        "hard_sigmoid": lambda x: ops.clip(ops.add(ops.multiply(x, SLOPE), 0.5), 0.0, 1.0),
        "l2_normalize": lambda x, axis=None, epsilon=1e-12, name=None: _l2_normalize(x, axis, epsilon),
        "pow": _binary(ops.power),
        "squared_difference": _binary(lambda x, y: ops.square(ops.subtract(x, y))),
        "rsub": _binary(lambda y, x: ops.subtract(x, y)),
        "convert_to_tensor": lambda value, dtype=None, name=None, **options: (
            value if dtype is None else _cast(value, dtype)
        ),
        "identity": _unary(lambda x: x),
        "stop_gradient": _unary(lambda x: x),
        "mish": _unary(keras.activations.mish),
        "add_n": lambda inputs, name=None: sum(inputs[1:], start=inputs[0]),
        "flatten": lambda x: ops.reshape(x, (-1,)),
        "batch_flatten": lambda x: ops.reshape(x, (-1, math.prod(x.shape[1:]))),
        "image.flip_left_right": lambda image: ops.flip(image, axis=-2),
        "split": _split,
        "tile": lambda input, multiples, name=None: ops.tile(input, _axes(multiples)),
        "unstack": lambda value, num=None, axis=0, name="": ops.unstack(value, num, axis=axis),
        "where": lambda condition, x=None, y=None, name=None: ops.where(condition, _beside(x, y), _beside(y, x)),
        "swish": _swish,
        "silu": _swish,
    }


def _constant(value: Any) -> Any:
    """Convert a TensorFlow constant to NumPy, which a saved Keras 3 model can hold."""
    return value.numpy() if hasattr(value, "numpy") else value


def _axes(value: Any) -> Any:
    value = _constant(value)
    if isinstance(value, np.ndarray):
        value = value.tolist()
    return tuple(value) if isinstance(value, list) else value


def _beside(value: Any, other: Any) -> Any:
    """Convert the other operand of a tensor: a list, such as a mean for each channel, becomes an array of its dtype."""
    value = _constant(value)
    if isinstance(value, (list, tuple)):
        return np.asarray(value, dtype=getattr(other, "dtype", "float32"))
    return value


def _binary(operation: Callable[..., Any]) -> Callable[..., Any]:
    def call(*args: Any, name: str | None = None, **named: Any) -> Any:
        # The arguments are called x and y, or a and b, depending on the function; options of matmul are refused.
        operands = [*args, *(v for v in named.values() if v is not None and v is not False)]
        if len(operands) != 2:
            raise ModelError(
                f"Expected an operation on two tensors. Received: {operation.__name__} with {', '.join(named)}. Save "
                "the model as a SavedModel with Keras 2 and name that folder."
            )
        x, y = operands
        return operation(_beside(x, y), _beside(y, x))

    return call


def _unary(operation: Callable[..., Any]) -> Callable[..., Any]:
    def call(*args: Any, name: str | None = None, **named: Any) -> Any:
        (x,) = (*args, *named.values())  # called x, features, tensor ..., depending on the function
        return operation(x)

    return call


def _reduction(operation: Callable[..., Any]) -> Callable[..., Any]:
    def call(x: Any = None, axis: Any = None, keepdims: bool = False, name: str | None = None, **named: Any) -> Any:
        return operation(named.get("input_tensor", x), axis=_axes(axis), keepdims=keepdims)

    return call


def _relu(
    features: Any = None,
    negative_slope: float = 0.0,
    max_value: float | None = None,
    threshold: float = 0.0,
    name: str | None = None,
    **named: Any,
) -> Any:
    """Apply ``tf.nn.relu`` or Keras' own, whose slope was once called alpha."""
    slope = named.get("alpha", negative_slope)
    return keras.activations.relu(named.get("x", features), slope, max_value, threshold)


def _bias_add(value: Any, bias: Any, data_format: str | None = None, name: str | None = None) -> Any:
    if data_format not in (None, "NHWC", "channels_last"):
        raise ModelError(f"Expected channels last. Received: bias_add with {data_format}.")
    return ops.add(value, np.asarray(_constant(bias)))


def _getitem(tensor: Any, slice_spec: Any, var: Any = None) -> Any:
    key = tuple(slice_spec) if isinstance(slice_spec, (list, tuple)) else (slice_spec,)
    parts = [slice(k["start"], k["stop"], k["step"]) if isinstance(k, dict) else k for k in key]
    rank = len(tensor.shape)
    if parts[-1] == slice(None, None, -1) and parts[:-1] in ([Ellipsis], [slice(None)] * (rank - 1)):
        return ops.take(tensor, np.arange(tensor.shape[-1])[::-1].copy(), axis=-1)  # RGB to BGR: one Gather
    return tensor[tuple(parts)]


def _cast(x: Any, dtype: Any, name: str | None = None) -> Any:
    return ops.cast(x, getattr(dtype, "name", dtype))


def _swish(features: Any, beta: float = 1.0, name: str | None = None) -> Any:
    return ops.silu(features) if beta == 1.0 else ops.multiply(features, ops.sigmoid(ops.multiply(features, beta)))


def _reshape(tensor: Any = None, shape: Any = (), name: str | None = None, x: Any = None) -> Any:
    before, sizes = tensor if x is None else x, [int(n) for n in _constant(shape)]
    if before.shape[0] is not None and sizes[0] == before.shape[0]:  # a fixed batch becomes free
        sizes = [-1, *(math.prod(before.shape[1:]) // -math.prod(sizes[1:]) if n == -1 else n for n in sizes[1:])]
    return ops.reshape(before, tuple(sizes))


def _resize(images: Any, size: Any, method: str = "bilinear", name: str | None = None, **options: Any) -> Any:
    if any(options.values()):
        raise ModelError(f"Expected a plain resize. Received: tf.image.resize with {options}.")
    return ops.image.resize(images, _axes(size), interpolation=str(method))


def _pad(tensor: Any, paddings: Any, mode: str = "CONSTANT", constant_values: Any = 0, name: str | None = None) -> Any:
    widths = tuple((int(before), int(after)) for before, after in _constant(paddings))
    return ops.pad(tensor, widths, mode.lower(), constant_values if mode.lower() == "constant" else None)


def _split(value: Any, num_or_size_splits: Any, axis: int = 0, num: int | None = None, name: str = "split") -> Any:
    sizes = _axes(num_or_size_splits)
    return ops.split(value, sizes if isinstance(sizes, int) else list(accumulate(sizes))[:-1], axis=axis)


def _l2_normalize(x: Any, axis: Any, epsilon: float) -> Any:
    squares = ops.sum(ops.square(x), axis=_axes(axis), keepdims=True)
    return ops.multiply(x, ops.rsqrt(ops.maximum(squares, epsilon)))
