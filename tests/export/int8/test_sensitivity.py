import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from export.int8.placement import Kept, quantizable_tensors, quantized_edges
from export.int8.qdq import quantize
from export.int8.report import Distances
from export.int8.scales import Scales
from export.int8.sensitivity import Budget, LayerCost, measure_layers, select_layers
from export.int8.simulate import HeldOut, Judged, simulate
from export.metrics.distances import compare, sqnr_db
from tests.export.conftest import calibrate
from tests.export.keras_models import images

EYE = np.eye(4)
FOUND = replace(compare(EYE, EYE), sqnr_db=20.0, accuracy_drop=0.25)


# --- the budget -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("limits", "found", "met"),
    [
        ({}, {}, True),
        ({}, {"finite": False}, False),
        ({"sqnr_db": 20.0}, {"sqnr_db": 20.0}, True),
        ({"sqnr_db": 20.0}, {"sqnr_db": math.nextafter(20.0, 0)}, False),
        ({"sqnr_db": 20.0}, {"sqnr_db": math.inf}, True),
        ({"sqnr_db": 20.0}, {"sqnr_db": -math.inf}, False),
        ({"top1_agreement": 0.99}, {"top1_agreement": 0.99}, True),
        ({"top1_agreement": 0.99}, {"top1_agreement": 0.9899}, False),
        ({"relative_error": 1e-3}, {"relative_error": 1e-3}, True),
        ({"relative_error": 1e-3}, {"relative_error": 1.1e-3}, False),
        ({"accuracy_drop": 0.25}, {}, True),
        ({"accuracy_drop": 0.2499}, {}, False),
        ({"accuracy_drop": 0.0}, {"accuracy_drop": -0.05}, True),
        ({"accuracy_drop": 0.0}, {"accuracy_drop": 0.0}, True),
        ({"sqnr_db": 10.0, "top1_agreement": 0.9, "accuracy_drop": 0.3}, {"top1_agreement": 0.89}, False),
        ({"sqnr_db": 10.0, "top1_agreement": 0.9, "accuracy_drop": 0.3}, {"top1_agreement": 0.9}, True),
    ],
)
def test_a_budget_is_met_at_its_limits(limits, found, met):
    assert Budget(**limits).met_by(replace(FOUND, **found)) == met


def test_a_share_that_the_images_cannot_tell_is_met_where_certainty_is_asked():
    """One of four images with another class: 75 %, and anything from 30 to 95 % in truth."""
    found = compare(EYE, EYE[[0, 1, 2, 2]], np.arange(4))
    assert not Budget(0.9).met_by(found)
    assert Budget(0.9, certain=True).met_by(found)
    assert not Budget(0.99, certain=True).met_by(found)
    assert not Budget(accuracy_drop=0.1).met_by(found)
    assert Budget(accuracy_drop=0.1, certain=True).met_by(found)


def test_one_image_of_a_hundred_is_a_drop_of_a_hundredth():
    """And not 0.010000000000000009, as the difference of the two accuracies is."""
    labels = np.arange(100) % 4
    right = np.eye(4)[labels]
    reference, candidate = right.copy(), right.copy()
    reference[:10], candidate[:11] = np.roll(right, 1, axis=1)[:10], np.roll(right, 1, axis=1)[:11]
    found = Judged.of(reference, candidate, labels)
    assert Budget(accuracy_drop=0.01).met_by(found)
    assert not Budget(accuracy_drop=0.0099).met_by(found)
    assert Distances.of(found).accuracy_drop == 0.01


def test_a_budget_says_what_it_asks_for():
    assert str(Budget()) == "nothing"
    assert str(Budget(0.99, 0.01, 20.0)) == (
        "agreement of at least 99.00%, accuracy drop of at most 1.00%, SQNR of at least 20.0 dB"
    )


# --- which layers to keep ---------------------------------------------------------------------------------------------


def costs_of(noises, operators=None):
    operators = operators or ["Conv"] * len(noises)
    costs = [LayerCost(f"n{i}", f"n{i}", op, noise, 1.0, 0.0) for i, (noise, op) in enumerate(zip(noises, operators))]
    return sorted(costs, key=lambda cost: -cost.noise)


class Judge:
    """Noises add up."""

    def __init__(self, costs):
        self.noise = {cost.node: cost.noise for cost in costs}
        self.tried = []

    def __call__(self, kept):
        self.tried.append(set(kept))
        left = sum(noise for node, noise in self.noise.items() if node not in kept)
        return replace(FOUND, sqnr_db=-10 * math.log10(left) if left > 0 else math.inf)


def fewest(costs, judge, budget, most_convs):
    """By trying every number of layers of the ranking."""
    whole = sum(cost.noise for cost in costs)
    ranking, convs = [], 0
    for cost in costs:
        if cost.noise < 0.01 * whole or (cost.op == "Conv" and convs == most_convs):
            continue
        convs += cost.op == "Conv"
        ranking.append(cost.node)
    for count in range(len(ranking) + 1):
        if budget.met_by(judge(ranking[:count])):
            return set(ranking[:count]), True
    return set(ranking), False


