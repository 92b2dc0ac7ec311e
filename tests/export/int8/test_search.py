"""The search for the best INT8 and FP16 graph, on a graph of a few nodes and without a recipe."""

from __future__ import annotations

import hashlib
from dataclasses import replace

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from export.calibration import collect_statistics
from export.int8 import calibrated
from export.int8 import search as room
from export.int8.equalization import STRENGTHS, equalize
from export.int8.options import SearchOptions
from export.int8.placement import Kept, measured_tensors
from export.int8.qdq import quantize, rounded_activations
from export.int8.scales import METHODS
from export.int8.search import QUICK, SearchResult, search
from export.int8.second_order import SecondOrderWeights, round_second_order
from export.int8.sensitivity import Budget, LayerCost, Selection
from export.int8.simulate import HeldOut, Judged
from export.onnx_passes.graph import op_counts
from tests.export.tiny_graphs import floats, pixel_graph, pixels

NODES = [
    ("Conv", ["f", "a", "a_bias"], "s", {"pads": [1, 1, 1, 1]}),
    ("Relu", ["s"], "r", {}),
    ("Conv", ["r", "b", "b_bias"], "m", {"pads": [1, 1, 1, 1]}),
    ("Relu", ["m"], "u", {}),
    ("GlobalAveragePool", ["u"], "g", {}),
    ("Flatten", ["g"], "k", {}),
    ("MatMul", ["k", "dense"], "y", {}),
]
WIDER = np.geomspace(1, 8, 8, dtype=np.float32).reshape(8, 1, 1, 1)  # ranges for equalization
WEIGHTS = {
    **{"a": floats(8, 4, 3, 3, seed=11) / 100 * WIDER, "a_bias": floats(8, seed=12)},
    **{"b": floats(8, 8, 3, 3, seed=13), "b_bias": floats(8, seed=14), "dense": floats(8, 3, seed=15)},
}
MODEL = pixel_graph(NODES, WEIGHTS, shapes={"y": ["batch", 3]})
MISSED = Budget(sqnr_db=300.0)
# One ReLU right behind a Conv, and one behind a residual Add; both can be shifted.
BLOCK = pixel_graph(
    [
        ("Conv", ["f", "a", "a_bias"], "s", {}),
        ("Relu", ["s"], "r", {}),
        ("Conv", ["r", "b", "b_bias"], "m", {}),
        ("Add", ["m", "r"], "t", {}),
        ("Relu", ["t"], "u", {}),
        ("GlobalAveragePool", ["u"], "g", {}),
        ("Flatten", ["g"], "k", {}),
        ("Gemm", ["k", "dense", "dense_bias"], "y", {}),
    ],
    {
        **{"a": floats(4, 4, 1, 1, seed=1) / 100, "a_bias": floats(4, seed=2)},
        **{"b": floats(4, 4, 1, 1, seed=3), "b_bias": floats(4, seed=4)},
        **{"dense": floats(4, 3, seed=5), "dense_bias": floats(3, seed=6)},
    },
    shapes={"y": ["batch", 3]},
)
# Its second Conv writes values beyond FP16, which the head takes back.
LARGE = pixel_graph(
    NODES,
    {**WEIGHTS, "b": WEIGHTS["b"] * 1e4, "b_bias": WEIGHTS["b_bias"] * 1e4, "dense": WEIGHTS["dense"] / 1e4},
    shapes={"y": ["batch", 3]},
)
DENSE = pixel_graph(
    [("Flatten", ["f"], "k", {}), ("MatMul", ["k", "dense"], "y", {})],
    {"dense": floats(144, 3, seed=16) / 100},
    shapes={"y": ["batch", 3]},
)
JUDGES = {id(model): HeldOut.of(model, pixels(32, seed=1), np.arange(32) % 3) for model in (MODEL, BLOCK, LARGE, DENSE)}
CONVS = [node for node in MODEL.graph.node if node.op_type == "Conv"]
HELD_OUT = JUDGES[id(MODEL)]
STATISTICS = collect_statistics(MODEL, [pixels(24, seed=2), pixels(16, seed=3)], measured_tensors(MODEL))[1]


def run(told: list[str] | None = None, model: onnx.ModelProto = MODEL, **options: object) -> SearchResult:
    said = [] if told is None else told

    def batches(what: str) -> list[np.ndarray]:
        said.append(what)
        return [pixels(24, seed=2), pixels(16, seed=3)]

    def track(names: list[str], what: str, unit: str) -> list[str]:
        said.append(what)
        return names

    return search(model, batches, JUDGES[id(model)], SearchOptions(**options), track)


