import numpy as np
import pytest
from onnx import numpy_helper

from export.calibration import ChannelStatistics, collect_statistics
from export.fp16 import weight_rounding
from export.fp16.convert import to_half
from export.fp16.weight_rounding import rounded_first_conv, rounded_weights, with_weights
from export.int8.placement import measured_tensors
from export.metrics.distances import sqnr_db
from export.onnx_passes import graph
from tests.export.conftest import run_onnx
from tests.export.keras_models import images
from tests.export.tiny_graphs import floats, pixel_graph, pixels

SAME = {"pads": [1, 1, 1, 1]}
WEIGHTS = {
    "first": floats(16, 4, 3, 3, seed=1) / 50, "first_bias": floats(16, seed=2),
    "conv": floats(8, 16, 3, 3, seed=3), "conv_bias": 300 * floats(8, seed=4),
    "dense": floats(8, 5, seed=5), "dense_t": floats(5, 8, seed=6), "dense_bias": 300 * floats(5, seed=7),
}  # fmt: skip
BODY = [
    ("Conv", ["f", "first", "first_bias"], "s", SAME),
    ("Relu", ["s"], "r", {}),
    ("Conv", ["r", "conv", "conv_bias"], "m", SAME),
    ("GlobalAveragePool", ["m"], "g", {}),
    ("Flatten", ["g"], "v", {}),
]
HEADS = {
    "Gemm": [("Gemm", ["v", "dense", "dense_bias"], "y", {})],
    "Gemm transB": [("Gemm", ["v", "dense_t", "dense_bias"], "y", {"transB": 1})],
    "MatMul and Add": [("MatMul", ["v", "dense"], "n", {}), ("Add", ["n", "dense_bias"], "y", {})],
}


def build(head="Gemm", **others):
    nodes = [*BODY, *HEADS[head]]
    used = {name for _, inputs, *_ in nodes for name in inputs}
    return pixel_graph(nodes, {k: v for k, v in {**WEIGHTS, **others}.items() if k in used}, shapes={"y": ["batch", 5]})


def round_weights(model, statistics, kept=()):
    return with_weights(model, rounded_weights(model, statistics), kept)


def round_first_conv(model, kept=()):
    return with_weights(model, rounded_first_conv(model), kept)


def statistics_of(model, batch):
    return collect_statistics(model, [batch], measured_tensors(model))[1]


def weights(model):
    return {k: numpy_helper.to_array(v) for k, v in graph.constants(model.graph).items()}


def as_rows(name, weight):
    """(outputs, inputs), and the inputs' channels repeated for each position of the kernel."""
    return weight.T if name == "dense" else weight.reshape(len(weight), -1)


