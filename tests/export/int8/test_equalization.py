import numpy as np
import pytest
from onnx import numpy_helper

from export.calibration import collect_statistics
from export.int8.equalization import equalize
from export.int8.placement import measured_tensors
from export.int8.qdq import quantize
from export.metrics.distances import sqnr_db
from export.onnx_passes import graph
from export.onnx_passes.cut import with_outputs
from tests.export.conftest import calibrate, run_onnx
from tests.export.keras_models import images
from tests.export.tiny_graphs import floats, pixel_graph, pixels


def widened(*shape, seed):
    """A kernel whose output channels differ in size by up to a hundred."""
    kernel = floats(*shape, seed=seed) / 50
    return kernel * np.geomspace(0.1, 10, shape[0], dtype=np.float32).reshape(-1, 1, 1, 1)


def statistics_of(model, batch):
    return collect_statistics(model, [batch], measured_tensors(model))[1]


def assert_same_answers(model, changed, batch):
    for expected, received in zip(run_onnx(model, batch), run_onnx(changed, batch)):
        assert np.abs(received - expected).max() <= 1e-5 * np.abs(expected).max()


def assert_statistics(equalized, batch):
    """What it claims of each channel is what a measurement finds."""
    measured = statistics_of(equalized.model, batch)
    assert list(equalized.statistics) == list(measured)
    for name, found in equalized.statistics.items():
        for part in ("low", "high", "mean"):
            difference = np.abs(getattr(found, part) - getattr(measured[name], part))
            assert (difference <= 2e-5 * measured[name].largest + 1e-6 * measured[name].limit).all(), name


WEIGHTS = {
    "a": widened(4, 4, 3, 3, seed=1), "a_bias": floats(4, seed=2),
    "b": widened(4, 4, 3, 3, seed=3), "b_bias": floats(4, seed=4),
    "c": widened(4, 4, 1, 1, seed=5), "c_bias": floats(4, seed=6),
    "gray": floats(1, 4, 1, 1, seed=10),
    "pads": np.array([0, 0, 1, 1, 0, 0, 1, 1]), "zero": np.float32(0), "one": np.float32(1),
    "dense": floats(4, 3, seed=7), "dense_t": floats(3, 4, seed=7), "dense_bias": floats(3, seed=8),
    "to_flat": np.array([0, 4]),
}  # fmt: skip
SAME = {"pads": [1, 1, 1, 1]}
FIRST = ("Conv", ["f", "a", "a_bias"], "s", SAME)
RESIDUAL = [
    FIRST,
    ("Relu", ["s"], "r", {}),
    ("Conv", ["r", "b", "b_bias"], "m", SAME),
    ("Add", ["m", "r"], "t", {}),
    ("Relu", ["t"], "u", {}),
    ("Conv", ["u", "c", "c_bias"], "y", {}),
]
POOLED = [
    FIRST,
    ("Relu", ["s"], "r", {}),
    ("Pad", ["r", "pads", "zero"], "p", {}),
    ("MaxPool", ["p"], "q", {"kernel_shape": [3, 3], "strides": [2, 2]}),
    ("Conv", ["q", "b", "b_bias"], "y", SAME),
]


def head(*nodes):
    """A Conv read by a Conv and, through a global pool, by a classifier."""
    start = [FIRST, ("LeakyRelu", ["s"], "r", {"alpha": 0.1}), ("Conv", ["r", "b", "b_bias"], "z", SAME)]
    end = [("Add", ["z", "r"], "t", {}), ("GlobalAveragePool", ["t"], "g", {})]
    return [*start, *end, *nodes]


FLAT = ("Flatten", ["g"], "v", {})
EQUALIZED = {
    "residual": RESIDUAL,
    "pad and pool": POOLED,
    "gemm": head(FLAT, ("Gemm", ["v", "dense", "dense_bias"], "y", {})),
    "gemm transB": head(FLAT, ("Gemm", ["v", "dense_t", "dense_bias"], "y", {"transB": 1, "alpha": 0.5})),
    "matmul": head(("Reshape", ["g", "to_flat"], "v", {}), ("MatMul", ["v", "dense"], "y", {})),
}


def build(nodes, outputs=("y",), **others):
    weights = {**WEIGHTS, **others}
    used = {name for _, inputs, *_ in nodes for name in inputs}
    flat = nodes[-1][0] in ("Gemm", "MatMul")
    shapes = {name: ["batch", 3] if flat else ["batch", *[None] * 3] for name in outputs}
    return pixel_graph(nodes, {k: v for k, v in weights.items() if k in used}, outputs=outputs, shapes=shapes)


