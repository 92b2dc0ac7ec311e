"""tf2onnx's transpose pass, with what it gets wrong about constants behind a convolution put right."""

from __future__ import annotations

from typing import Any

import numpy as np
from tf2onnx.optimizer.transpose_optimizer import TransposeOptimizer


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
