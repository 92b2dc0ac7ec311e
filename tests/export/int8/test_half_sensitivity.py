"""Which layers stay FP32 where FP16 misses what is asked of it."""

import numpy as np
import pytest

from export.fp16.convert import to_half
from export.int8.fp16_search import emulate_half, fp16_units, measure_units
from export.int8.simulate import HeldOut
from tests.export.conftest import run_onnx
from tests.export.tiny_graphs import floats, pixel_graph, pixels

STEM = ("Conv", ["f", "w"], "c", {})
CLIP = ("Clip", ["c", "low", "high"], "r", {})
EDGES = np.zeros((4, 1, 3, 3), np.float32)
EDGES[:, 0, 0, 1], EDGES[:, 0, 1, 1] = 256.0, -256.0  # opposite and large: what comes out is what rounding left


def mobile():
    """A Conv, a depthwise Conv whose kernel cancels, and a classifier, as a MobileNet begins."""
    nodes = [
        STEM,
        CLIP,
        ("Conv", ["r", "d"], "e", {"group": 4}),
        ("Clip", ["e", "low", "high"], "s", {}),
        ("Conv", ["s", "p"], "q", {}),
        ("GlobalAveragePool", ["q"], "g", {}),
        ("Flatten", ["g"], "h", {}),
        ("MatMul", ["h", "v"], "y", {}),
    ]
    smooth = np.abs(floats(4, 4, 3, 3)) / 9000
    weights = {"w": smooth, "d": EDGES, "p": floats(8, 4, 1, 1, seed=1), "v": floats(8, 5, seed=2)}
    bounds = {"low": np.float32(-30), "high": np.float32(30)}
    model = pixel_graph(nodes, weights | bounds, shapes={"y": ["batch", 5]})
    names = ("cast", "stem/Conv", "stem_relu/Clip", "depthwise/Conv", "depthwise_relu/Clip", "project/Conv")
    for node, name in zip(model.graph.node, (*names, "pool/GlobalAveragePool", "pool/Flatten", "head/MatMul")):
        node.name = name
    return model


def test_a_layer_and_its_activation_are_one_unit():
    units = fp16_units(mobile())
    assert units == {
        "stem/Conv": ("stem/Conv", "stem_relu/Clip"),
        "depthwise/Conv": ("depthwise/Conv", "depthwise_relu/Clip"),
        "project/Conv": ("project/Conv", "pool/GlobalAveragePool", "pool/Flatten"),
        "head/MatMul": ("head/MatMul",),
    }
    assert "stem/Conv" not in fp16_units(mobile(), kept=["stem/Conv"])


def test_a_normalisation_is_one_unit():
    nodes = [
        STEM,
        ("ReduceMean", ["c"], "m", {"axes": [2, 3]}),
        ("Sub", ["c", "m"], "d", {}),
        ("Mul", ["d", "d"], "q", {}),
        ("ReduceMean", ["q"], "z", {"axes": [2, 3]}),
        ("Sqrt", ["z"], "s", {}),
        ("Div", ["d", "s"], "y", {}),
    ]
    model = pixel_graph(nodes, {"w": floats(4, 4, 3, 3)})
    for node in model.graph.node[2:]:
        node.name = f"norm/{node.name}"
    units = list(fp16_units(model).values())
    assert [len(nodes) for nodes in units] == [2, 5]  # the Conv and the mean of it; the rest


@pytest.fixture(scope="module")
def measured():
    model = mobile()
    flat = pixels(16, 4, 6, 6) // 64 + 100
    held_out = HeldOut.of(model, flat, np.zeros(16, dtype=np.int64))
    units, seen = fp16_units(model), []

    def make(kept):
        return to_half(model, keep=kept)

    costs = measure_units(model, make, units, held_out, lambda names: seen.extend(names) or names)
    return held_out, make, units, costs, seen


def test_the_dearest_units_are_those_whose_rounding_is_amplified(measured):
    """The stem writes rounded values, the depthwise Conv reads such, and its kernel takes their difference."""
    _, _, units, costs, seen = measured
    assert seen == list(units)
    assert {cost.node for cost in costs} == units.keys()
    assert {cost.node for cost in costs[:2]} == {"stem/Conv", "depthwise/Conv"}
    assert costs[1].noise > 1000 * costs[2].noise
    assert [cost.noise for cost in costs] == sorted((cost.noise for cost in costs), reverse=True)


def test_keeping_the_dearest_brings_the_answers_closer(measured):
    held_out, make, units, costs, _ = measured
    kept = [name for cost in costs[:2] for name in units[cost.node]]
    throughout, mixed = (held_out.judge(emulate_half(make(names))).sqnr_db for names in ([], kept))
    assert throughout == pytest.approx(costs[0].sqnr_db, abs=1)
    assert mixed > throughout + 30


def test_emulated_fp16_is_fp16_arithmetic():
    """The reference evaluator rounds what each node writes; ONNX Runtime's CPU does not."""
    from onnx.reference import ReferenceEvaluator

    model, flat = mobile(), pixels(4, 4, 6, 6) // 64 + 100
    half = to_half(model)
    exact, seen = run_onnx(model, flat)[0], run_onnx(half, flat)[0]
    (true,) = ReferenceEvaluator(half).run(["y"], {"x": flat})
    emulated = run_onnx(emulate_half(half), flat)[0]
    assert np.linalg.norm(emulated - true) < 0.05 * np.linalg.norm(true - exact)
    assert np.linalg.norm(seen - exact) < 0.05 * np.linalg.norm(true - exact)


def test_what_stays_fp32_is_not_rounded():
    model, flat = mobile(), pixels(4, 4, 6, 6) // 64 + 100
    names = [node.name for node in model.graph.node]
    kept = emulate_half(to_half(model, keep=names))
    np.testing.assert_array_equal(run_onnx(kept, flat)[0], run_onnx(model, flat)[0])