@pytest.mark.parametrize("kind", EQUALIZED)
def test_answers_stay_and_ranges_become_alike(kind):
    model = build(EQUALIZED[kind])
    batch = pixels(6)
    before = model.SerializeToString()
    statistics = statistics_of(model, batch)
    result = equalize(model, statistics)
    assert model.SerializeToString() == before
    assert result.tensors > 0
    assert_same_answers(model, result.model, batch)
    assert_statistics(result, batch)

    def spread(found):
        return found.largest.max() / found.largest.min()

    assert spread(result.statistics["s"]) < spread(statistics["s"]) / 2
    assert result.statistics["s"].limit == pytest.approx(statistics["s"].limit)


def test_logits_of_a_resnet_stay(exported):
    batch = images(8, seed=5)
    result = equalize(exported.model, statistics_of(exported.model, batch))
    assert result.tensors > 10
    logits, again = run_onnx(exported.model, batch)[0], run_onnx(result.model, batch)[0]
    assert np.abs(again - logits).max() <= 1e-5 * np.abs(logits).max()
    assert_statistics(result, batch)


def touched(model, changed):
    """Names of the weights that differ in any bit."""
    after = graph.constants(changed.graph)
    return {
        name
        for name, tensor in graph.constants(model.graph).items()
        if tensor.SerializeToString() != after[name].SerializeToString()
    }


PAIR = [FIRST, ("Relu", ["s"], "r", {}), ("Conv", ["r", "b", "b_bias"], "y", SAME)]


def test_the_writer_and_the_reader_change_and_nothing_else():
    model = build(RESIDUAL)
    result = equalize(model, statistics_of(model, pixels(4)))
    assert touched(model, result.model) == {"a", "a_bias", "b", "b_bias", "c"}
    assert result.tensors == 5  # s, r, m, t and u; y is the model's output


def test_factors_lead_back_to_the_values_of_the_model_for_every_tensor_that_changed():
    model = build(RESIDUAL)
    batch = pixels(4)
    statistics = statistics_of(model, batch)
    del statistics["s"]  # quantized or not, a tensor of the group changes
    result = equalize(model, statistics)
    assert {"s", "r", "m", "t", "u"} <= set(result.factors)
    names = [*result.factors]
    before, after = (run_onnx(with_outputs(each, names), batch) for each in (model, result.model))
    for name, plain, equalized in zip(names, before, after):
        np.testing.assert_allclose(equalized * result.factors[name].reshape(1, -1, 1, 1), plain, rtol=1e-4, atol=1e-4)
    assert any(np.abs(factors - 1).max() > 0.1 for factors in result.factors.values())


GROUPED = {"b": floats(4, 2, 3, 3, seed=3), "scale": floats(4, 1, 1, seed=9)}


@pytest.mark.parametrize(
    ("nodes", "outputs"),
    [
        ([FIRST, ("Relu", ["s"], "r", {}), ("Conv", ["r", "b"], "y", {"group": 2})], ("y",)),
        ([("Conv", ["f", "b"], "s", {"group": 2}), ("Conv", ["s", "c"], "y", {})], ("y",)),
        ([*PAIR, ("Mul", ["r", "scale"], "w", {}), ("Add", ["y", "w"], "z", {})], ("z",)),
        ([FIRST, ("Add", ["s", "scale"], "r", {}), ("Conv", ["r", "c"], "y", {})], ("y",)),
        ([FIRST, ("Relu", ["s"], "r", {}), ("Conv", ["r", "a"], "y", SAME)], ("y",)),
        ([FIRST, ("Conv", ["s", "c", "a_bias"], "y", {})], ("y",)),
        (PAIR, ("y", "r")),
        (PAIR, ("y", "s")),
        ([FIRST, ("Pad", ["s", "pads", "one"], "p", {}), ("Conv", ["p", "c"], "y", {})], ("y",)),
        ([FIRST, ("Pad", ["s", "pads"], "p", {"mode": "edge"}), ("Conv", ["p", "c"], "y", {})], ("y",)),
        ([FIRST, ("Sigmoid", ["s"], "r", {}), ("Conv", ["r", "c"], "y", {})], ("y",)),
        ([FIRST, ("Relu", ["s"], "r", {}), ("Add", ["r", "f"], "t", {}), ("Conv", ["t", "c"], "y", {})], ("y",)),
        ([FIRST, ("Conv", ["s", "c"], "y", {}), ("ReduceMax", ["s"], "z", {})], ("y", "z")),
        ([FIRST, ("Max", ["s", "one"], "r", {}), ("Conv", ["r", "c"], "y", {})], ("y",)),
        ([FIRST, ("Conv", ["s", "c"], "y", {}), ("Conv", ["f", "c"], "z", {})], ("y", "z")),
        ([FIRST, ("Clip", ["s", "zero", "one"], "r", {}), ("Conv", ["r", "c"], "y", {})], ("y",)),
        (
            [FIRST, ("Conv", ["s", "gray"], "n", {}), ("Add", ["n", "s"], "t", {}), ("Conv", ["t", "c"], "y", {})],
            ("y",),
        ),
    ],
    ids=[
        "grouped reader", "grouped writer", "Mul", "constant Add", "shared weight", "shared bias", "output behind",
        "output", "ones in the Pad", "edge Pad", "Sigmoid", "tied to the input", "another reader",
        "Max with ones", "weight of another reader", "Clip", "Add of one channel to all",
    ],
)  # fmt: skip
def test_what_must_not_be_touched(nodes, outputs):
    grouped = GROUPED if any("group" in attributes for *_, attributes in nodes) else {"scale": GROUPED["scale"]}
    model = build(nodes, outputs, **grouped)
    statistics = statistics_of(model, pixels(4))
    result = equalize(model, statistics)
    assert touched(model, result.model) == set()
    assert result.tensors == 0
    assert all(result.statistics[name] is found for name, found in statistics.items())


