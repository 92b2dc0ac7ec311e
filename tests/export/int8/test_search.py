"""The search for the best INT8 and FP16 graph, on a graph of a few nodes and without a recipe."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from export.int8 import search as room
from export.int8 import simulate
from export.int8.options import SearchOptions
from export.int8.qdq import quantize
from export.int8.scales import METHODS
from export.int8.search import SearchResult, search
from export.int8.sensitivity import Budget
from export.int8.simulate import HeldOut
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
WEIGHTS = {
    **{"a": floats(4, 4, 3, 3, seed=1) / 100, "a_bias": floats(4, seed=2)},
    **{"b": floats(4, 4, 3, 3, seed=3), "b_bias": floats(4, seed=4), "dense": floats(4, 3, seed=5)},
}
MODEL = pixel_graph(NODES, WEIGHTS, shapes={"y": ["batch", 3]})
HELD_OUT = HeldOut.of(MODEL, pixels(12, seed=1), np.arange(12) % 3)
MISSED = Budget(sqnr_db=300.0)


def run(told: list[str] | None = None, **options: object) -> SearchResult:
    said = [] if told is None else told

    def batches(what: str) -> list[np.ndarray]:
        said.append(what)
        return [pixels(5, seed=2), pixels(3, seed=3)]

    def track(names: list[str], what: str, unit: str) -> list[str]:
        said.append(what)
        return names

    return search(MODEL, batches, HELD_OUT, SearchOptions(**options), track)


def test_each_pass_asks_for_the_images_once() -> None:
    told: list[str] = []
    result = run(told)
    assert told == ["ranges", "histograms", "methods", "biases"]
    assert (result.report.scale_images, result.report.held_out_images) == (8, 12)
    assert set(result.report.methods) == set(METHODS)
    assert result.scales.method == result.report.method


def test_the_graph_that_is_returned_is_the_one_that_was_judged() -> None:
    result = run(method="percentile_99.9", int8=MISSED, max_kept=0.5)
    assert result.report.bias_correction is not None
    assert result.report.bias_correction.used, "else kept layers and others have the same biases"
    assert result.kept
    again, _ = quantize(result.model, result.scales, base="fp32", kept=result.kept)
    assert HELD_OUT.judge(again) == result.result
    assert op_counts(again)["QuantizeLinear"] == op_counts(result.int8)["QuantizeLinear"]
    assert result.report.kept == tuple(result.kept)
    assert result.report.mixed is not None


def test_the_errors_of_the_biases_are_measured_once(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    real = room.bias_errors

    def counted(*arguments: object) -> object:
        calls.append(1)
        return real(*arguments)

    monkeypatch.setattr(room, "bias_errors", counted)
    judged: list[int] = []
    judge = HeldOut.judge
    monkeypatch.setattr(HeldOut, "judge", lambda self, model: judged.append(1) or judge(self, model))
    assert run(int8=MISSED, max_kept=1.0).report.bias_correction is not None
    assert (len(calls), len(judged) > 4) == (1, True)


def test_one_session_judges_all_methods_each_as_if_it_were_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[int] = []
    real = simulate.open_session

    def counted(*arguments: object, **options: object) -> object:
        opened.append(1)
        return real(*arguments, **options)

    monkeypatch.setattr(simulate, "open_session", counted)
    together = run().report
    assert len(opened) == 4, "FP16 rounded in two ways, INT8 with the scales of each method, INT8 with other biases"
    alone = {method: run(method=method).report.methods[method] for method in METHODS}
    assert together.methods == alone
    assert len({found.sqnr_db for found in alone.values()}) > 2


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
    result = run(told, method="mse", equalize=False, bias_correction=False)
    assert "biases" not in told
    assert (result.report.equalized_activations, result.report.bias_correction) == (0, None)
    assert list(result.report.methods) == ["mse"]
    assert result.model == MODEL


def test_fp16_misses_by_a_margin_what_it_barely_reaches() -> None:
    whole = run(method="minmax").report.fp16
    best = max(found.sqnr_db for found in (whole.rounding.nearest, whole.rounding.mean) if found.sqnr_db)
    barely = run(method="minmax", fp16=Budget(sqnr_db=best - 0.5), sensitivity="never").report.fp16
    assert (whole.budget_met, barely.budget_met) == (True, False)


def test_the_scales_are_those_of_the_method_that_was_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "best_method", lambda results, budget: "minmax")
    result = run(bias_correction=False)
    assert (result.scales.method, result.report.method) == ("minmax", "minmax")
    assert result.report.all_int8 == result.report.methods["minmax"]


@pytest.mark.parametrize(("times", "helps"), [(0.25, True), (20.0, False)])
def test_corrected_biases_stay_where_they_bring_the_logits_closer(
    times: float, helps: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = room.bias_errors
    scaled = lambda *given: [replace(found, error=times * found.error) for found in real(*given)]  # noqa: E731
    monkeypatch.setattr(room, "bias_errors", scaled)
    result = run(method="minmax", equalize=False)
    correction = result.report.bias_correction
    assert correction is not None
    assert correction.used is helps
    assert (correction.after.sqnr_db > correction.before.sqnr_db) is helps
    assert (result.model != MODEL) is helps
    assert result.report.all_int8 == (correction.after if helps else correction.before)


def test_layers_in_float_are_as_few_as_meet_the_budget_and_no_more_than_allowed() -> None:
    none, every = (run(method="minmax", int8=MISSED, max_kept=most).report for most in (0.0, 1.0))
    assert not any(node.startswith("Conv") for node in none.kept)
    assert sum(node.startswith("Conv") for node in every.kept) == 2, "what comes closer is kept, though it misses"
    assert every.mixed is not None
    assert every.mixed.sqnr_db is not None
    assert every.all_int8.sqnr_db is not None
    assert every.mixed.sqnr_db > every.all_int8.sqnr_db + 3
    met = run(method="minmax", int8=Budget(sqnr_db=every.all_int8.sqnr_db + 1), max_kept=1.0).report
    assert met.budget_met
    assert len(met.kept) == 1


def test_layers_are_measured_on_as_many_images_as_are_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    numbers: list[int] = []
    real = room.measure_layers
    monkeypatch.setattr(room, "measure_layers", lambda model, scales, part, track: numbers.append(len(part)) or real(
        model, scales, part, track))  # fmt: skip
    run(method="minmax", sensitivity="always", sensitivity_images=5)
    assert numbers == [5]