@pytest.mark.parametrize("head", HEADS)
def test_means_stay_on_the_fp16_grid(head):
    model, batch = build(head), pixels(8)
    before, statistics = model.SerializeToString(), statistics_of(model, batch)
    result = round_weights(model, statistics)
    assert model.SerializeToString() == before
    old, new = weights(model), weights(result)
    changed = {k for k in old if not np.array_equal(old[k], new[k])}
    assert changed == old.keys() & {"first", "conv", "dense", "dense_t"}
    for name, source in (("conv", "r"), ("dense", "v"), ("dense_t", "v")):
        if name not in old:
            continue
        assert np.array_equal(new[name], new[name].astype(np.float16).astype(np.float32)), name
        unit = np.spacing(np.abs(old[name]).astype(np.float16)).astype(np.float64)
        assert (np.abs(new[name].astype(np.float64) - old[name]) <= unit).all(), name
        rows, kept, nearest = (
            as_rows(name, w).astype(np.float64) for w in (old[name], new[name], old[name].astype(np.float16))
        )
        mean = statistics[source].mean.repeat(rows.shape[1] // len(statistics[source].mean))
        bias = old[f"{name.removesuffix('_t')}_bias"].astype(np.float64)
        offset = bias.astype(np.float16) - bias
        errors, plain = (np.abs((w - rows) @ mean + offset) for w in (kept, nearest))
        assert errors.sum() < plain.sum() / (10 if name == "conv" else 3), name
        assert (errors <= plain + 1e-12).all(), name


def test_the_first_conv_is_left_to_its_own_rule():
    model = build()
    result = round_weights(model, statistics_of(model, pixels(4)))
    alone = weights(round_first_conv(model))
    assert np.array_equal(weights(result)["first"], alone["first"])
    assert np.array_equal(alone["conv"], weights(model)["conv"])


def test_fp16_comes_closer_to_fp32():
    model, batch, held_out = build(), pixels(16), pixels(32, seed=1)
    exact = run_onnx(model, held_out)[0]
    rounded = round_weights(model, statistics_of(model, batch))
    nearest, kept = (sqnr_db(exact, run_onnx(to_half(m), held_out)[0]) for m in (model, rounded))
    assert kept > nearest


@pytest.mark.parametrize("groups", [2, 16])
def test_means_stay_with_groups(groups):
    """A depthwise kernel sums over positions alone; MobileNet loses most of what FP16 costs it there."""
    kernel = 20 * floats(32, 16 // groups, 3, 3, seed=3)
    nodes = [*BODY[:2], ("Conv", ["r", "conv", "conv_bias"], "m", {"group": groups}), ("GlobalMaxPool", ["m"], "y", {})]
    used = ("first", "first_bias", "conv_bias")
    constants = {name: WEIGHTS[name] for name in used} | {"conv": kernel, "conv_bias": 300 * floats(32, seed=4)}
    model, batch = pixel_graph(nodes, constants), pixels(8)
    statistics = statistics_of(model, batch)
    new = weights(round_weights(model, statistics))["conv"].astype(np.float64)
    assert np.array_equal(new, new.astype(np.float16))
    mean = statistics["r"].mean.reshape(groups, 1, 16 // groups, 1, 1)
    offset = constants["conv_bias"].astype(np.float16) - constants["conv_bias"].astype(np.float64)

    def errors(rounded):
        by_group = (rounded - kernel).reshape(groups, 32 // groups, 16 // groups, 3, 3) * mean
        return np.abs(by_group.sum(axis=(2, 3, 4)).reshape(-1) + offset)

    plain = errors(kernel.astype(np.float16).astype(np.float64))
    assert errors(new).sum() < plain.sum() / 3
    assert (errors(new) <= plain + 1e-9).all()


def test_what_stays_fp32_keeps_its_weights():
    model = build()
    names = [node.name for node in model.graph.node]
    result = round_weights(model, statistics_of(model, pixels(4)), kept=names)
    assert all(np.array_equal(value, weights(result)[name]) for name, value in weights(model).items())


@pytest.mark.parametrize("case", ["no statistics", "shared", "too large"])
def test_what_is_left_as_it_is(case):
    nodes, constants = [*BODY, *HEADS["Gemm"]], dict(WEIGHTS)
    if case == "shared":
        nodes[2:3] = [("Conv", ["r", "square"], "q", SAME), ("Conv", ["q", "square"], "m", SAME)]
        constants["square"], constants["dense"] = floats(16, 16, 3, 3, seed=8), floats(16, 5, seed=5)
    if case == "too large":
        constants["conv"] = WEIGHTS["conv"].copy()
        constants["conv"][0, 0, 0, 0] = 70_000
    used = {name for _, inputs, *_ in nodes for name in inputs}
    model = pixel_graph(nodes, {k: v for k, v in constants.items() if k in used}, shapes={"y": ["batch", 5]})
    statistics = {} if case == "no statistics" else statistics_of(model, pixels(4))
    old, new = weights(model), weights(round_weights(model, statistics))
    for name in {"conv", "square"} & old.keys():
        assert np.array_equal(old[name], new[name])
    assert np.array_equal(old["dense"], new["dense"]) == (case == "no statistics")


def test_the_largest_fp16_value_and_dead_inputs_stay_finite():
    """A weight at the end of FP16's range has no other neighbour, and a mean of 0 moves nothing."""
    kernel = WEIGHTS["conv"].copy()
    kernel[0, 0], kernel[1, 1] = 65504, -65504
    model = build(conv=kernel)
    statistics = statistics_of(model, pixels(4))
    found = statistics["r"]
    mean = found.mean.copy()
    mean[:4] = 0
    new = weights(round_weights(model, {**statistics, "r": ChannelStatistics(found.low, found.high, mean)}))["conv"]
    assert np.isfinite(new).all()
    assert (new[0, 0] == 65504).all()
    assert (new[1, 1] == -65504).all()


def test_weights_that_fp16_loses_are_not_rounded():
    """Their nodes stay FP32 (see `unfit_for_fp16`), where rounding them would lose just what that saves."""
    small = {"first": WEIGHTS["first"] * np.float32(1e-5), "conv": WEIGHTS["conv"] * np.float32(1e-7)}
    model = build(**small)
    statistics = statistics_of(model, pixels(4))
    new = weights(round_weights(model, statistics))
    assert np.array_equal(new["first"], small["first"])
    assert np.array_equal(new["conv"], small["conv"])


def test_a_resnet_comes_closer(exported):
    exact = run_onnx(exported.model, images(16, seed=9))[0]
    statistics = statistics_of(exported.model, images(32, seed=2))
    found = {
        name: sqnr_db(exact, run_onnx(to_half(model), images(16, seed=9))[0])
        for name, model in (("plain", exported.model), ("mean", round_weights(exported.model, statistics)))
    }
    assert found["mean"] > found["plain"]


def test_how_many_weights_are_sorted_at_a_time_changes_nothing(monkeypatch):
    rng = np.random.default_rng(0)
    rows, mean = rng.standard_normal((8, 300)), rng.standard_normal((8, 300))
    mean[:, :200] = 1.0  # equal prices
    offset = rng.standard_normal(8)  # more than the cheapest weights take away
    found = []
    for few in (1, 40, 1000):
        monkeypatch.setattr(weight_rounding, "_FEW", few)
        found.append(weight_rounding._keep_mean(rows, mean, offset).tobytes())
    assert found[0] == found[1] == found[2]