def test_the_strength_divides_between_ranges_of_activations_and_of_weights():
    """At 1 all channels have one range; at 0 all inputs of the weights have."""
    kernels = {
        "b": np.array([[1, 0.5, 0.1, 0.1], [0.1, 1, 0.1, 0.2], [0, 0, 0, 0]], np.float32)[..., None, None],
        "c": np.array([[20, 2, 5, 1]], np.float32)[..., None, None],
    }
    nodes = [FIRST, ("Conv", ["s", "b"], "y", {}), ("Conv", ["s", "c"], "z", {})]
    model = build(nodes, ("y", "z"), **kernels)
    statistics = statistics_of(model, pixels(4))
    even = equalize(model, statistics, 1.0).statistics["s"].largest
    np.testing.assert_allclose(even, statistics["s"].limit, rtol=1e-6)
    table = graph.constants(equalize(model, statistics, 0.0).model.graph)
    both = np.concatenate([numpy_helper.to_array(table["b"]), numpy_helper.to_array(table["c"]) / 20])
    reached = np.abs(both).max(axis=(0, 2, 3))
    np.testing.assert_allclose(reached, reached[0], rtol=1e-6)


def test_a_channel_is_as_wide_as_in_the_tensor_where_it_is_widest():
    """Of tensors that share their factors, each in units of its own range."""
    model = build([*RESIDUAL[:3], ("Add", ["m", "s"], "t", {}), *RESIDUAL[4:]], b=100 * WEIGHTS["b"])
    statistics = statistics_of(model, pixels(4))
    found = equalize(model, statistics, 1.0).statistics
    group = ("s", "r", "m", "t", "u")
    widths = np.max([found[name].largest / statistics[name].limit for name in group if name in statistics], axis=0)
    np.testing.assert_allclose(widths, widths[0], rtol=1e-6)


def test_a_matmul_over_the_columns_of_a_map_reads_no_channels():
    nodes = [FIRST, ("MatMul", ["s", "columns"], "y", {}), ("Conv", ["s", "c"], "z", {})]
    weights = {name: WEIGHTS[name] for name in ("a", "a_bias", "c")} | {"columns": floats(4, 4, seed=9)}
    model = pixel_graph(nodes, weights, x=("batch", 4, 4, 4), outputs=("y", "z"))
    batch = pixels(4, 4, 4, 4)
    result = equalize(model, statistics_of(model, batch))
    assert touched(model, result.model) == set()
    assert_same_answers(model, result.model, batch)


def test_a_dead_channel_stays_finite():
    weights = {"a": WEIGHTS["a"].copy(), "a_bias": WEIGHTS["a_bias"].copy(), "b": WEIGHTS["b"].copy()}
    weights["a"][1], weights["a_bias"][1], weights["b"][:, 2] = 0, 0, 0
    model = build(PAIR, **weights)
    batch = pixels(4)
    result = equalize(model, statistics_of(model, batch))
    assert all(np.isfinite(numpy_helper.to_array(t)).all() for t in result.model.graph.initializer)
    assert result.factors["r"].max() <= 1e3 * result.factors["r"].min(), "FP16 has to hold what is multiplied"
    assert_same_answers(model, result.model, batch)


def test_one_wide_channel_costs_less_afterwards():
    kernel = floats(4, 4, 3, 3, seed=1) / 50
    kernel[0] *= 40
    reader = floats(4, 4, 3, 3, seed=2)
    reader[:, 0] /= 40
    model = build(PAIR, a=kernel, b=reader)
    batch, held_out = pixels(8), pixels(8, seed=1)
    result = equalize(model, statistics_of(model, batch))
    exact = run_onnx(model, held_out)[0]

    def sqnr(candidate):
        int8 = quantize(candidate, calibrate(candidate, [batch]), base="fp32").model
        return sqnr_db(exact, run_onnx(int8, held_out, exact=True)[0])

    assert sqnr(result.model) > sqnr(model) + 6
