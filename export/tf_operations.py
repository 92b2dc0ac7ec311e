"""TensorFlow operations that tf2onnx does not know, or converts to something else."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

Handler = Callable[[Any, Any, str, Any], None]


# What tf2onnx converts to another kernel (area to nearest, bicubic with other coefficients, nearest with an attribute
# that ONNX has given up), or not at all: `export.resizing` does it once all sizes are known.
RESIZES = ("ResizeArea", "ResizeBicubic", "ResizeNearestNeighbor", "ScaleAndTranslate")


def _leave(context: Any, node: Any, name: str, _: Any) -> None:
    """Leaves an operation in the graph under its TensorFlow name."""


def _erfc(context: Any, node: Any, name: str, _: Any) -> None:
    """Makes TensorFlow's Erfc, of which its GELU is built, 1 - Erf: tf2onnx knows only the latter."""
    _function_and_one(context, node, name, "Erf", one_first=True)


def _expm1(context: Any, node: Any, name: str, _: Any) -> None:
    """Makes Expm1, of which CELU is built, Exp - 1: near zero it is off by half an ulp of one."""
    _function_and_one(context, node, name, "Exp", one_first=False)


def _function_and_one(context: Any, node: Any, name: str, function: str, one_first: bool) -> None:
    """Replaces a node by the difference of a function and one."""
    source, result = node.input[0], node.output[0]
    shapes, types = [context.get_shape(result)], [context.get_dtype(result)]
    context.remove_node(node.name)
    value = context.make_node(function, [source], name=f"{name}/{function}", shapes=shapes, dtypes=types)
    one = context.make_const(f"{name}/one", np.ones((), np.float32))
    terms = [value.output[0], one.output[0]]
    terms = terms[::-1] if one_first else terms
    context.make_node("Sub", terms, outputs=[result], name=name, shapes=shapes, dtypes=types)


# operation -> its handler and that handler's further arguments, as tf2onnx.convert takes them
HANDLERS: dict[str, tuple[Handler, list[Any]]] = {
    "Erfc": (_erfc, []),
    "Expm1": (_expm1, []),
    **{operation: (_leave, []) for operation in RESIZES},
}
