"""What tf2onnx gets wrong, put right: operations that it does not know, and constants behind a convolution."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
from tf2onnx.optimizer.transpose_optimizer import TransposeOptimizer

from export.shape_folding import RESIZES


def _leave(context: Any, node: Any, name: str, _: Any) -> None:
    """Leaves an operation in the graph under its TensorFlow name."""


def _with_one(context: Any, node: Any, name: str, _: Any, steps: tuple[tuple[str, str], tuple[str, str]]) -> None:
    """Replaces a node by two operators, each with what it reads: ``x``, the value at hand, and ``1``."""
    (first, its_inputs), (second, inputs) = steps
    result = node.output[0]
    kind = {"shapes": [context.get_shape(result)], "dtypes": [context.get_dtype(result)]}
    context.remove_node(node.name)
    values = {"x": node.input[0], "1": context.make_const(f"{name}/one", np.ones((), np.float32)).output[0]}
    between = context.make_node(first, [values[v] for v in its_inputs], name=f"{name}/{first}", **kind)
    values["x"] = between.output[0]
    context.make_node(second, [values[v] for v in inputs], outputs=[result], name=name, **kind)


# operation -> its handler and that handler's further arguments, as tf2onnx.convert takes them
HANDLERS: dict[str, tuple[Any, list[Any]]] = {
    # TensorFlow's GELU is built of Erfc: tf2onnx knows only Erf.
    "Erfc": (partial(_with_one, steps=(("Erf", "x"), ("Sub", "1x"))), []),
    # CELU is built of Expm1. Near zero both of these are off by half an ulp of one.
    "Expm1": (partial(_with_one, steps=(("Exp", "x"), ("Sub", "x1"))), []),
    "Log1p": (partial(_with_one, steps=(("Add", "x1"), ("Log", "x"))), []),
    **{operation: (_leave, []) for operation in RESIZES},
}


class ExactTransposeOptimizer(TransposeOptimizer):  # type: ignore[misc]
    """Pushes the Transposes behind NHWC operations down until they cancel.

    tf2onnx 1.17 makes a constant added behind a Conv its bias wherever one axis of the constant is as long as the
    Conv has filters: it fails for a scalar (onnx/tensorflow-onnx#1729), and a constant for each row of as many rows
    would become one for each channel. And a factor goes into the weight even where another Conv shares that weight.
    """

    def _add_handler(self, trans: Any, node: Any) -> bool:
        constant = node.inputs[1]
        if constant.is_const():
            shape = np.shape(constant.get_tensor_value(as_list=False))
            if not shape or any(d != 1 for d in shape[:-1]):
                return bool(self._handle_node_having_branches(trans, node))
            self._own(node, 1)
        return bool(super()._add_handler(trans, node))

    def _mul_handler(self, trans: Any, node: Any) -> bool:
        conv = trans.inputs[0]
        if conv is not None and conv.type == "Conv" and conv.inputs[1].is_const():
            self._own(conv, 1)
        return bool(super()._mul_handler(trans, node))

    def _own(self, node: Any, index: int) -> None:
        """Gives a node a copy of a constant that others read too, for it is about to be changed."""
        constant = node.inputs[index]
        if not self._nodes_has_single_consumer_node([constant]):
            self._g.replace_input(node, node.input[index], self._g.copy_const(constant).output[0], index)
