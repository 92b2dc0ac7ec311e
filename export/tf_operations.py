"""TensorFlow operations that tf2onnx does not know, or converts to something else."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

Handler = Callable[[Any, Any, str, Any], None]


def _erfc(context: Any, node: Any, name: str, _: Any) -> None:
    """Makes TensorFlow's Erfc, of which its GELU is built, 1 - Erf: tf2onnx knows only the latter."""
    source, result = node.input[0], node.output[0]
    shapes, types = [context.get_shape(result)], [context.get_dtype(result)]
    context.remove_node(node.name)
    erf = context.make_node("Erf", [source], name=f"{name}/Erf", shapes=shapes, dtypes=types)
    one = context.make_const(f"{name}/one", np.ones((), np.float32))
    context.make_node("Sub", [one.output[0], erf.output[0]], outputs=[result], name=name, shapes=shapes, dtypes=types)


def _expm1(context: Any, node: Any, name: str, _: Any) -> None:
    """Makes Expm1, of which CELU is built, Exp - 1: it loses half an ulp of one near zero."""
    source, result = node.input[0], node.output[0]
    shapes, types = [context.get_shape(result)], [context.get_dtype(result)]
    context.remove_node(node.name)
    exp = context.make_node("Exp", [source], name=f"{name}/Exp", shapes=shapes, dtypes=types)
    one = context.make_const(f"{name}/one", np.ones((), np.float32))
    context.make_node("Sub", [exp.output[0], one.output[0]], outputs=[result], name=name, shapes=shapes, dtypes=types)


# operation -> its handler and that handler's further arguments, as tf2onnx.convert takes them
HANDLERS: dict[str, tuple[Handler, list[Any]]] = {
    "Erfc": (_erfc, []),
    "Expm1": (_expm1, []),
}
