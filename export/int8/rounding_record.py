"""The record of how the weights of an INT8 graph were rounded."""

import hashlib
from collections.abc import Collection, Mapping

import onnx
from onnx import numpy_helper

from export.int8.report import RoundingReport, WeightRecord
from export.int8.weights import RoundedWeight
from export.onnx_passes.graph import constants


def record_rounding(
    model: onnx.ModelProto,
    weights: Mapping[str, RoundedWeight],
    kept: Collection[str] = (),
    gains_db: Mapping[str, float | None] | None = None,
) -> RoundingReport:
    """Return how the weight of each convolution in INT8 was rounded.

    Args:
        model: The float model that was quantized.
        weights: Name of the weight of a quantized Conv -> what it is rounded to.
        kept: Names of the nodes that stay in float. Defaults to none.
        gains_db: Name of a weight that second-order rounding rounded -> what that gained, in dB. Defaults to none.
    """
    table = constants(model.graph)
    gains = gains_db or {}
    records: dict[str, WeightRecord] = {}
    for node in model.graph.node:
        name = node.input[1] if node.op_type == "Conv" and node.name not in kept else ""
        if name in weights and name not in records:
            weight = weights[name]
            records[name] = WeightRecord(
                node.name,
                "second_order" if name in gains else "nearest",
                hashlib.sha256(weight.codes.tobytes()).hexdigest(),
                weight.most_steps(numpy_helper.to_array(table[name])),
                gains.get(name),
            )
    return RoundingReport(tuple(records.values()))
