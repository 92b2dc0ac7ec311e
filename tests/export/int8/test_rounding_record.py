"""The record of how weights were rounded: one for each weight that is in INT8."""

import hashlib

import numpy as np
import pytest

from export.int8.rounding_record import record_rounding
from export.int8.weights import round_to_nearest
from tests.export.tiny_graphs import floats, pixel_graph

WEIGHT, OTHER = floats(4, 4, 1, 1, seed=1), floats(4, 4, 1, 1, seed=2)
MODEL = pixel_graph(
    [
        ("Conv", ["f", "shared"], "s", {}),
        ("Conv", ["s", "other"], "t", {}),
        ("Conv", ["t", "shared"], "y", {}),
    ],
    {"shared": WEIGHT, "other": OTHER},
)
FIRST, SECOND, THIRD = (node.name for node in MODEL.graph.node if node.op_type == "Conv")
WEIGHTS = {"other": round_to_nearest(OTHER), "shared": round_to_nearest(WEIGHT)}


@pytest.mark.parametrize(
    ("kept", "nodes"),
    [((), [FIRST, SECOND]), ((FIRST,), [SECOND, THIRD]), ((FIRST, THIRD), [SECOND]), ((SECOND,), [FIRST])],
)
def test_a_weight_is_recorded_once_by_its_first_conv_in_int8(kept: tuple[str, ...], nodes: list[str]) -> None:
    assert [record.node for record in record_rounding(MODEL, WEIGHTS, kept).weights] == nodes


def test_a_record_says_how_the_weight_was_rounded() -> None:
    shared, other = record_rounding(MODEL, WEIGHTS, gains_db={"other": None}).weights
    assert (shared.method, shared.gain_db, other.method, other.gain_db) == ("nearest", None, "second_order", None)
    assert shared.codes_sha256 == hashlib.sha256(np.ascontiguousarray(WEIGHTS["shared"].codes)).hexdigest()
    assert shared.codes_sha256 != other.codes_sha256
    assert 0.4 < shared.most_steps <= 0.5 + 1e-6
    assert shared.most_steps == WEIGHTS["shared"].most_steps(WEIGHT)