def test_each_pass_asks_for_the_images_once() -> None:
    told: list[str] = []
    result = run(told)
    rounding = ["second-order rounding", "second-order rounding"]  # the images, then the layers
    assert told == ["ranges", "histograms", "methods", *rounding, "biases"]
    assert (result.report.scale_images, result.report.held_out_images) == (40, 32)
    assert set(result.report.methods) == set(METHODS)
    assert result.scales.method == result.report.method


def test_the_graph_that_is_returned_is_the_one_that_was_judged() -> None:
    result = run(method="minmax", int8=MISSED, max_kept=0.5)
    assert result.report.bias_correction is not None
    assert result.report.bias_correction.used, "else kept layers and others have the same biases"
    assert result.kept
    again = quantize(result.model, result.scales, weights=result.weights, base="fp32", kept=result.kept).model
    assert HELD_OUT.judge(again) == result.result
    assert op_counts(again)["DequantizeLinear"] == op_counts(result.int8)["DequantizeLinear"]
    assert result.report.kept == tuple(result.kept)
    assert result.report.mixed is not None


def test_the_errors_of_the_biases_are_measured_once(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    real = calibrated.bias_errors

    def counted(*arguments: object) -> object:
        calls.append(1)
        return real(*arguments)

    monkeypatch.setattr(calibrated, "bias_errors", counted)
    judged: list[int] = []
    judge = HeldOut.judge
    monkeypatch.setattr(HeldOut, "judge", lambda self, model: judged.append(1) or judge(self, model))
    assert run(int8=MISSED, max_kept=1.0).report.bias_correction is not None
    assert (len(calls), len(judged) > 4) == (1, True)


def test_each_method_is_judged_as_if_it_were_alone() -> None:
    together = run(rounding="nearest").report
    alone = {method: run(method=method, rounding="nearest").report.methods[method] for method in METHODS}
    assert together.methods == alone
    assert len({found.sqnr_db for found in alone.values()}) > 2


@pytest.mark.parametrize(("mode", "shifted"), [("auto", ("r", "u")), ("always", ("r", "u")), ("conv", ("r",))])
def test_what_can_be_shifted_is_shifted_where_the_recipe_lets_it(mode: str, shifted: tuple[str, ...]) -> None:
    result = run(model=BLOCK, shift=mode, equalize=False)
    report = result.report.shift
    assert report.used
    assert (report.shifted, result.scales.shifted, report.quantized) == (shifted, shifted, 3)
    assert set(shifted) <= set(result.offsets)
    assert op_counts(result.int8)["Clip"] == len(shifted)
    assert (report.plain is None) is (mode == "always"), "it is tried only where it is a choice"
    assert report.after == result.report.methods[result.scales.method]


def test_what_only_kept_layers_read_is_not_recorded_as_shifted(monkeypatch: pytest.MonkeyPatch) -> None:
    """A kept pooling is the only reader of u: its ReLU stays, and scales.json lists what the file lowers."""
    real = room.select_layers

    def pooling(costs: list[LayerCost], *others: object) -> Selection:
        found = real(costs, *others)
        return replace(found, kept={cost.node: Kept("fp16", "a test") for cost in costs if cost.op != "Conv"}, met=True)

    monkeypatch.setattr(room, "select_layers", pooling)
    result = run(model=BLOCK, shift="always", equalize=False, int8=MISSED)
    assert len(result.kept) == 2, "the Add, and the pooling"
    assert op_counts(result.int8)["Clip"] == 1
    assert (result.scales.shifted, result.report.shift.shifted) == (("r",), ("r", "u"))
    assert {"r", "u"} <= set(result.scales.scales)
    again = quantize(result.model, result.scales, weights=result.weights, kept=result.kept).model
    assert again == result.int8, "the file for TensorRT 8.6 is made of them"


def test_a_shift_that_does_not_help_is_undone_and_the_methods_are_tried_without(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    told: list[str] = []
    monkeypatch.setattr(room, "helps", lambda before, after, budget: False)
    result = run(told, model=BLOCK, rounding="nearest", bias_correction=False, equalize=False)
    monkeypatch.undo()
    never = run(model=BLOCK, shift="never", rounding="nearest", bias_correction=False, equalize=False)
    assert ("methods without shift" in told, result.scales.shifted, result.offsets) == (True, (), {})
    assert result.report.shift.plain is not None
    assert result.report.shift.after is not None
    assert not result.report.shift.used
    assert (result.report.methods, result.scales) == (never.report.methods, never.scales)
    assert set(result.report.methods) == set(METHODS)


def test_what_cannot_be_shifted_is_named_with_the_reason() -> None:
    result = run(shift="always")
    report = result.report.shift
    assert (report.used, report.shifted) == (True, ("u",))
    assert report.refused.keys() == {"r"}
    assert "padding" in report.refused["r"].kind
    assert report.refused["r"].node == [row.node for row in result.placements if row.op == "Conv"][1]
    reasons = [row.why for row in result.placements if row.op == "Relu"]
    assert [("not shifted" in why, "padding" in why) for why in reasons] == [(True, True), (False, False)]
    never = run(shift="never").report.shift
    assert (never.used, never.shifted, never.refused, never.after) == (False, (), {}, None)


def test_equalization_that_does_not_help_is_undone(monkeypatch: pytest.MonkeyPatch) -> None:
    used = run(method="minmax")
    assert used.report.equalization is not None
    assert used.report.equalization.used, "the channels of this graph have very different ranges"
    assert used.factors
    assert used.report.equalization.strengths.keys() == {"0.5", "0.7"}
    monkeypatch.setattr(room, "helps", lambda before, after, budget: False)
    result = run(method="minmax", bias_correction=False)
    assert result.report.equalization == replace(used.report.equalization, used=False)
    assert (result.factors, result.report.equalized_activations, result.model) == ({}, 0, MODEL)


@pytest.mark.parametrize(
    ("sqnr", "used"),
    [((30, 35, 25), 0.7), ((35, 30, 25), 0.5), ((30, 35, 40), None), ((35, 30, 32), 0.5), ((30, 32, 31), 0.7)],
)
def test_the_strength_of_equalization_is_the_best_on_held_out_images(
    sqnr: tuple[int, int, int], used: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each is judged with L2.4 once, and the model that is used is that of the best one."""
    some = HELD_OUT.judge(run(method="minmax", effort="fast").int8)
    values = iter(sqnr)

    def judged(self: object, method: str, shifted: object, *, weights: bool) -> Judged:
        if method != "lp_2.4":
            return real(self, method, shifted, weights=weights)
        assert weights, "what the weights lose counts"
        decibels = next(values)
        return replace(some, sqnr_db=decibels, median_db=decibels, low_db=decibels, worst_db=decibels, tail_db=decibels)

    real = room._Int8Search._judge_scales
    monkeypatch.setattr(room._Int8Search, "_judge_scales", judged)
    result = run(method="minmax", bias_correction=False, rounding="nearest")
    assert not list(values)
    expected, _ = (equalize(MODEL, STATISTICS, used), None) if used else (None, None)
    report = result.report.equalization
    assert report is not None
    assert (report.used, report.before.sqnr_db) == (used is not None, sqnr[2])
    assert [one.sqnr_db for one in report.strengths.values()] == list(sqnr[:2])
    assert float(report.strength) == (0.7 if sqnr[1] > sqnr[0] else 0.5)
    assert report.after == report.strengths[report.strength]
    if expected is None:
        assert (result.factors, result.model) == ({}, MODEL)
    else:
        assert result.model == expected.model
        np.testing.assert_array_equal(result.factors["r"], expected.factors["r"])


def test_what_was_judged_is_not_judged_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Equalization judges L2.4 already: one graph for each strength and the model as it is, and one without shift."""
    judged: list[str] = []
    real = room._Int8Search._judge
    monkeypatch.setattr(
        room._Int8Search, "_judge", lambda self, kept: judged.append(self.scales.method) or real(self, kept)
    )
    result = run(model=BLOCK, method="lp_2.4", rounding="nearest", bias_correction=False)
    assert result.report.shift.plain is not None
    assert judged == ["lp_2.4"] * (len(STRENGTHS) + 2)


@pytest.mark.parametrize("kept", [False, True])
@pytest.mark.parametrize("rounding", ["second_order", "nearest"])
def test_scales_are_compared_without_the_noise_that_rounding_takes_off(rounding: str, kept: bool) -> None:
    """Without it the comparison is that of activations alone; a layer that stays in float rounds nothing."""
    model = LARGE if kept else BLOCK
    result = run(model=model, method="lp_3", rounding=rounding, equalize=False, bias_correction=False)
    kept_nodes = {name: entry for name, entry in result.kept.items() if entry.precision == "fp32"}
    assert bool(kept_nodes) is kept
    alone = JUDGES[id(model)].judge(rounded_activations(model, result.scales, kept_nodes))
    whole = JUDGES[id(model)].judge(quantize(model, result.scales, base="fp32", kept=kept_nodes).model)
    assert alone.sqnr_db > whole.sqnr_db + 1e-3
    seen, expected = result.report.methods["lp_3"].sqnr_db, alone if rounding == "second_order" else whole
    assert seen == pytest.approx(expected.sqnr_db, abs=1e-6)
    if result.report.rounding is not None:
        assert result.report.rounding.before.sqnr_db == pytest.approx(whole.sqnr_db, abs=1e-6)
    else:
        assert result.report.all_int8.sqnr_db == seen


def spoiled(*given: object, **options: object) -> SecondOrderWeights:
    """Second-order rounding that does not help."""
    found = round_second_order(*given, **options)
    weights = {name: replace(weight, codes=weight.codes // 2) for name, weight in found.weights.items()}
    return replace(found, weights=weights)


def test_second_order_rounding_is_undone_where_it_does_not_help(monkeypatch: pytest.MonkeyPatch) -> None:
    good = run(method="minmax", bias_correction=False)
    monkeypatch.setattr(room, "round_second_order", spoiled)
    bad = run(method="minmax", bias_correction=False)
    nearest = run(method="minmax", bias_correction=False, rounding="nearest")
    assert good.report.rounding is not None
    assert bad.report.rounding is not None
    assert (good.report.rounding.used, bad.report.rounding.used) == (True, False)
    assert nearest.report.rounding is None
    assert good.report.rounding.before == bad.report.rounding.before == nearest.report.all_int8 == bad.report.all_int8
    assert good.report.all_int8 == good.report.rounding.after
    assert bad.rounding == nearest.rounding
    assert {weight.method for weight in nearest.rounding.weights} == {"nearest"}
    assert max(weight.most_steps for weight in nearest.rounding.weights) <= 0.5 + 1e-6


def test_scales_are_chosen_again_where_rounding_does_not_help(monkeypatch: pytest.MonkeyPatch) -> None:
    """They were compared with float weights for its sake; nearest weights ask for scales of their own."""
    monkeypatch.setattr(room, "round_second_order", spoiled)
    found = run(bias_correction=False, equalize=False)
    nearest = run(bias_correction=False, equalize=False, rounding="nearest")
    floats = JUDGES[id(MODEL)].judge(rounded_activations(MODEL, found.scales))
    assert found.report.rounding is not None
    assert not found.report.rounding.used
    assert (found.report.methods, found.scales) == (nearest.report.methods, nearest.scales)
    assert found.report.all_int8 == nearest.report.all_int8
    assert found.report.methods[found.scales.method].sqnr_db != pytest.approx(floats.sqnr_db, abs=1e-3)


def test_memory_of_rounding_is_for_the_images_that_there_are() -> None:
    """A number of images far above theirs takes no memory: a place of each would be held."""
    found, all_of_them = (run(method="minmax", rounding_images=images) for images in (10**12, 40))
    assert found.rounding == all_of_them.rounding


def test_the_record_of_rounding_is_that_of_the_codes_in_the_file() -> None:
    result = run(method="minmax")
    assert result.report.rounding is not None
    assert result.report.rounding.used, "else every weight is rounded to nearest"
    codes = {
        tensor.name.removesuffix("/quantized"): numpy_helper.to_array(tensor)
        for tensor in result.int8.graph.initializer
        if tensor.data_type == onnx.TensorProto.INT8 and tensor.name.endswith("/quantized")
    }
    assert codes.keys() == {"a", "b"}
    records = {record.node: record for record in result.rounding.weights}
    for name, (node, record) in zip(("a", "b"), records.items()):
        assert node.startswith("Conv")
        assert record.codes_sha256 == hashlib.sha256(codes[name].tobytes()).hexdigest()
        assert record.method == "second_order"
        assert record.gain_db is not None
        assert record.gain_db >= 0.0
        assert record.most_steps == result.weights[name].most_steps(weight_of(result.model, name))


@pytest.mark.parametrize("mixed", [False, True])
def test_what_fp16_cannot_hold_stays_fp32_and_its_weights_are_not_rounded(mixed: bool) -> None:
    result = run(model=LARGE, method="minmax", int8=MISSED if mixed else Budget(), max_kept=1.0)
    first, second = (node.name for node in LARGE.graph.node if node.op_type == "Conv")
    assert (result.kept[second].precision, result.report.kept) == ("fp32", tuple(result.kept) if mixed else ())
    assert "FP16" in result.kept[second].why, "no layer that the budget asks for"
    assert result.report.rounding is not None
    assert result.report.rounding.skipped == {second: "it stays in float"}
    assert {record.node for record in result.rounding.weights} == (set() if first in result.kept else {first})
    assert {tensor.name for tensor in result.int8.graph.initializer if tensor.name.endswith("/quantized")} == (
        set() if first in result.kept else {"a/quantized"}
    )


def test_equalization_is_no_choice_where_nothing_is_quantized() -> None:
    report = run(model=DENSE).report
    assert (report.equalization, report.shift.quantized, report.convolutions) == (None, 0, 0)


def weight_of(model: onnx.ModelProto, name: str) -> np.ndarray:
    return next(numpy_helper.to_array(tensor) for tensor in model.graph.initializer if tensor.name == name)


def test_the_fast_effort_tries_less() -> None:
    told: list[str] = []
    result = run(told, effort="fast")
    assert told == ["ranges", "histograms", "methods", "biases"]
    assert set(result.report.methods) == set(QUICK) < set(METHODS)
    assert (result.report.rounding, result.report.equalization) == (None, None)
    assert result.report.equalized_activations > 0


def test_a_trunk_of_fp16_is_judged_with_the_scales_of_its_file() -> None:
    result = run(model=BLOCK, trunk="fp16")
    assert result.report.trunk == "fp16"
    assert all(float(np.float16(value)) == value for value in result.scales.scales.values())
    assert all((weight.scales.astype(np.float16) == weight.scales).all() for weight in result.weights.values())
    kinds = {tensor.name: tensor.data_type for tensor in result.int8.graph.initializer}
    assert kinds["r/scale"] == kinds["a_bias"] == onnx.TensorProto.FLOAT16
    kinds = {tensor.name: tensor.data_type for tensor in run(model=BLOCK).int8.graph.initializer}
    assert kinds["r/scale"] == kinds["a_bias"] == onnx.TensorProto.FLOAT


@pytest.mark.parametrize(
    ("sensitivity", "budget", "measured"),
    [("auto", Budget(), False), ("auto", MISSED, True), ("never", MISSED, False), ("always", Budget(), True)],
)
def test_layers_are_measured_where_the_budget_is_missed(sensitivity: str, budget: Budget, measured: bool) -> None:
    result = run(method="minmax", sensitivity=sensitivity, int8=budget)
    assert bool(result.costs) is measured
    assert result.report.budget_met is (budget is not MISSED)
    assert (result.report.mixed is not None) is (measured and budget is MISSED)


def test_what_is_turned_off_is_not_done() -> None:
    told: list[str] = []
    result = run(told, method="mse", equalize=False, bias_correction=False, rounding="nearest")
    assert "biases" not in told
    assert (result.report.equalized_activations, result.report.bias_correction) == (0, None)
    assert list(result.report.methods) == ["mse"]
    assert (result.model, result.report.rounding) == (MODEL, None)


def test_fp16_misses_by_a_margin_what_it_barely_reaches() -> None:
    whole = run(method="minmax").report.fp16
    best = max(found.sqnr_db for found in (whole.rounding.nearest, whole.rounding.mean) if found.sqnr_db)
    barely = run(method="minmax", fp16=Budget(sqnr_db=best - 0.5), sensitivity="never").report.fp16
    assert (whole.budget_met, barely.budget_met) == (True, False)


def test_the_scales_are_those_of_the_method_that_was_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "best_scales", lambda results, budget: "minmax")
    result = run(bias_correction=False, rounding="nearest")
    assert (result.scales.method, result.report.method) == ("minmax", "minmax")
    assert result.report.all_int8 == result.report.methods["minmax"]


@pytest.mark.parametrize(("times", "helps"), [(0.25, True), (20.0, False)])
def test_corrected_biases_stay_where_they_bring_the_logits_closer(
    times: float, helps: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = calibrated.bias_errors
    scaled = lambda *given: [replace(found, error=times * found.error) for found in real(*given)]  # noqa: E731
    monkeypatch.setattr(calibrated, "bias_errors", scaled)
    result = run(method="minmax", equalize=False, rounding="nearest")
    correction = result.report.bias_correction
    assert correction is not None
    assert correction.used is helps
    assert (correction.after.sqnr_db > correction.before.sqnr_db) is helps
    assert (result.model != MODEL) is helps
    assert result.report.all_int8 == (correction.after if helps else correction.before)


def test_layers_in_float_are_as_few_as_meet_the_budget_and_no_more_than_allowed() -> None:
    some, every = (run(method="minmax", int8=MISSED, max_kept=most).report for most in (0.1, 1.0))
    assert some.kept
    assert not any(node.startswith("Conv") for node in some.kept), "a tenth of two Convs is none"
    assert sum(node.startswith("Conv") for node in every.kept) == 2, "what comes closer is kept, though it misses"
    assert every.mixed is not None
    assert every.mixed.sqnr_db is not None
    assert every.all_int8.sqnr_db is not None
    assert every.mixed.sqnr_db > every.all_int8.sqnr_db + 3
    met = run(method="minmax", int8=Budget(sqnr_db=every.all_int8.sqnr_db + 1), max_kept=1.0).report
    assert met.budget_met
    assert len(met.kept) == 1


def test_where_no_layer_may_be_kept_none_is() -> None:
    """Not even the pooling before the head, which is no Conv and the only layer that may stay at a tenth."""
    none = run(method="minmax", int8=MISSED, max_kept=0.0)
    throughout = run(method="minmax", int8=MISSED, sensitivity="never")
    assert none.costs, "they are measured for sensitivity.csv"
    assert (none.kept, none.report.kept, none.report.mixed, none.report.budget_met) == ({}, (), None, False)
    assert none.int8 == throughout.int8


def test_layers_are_measured_on_as_many_images_as_are_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    numbers: list[int] = []
    real = room.measure_layers

    def counted(model: onnx.ModelProto, scales: object, part: HeldOut, *others: object) -> object:
        numbers.append(len(part))
        return real(model, scales, part, *others)

    monkeypatch.setattr(room, "measure_layers", counted)
    run(method="minmax", sensitivity="always", sensitivity_images=5)
    assert numbers == [5]


def test_layers_are_measured_with_the_weights_that_were_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[object] = []
    real = room.measure_layers
    monkeypatch.setattr(room, "measure_layers", lambda *values: given.append(values[-1]) or real(*values))
    result = run(method="minmax", sensitivity="always")
    assert result.report.rounding is not None
    assert result.report.rounding.used, "else they are those of nearest"
    assert given == [result.weights]


def test_the_bias_of_a_layer_in_float_is_not_corrected() -> None:
    result = run(method="minmax", int8=MISSED, max_kept=0.5)
    assert result.report.bias_correction is not None
    assert result.report.bias_correction.used
    plain = {"a_bias": WEIGHTS["a_bias"] / result.factors["s"], "b_bias": WEIGHTS["b_bias"]}
    kept = {name: node.name in result.kept for name, node in zip(("a_bias", "b_bias"), CONVS)}
    assert sorted(kept.values()) == [False, True]
    same = {name: np.allclose(weight_of(result.model, name), plain[name], rtol=1e-5) for name in kept}
    assert same == kept


def test_equalization_is_judged_with_the_shift_that_the_recipe_lets_be(monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[tuple[str, tuple[str, ...]]] = []
    real = room._Int8Search._judge_scales

    def judged(self: object, method: str, shifted: tuple[str, ...], **options: object) -> Judged:
        tried.append((method, tuple(shifted)))
        return real(self, method, shifted, **options)

    monkeypatch.setattr(room._Int8Search, "_judge_scales", judged)
    run(model=BLOCK, method="minmax", rounding="nearest", bias_correction=False)
    assert [shifted for method, shifted in tried if method == "lp_2.4"] == [("r", "u")] * (len(STRENGTHS) + 1)


def test_a_weight_that_second_order_rounding_skips_is_that_of_nearest(monkeypatch: pytest.MonkeyPatch) -> None:
    real = room.round_second_order

    def without_b(*given: object, **options: object) -> SecondOrderWeights:
        found = real(*given, **options)
        return replace(found, weights={"a": found.weights["a"]}, gains_db={"a": found.gains_db["a"]})

    monkeypatch.setattr(room, "round_second_order", without_b)
    result = run(method="minmax", bias_correction=False)
    assert result.report.rounding is not None
    assert result.report.rounding.used
    assert result.weights.keys() == {"a", "b"}
    assert [weight.method for weight in result.rounding.weights] == ["second_order", "nearest"]


def test_weights_of_nearest_have_the_scales_of_a_file_of_fp16() -> None:
    result = run(model=BLOCK, trunk="fp16", rounding="nearest")
    assert all((weight.scales.astype(np.float16) == weight.scales).all() for weight in result.weights.values())