@settings(max_examples=200, deadline=None)
@given(
    noises=st.lists(st.floats(1e-6, 1.0), min_size=1, max_size=12),
    operators=st.lists(st.sampled_from(["Conv", "Add", "MaxPool"]), min_size=12, max_size=12),
    limit=st.floats(-10, 60),
    most=st.integers(0, 12),
)
def test_the_fewest_layers_are_kept(noises, operators, limit, most):
    costs, budget = costs_of(noises, operators), Budget(sqnr_db=limit)
    expected, met = fewest(costs, Judge(costs), budget, most)
    judge = Judge(costs)
    selection = select_layers(costs, judge, budget, most)
    assert (set(selection.kept), selection.met) == (expected, met)
    assert selection.comparison == Judge(costs)(selection.kept)
    assert len(judge.tried) <= 2 + math.log2(len(costs) + 1), "each try runs all held-out images"
    assert sum(cost.op == "Conv" for cost in costs if cost.node in selection.kept) <= most


def test_layers_below_a_hundredth_of_the_noise_are_not_considered():
    costs = costs_of([0.5, 0.4, 0.0901, 0.0099])
    selection = select_layers(costs, Judge(costs), Budget(sqnr_db=1000), 4)
    assert list(selection.kept) == ["n0", "n1", "n2"]
    assert selection.candidates == 3
    assert not selection.met


def test_convs_are_limited_and_other_layers_are_not():
    costs = costs_of([0.4, 0.3, 0.2, 0.1], ["Conv", "Conv", "Add", "MaxPool"])
    selection = select_layers(costs, Judge(costs), Budget(sqnr_db=1000), 1, precision="fp32")
    assert list(selection.kept) == ["n0", "n2", "n3"]
    assert {kept.precision for kept in selection.kept.values()} == {"fp32"}
    assert "40%" in selection.kept["n0"].why
    none = select_layers(costs[:2], Judge(costs[:2]), Budget(sqnr_db=1000), 0)
    assert (none.kept, none.met, none.candidates) == ({}, False, 0)


@pytest.mark.parametrize("noises", [[], [0.0, 0.0]])
def test_nothing_to_gain(noises):
    """Layers without any noise: keeping them changes nothing, and nothing divides by their sum."""
    costs = costs_of(noises)
    selection = select_layers(costs, lambda kept: FOUND, Budget(sqnr_db=30), 4)
    assert (selection.kept, selection.met) == ({}, False)


def test_a_layer_that_overflows_is_kept_first():
    costs = costs_of([math.inf, 0.1])
    selection = select_layers(costs, lambda kept: replace(FOUND, finite="n0" in kept), Budget(), 4)
    assert list(selection.kept) == ["n0"]
    assert "nan" not in selection.kept["n0"].why
    assert selection.met


# --- what a layer costs -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def broken(v1):
    """Scales of which one clips nearly everything."""
    scales = calibrate(v1.model, [images(16, seed=1)])
    tensor = "conv3_block1_1_relu/Relu:0"
    return v1.model, tensor, Scales({**scales.scales, tensor: scales.scales[tensor] / 100}, "minmax", 16)


def test_a_broken_layer_is_the_dearest(broken):
    model, tensor, scales = broken
    pixels, seen = images(8, seed=11), []
    held_out = HeldOut.of(model, pixels, np.zeros(8, np.int64))
    costs = measure_layers(model, scales, held_out, lambda names: seen.extend(names) or names)
    nodes = list(dict.fromkeys(edge.node for edge in quantized_edges(model)))
    assert sorted(cost.node for cost in costs) == sorted(nodes)
    assert seen == nodes
    reader = next(node for node in model.graph.node if tensor in node.input)
    assert (costs[0].node, costs[0].op, costs[0].keras_layer) == (reader.name, "Conv", "conv3_block1_2_conv")
    assert costs[0].noise > 3 * costs[1].noise
    assert [cost.noise for cost in costs] == sorted((cost.noise for cost in costs), reverse=True)
    for cost in (costs[0], costs[-1]):  # alone: every other node is kept
        others = {name: Kept("fp32", "") for name in nodes if name != cost.node}
        alone = simulate(quantize(model, scales, base="fp32", kept=others).model, pixels)
        exact = simulate(model, pixels)
        noise = np.sum((alone.astype(np.float64) - exact) ** 2) / np.sum(exact.astype(np.float64) ** 2)
        assert cost.noise == pytest.approx(noise, rel=1e-6)
        assert cost.sqnr_db == pytest.approx(sqnr_db(exact, alone))
        assert cost.top1_agreement == np.mean(alone.argmax(1) == exact.argmax(1))


def test_keeping_the_broken_layer_repairs_the_model(broken):
    model, tensor, scales = broken
    held_out = HeldOut.of(model, images(8, seed=11), np.zeros(8, np.int64))

    def judge(kept):
        return held_out.judge(quantize(model, scales, base="fp32", kept=kept).model)

    assert not Budget(sqnr_db=18).met_by(judge({}))
    costs = measure_layers(model, scales, held_out.first(4))
    selection = select_layers(costs, judge, Budget(sqnr_db=18), 3)
    assert selection.met
    assert list(selection.kept) == ["conv3_block1_2_conv/Conv"]
    assert tensor in quantizable_tensors(model)


def test_what_is_no_convolution_is_kept_whatever_the_share_of_those() -> None:
    costs = [LayerCost("c", "", "Conv", 0.5, 1.0, 0.0), LayerCost("d", "", "Gemm", 0.3, 1.0, 0.0)]
    selection = select_layers(costs, Judge(costs), Budget(sqnr_db=1000), 0, precision="fp32")
    assert set(selection.kept) == {"d"}
    assert not selection.met
