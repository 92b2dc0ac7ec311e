import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from export.errors import ProjectError
from export.int8.bias_correction import added_to_biases, bias_errors, collect_mean_maps, correct_biases
from export.int8.placement import Kept, quantizable_tensors, quantized_edges
from export.int8.qdq import quantize
from export.int8.scales import Scales
from export.onnx_passes import graph
from tests.export.conftest import calibrate, run_onnx
from tests.export.keras_models import images
from tests.export.tiny_graphs import floats, pixel_graph, pixels

SAME = {"pads": [1, 1, 1, 1]}
WEIGHTS = {
    "a": floats(4, 4, 3, 3, seed=1) / 100, "a_bias": floats(4, seed=2),
    "b": floats(4, 4, 3, 3, seed=3), "b_bias": floats(4, seed=4),
    "c": floats(4, 2, 3, 3, seed=5), "c_bias": floats(4, seed=6),
    "dense": floats(4, 3, seed=7),
}  # fmt: skip
NODES = [
    ("Conv", ["f", "a", "a_bias"], "s", SAME),
    ("Relu", ["s"], "r", {}),
    ("Conv", ["r", "b", "b_bias"], "m", SAME),
    ("Add", ["m", "r"], "t", {}),
    ("Relu", ["t"], "u", {}),
    ("Conv", ["u", "c", "c_bias"], "v", {"strides": [2, 2], "group": 2}),
    ("Relu", ["v"], "w", {}),
    ("GlobalAveragePool", ["w"], "g", {}),
    ("Flatten", ["g"], "k", {}),
    ("MatMul", ["k", "dense"], "y", {}),
]
FIRST, SECOND, ADD, THIRD = "Conv_1", "Conv_3", "Add_4", "Conv_6"


def build(nodes=NODES, **others):
    used = {name for _, inputs, *_ in nodes for name in inputs}
    return pixel_graph(nodes, {k: v for k, v in {**WEIGHTS, **others}.items() if k in used}, shapes={"y": ["batch", 3]})


def coarse(model, batch, factor=6.0):
    """Scales that clip nothing and round a lot."""
    scales = calibrate(model, [batch])
    return Scales({name: scale * factor for name, scale in scales.scales.items()}, "minmax", len(batch))


def inner(model, batch, *names):
    probe = graph.copy_model(model)
    probe.graph.output.extend(helper.make_tensor_value_info(n, TensorProto.FLOAT, None) for n in names)
    return run_onnx(probe, batch, exact=True)[-len(names) :]


def rounded(x, scale):
    """QuantizeLinear and DequantizeLinear in float64."""
    scale = np.float64(np.float32(scale))
    return np.clip(np.round(x.astype(np.float64) / scale), -128, 127) * scale


def rounded_weight(weight):
    largest = np.abs(weight).max(axis=(1, 2, 3), keepdims=True).astype(np.float64)
    return rounded(weight, np.maximum(largest / 127, 2.0**-14))


def convolve(x, weight, bias, pads=0, stride=1, group=1):
    """In float64, one output position at a time."""
    x = np.pad(np.asarray(x, np.float64), ((0, 0), (0, 0), (pads, pads), (pads, pads)))
    out, _, height, width = weight.shape
    rows, columns = ((x.shape[axis] - size) // stride + 1 for axis, size in ((2, height), (3, width)))
    y = np.empty((len(x), out, rows, columns))
    for i in range(rows):
        for j in range(columns):
            patch = x[:, :, i * stride : i * stride + height, j * stride : j * stride + width]
            parts = np.split(patch, group, axis=1), np.split(weight.astype(np.float64), group)
            y[:, :, i, j] = np.concatenate([np.einsum("nchw,ochw->no", p, w) for p, w in zip(*parts)], axis=1)
    return y + bias.astype(np.float64).reshape(1, -1, 1, 1)


def biases(model):
    return {k: numpy_helper.to_array(v) for k, v in graph.constants(model.graph).items() if k.endswith("bias")}


def corrected(model, batch, scales, kept=()):
    maps = collect_mean_maps(model, [batch[:5], batch[5:]], scales)
    return correct_biases(model, bias_errors(model, maps), kept)


def test_means_are_those_of_the_values():
    model, batch = build(), pixels(7)
    scales = coarse(model, batch)
    names = quantizable_tensors(model)
    maps = collect_mean_maps(model, [batch[:1], batch[1:]], scales)
    assert list(maps) == names
    for name, values in zip(names, inner(model, batch, *names)):
        limit = np.abs(values).max()
        assert np.abs(maps[name].exact - values.mean(axis=0, keepdims=True, dtype=np.float64)).max() <= 1e-5 * limit
        exact = rounded(values, scales.scales[name]).mean(axis=0, keepdims=True)
        assert np.abs(maps[name].quantized - exact).max() <= 1e-5 * limit + scales.scales[name] * 1e-4


def test_the_mean_error_of_each_channel_vanishes():
    """Each Conv, fed with exact inputs, gives on average what it gave before quantization."""
    model, batch = build(), pixels(7)
    scales = coarse(model, batch)
    new, count = corrected(model, batch, scales)
    assert count == 3
    old_bias, new_bias = biases(model), biases(new)
    f, r, u = inner(model, batch, "f", "r", "u")
    for x, source, name, options in (
        (f, "f", "a", {"pads": 1}),
        (r, "r", "b", {"pads": 1}),
        (u, "u", "c", {"stride": 2, "group": 2}),
    ):
        bias = f"{name}_bias"
        exact = convolve(x, WEIGHTS[name], old_bias[bias], **options)
        shift = 0.0
        if name == "b":  # the skip branch's error is taken out here, too
            shift = rounded(r, scales.scales["r"]) - r
        approximate = [
            convolve(rounded(x, scales.scales[source]), rounded_weight(WEIGHTS[name]), value, **options) + shift
            for value in (old_bias[bias], new_bias[bias])
        ]
        before, after = (np.abs((y - exact).mean(axis=(0, 2, 3))).max() for y in approximate)
        assert before > 1e-4 * np.abs(exact).max(), "there is something to correct"
        assert after <= 2e-6 * np.abs(exact).max(), name


def test_logits_come_closer_on_average():
    model, batch, held_out = build(), pixels(24), pixels(48, seed=1)
    scales = coarse(model, batch)
    new, _ = corrected(model, batch, scales)
    exact = run_onnx(model, held_out)[0]

    def mean_error(candidate):
        int8 = quantize(candidate, scales, base="fp32").model
        return np.abs((run_onnx(int8, held_out, exact=True)[0] - exact).mean(axis=0)).sum()

    assert mean_error(new) < 0.5 * mean_error(model)


def test_the_input_stays_and_only_biases_change():
    model, batch = build(), pixels(6)
    before = model.SerializeToString()
    new, _ = corrected(model, batch, coarse(model, batch))
    assert model.SerializeToString() == before
    tensors = graph.constants(new.graph)
    different = {n for n, t in graph.constants(model.graph).items() if t != tensors[n]}
    assert different == {"a_bias", "b_bias", "c_bias"}
    assert list(new.graph.node) == list(model.graph.node)


def test_a_shared_or_missing_bias_is_left_alone():
    nodes = [*NODES]
    nodes[2] = ("Conv", ["r", "b", "a_bias"], "m", SAME)
    nodes[5] = ("Conv", ["u", "c"], "v", {"group": 2})
    model, batch = build(nodes), pixels(6)
    new, count = corrected(model, batch, coarse(model, batch))
    assert count == 0
    assert new == model


@pytest.mark.parametrize(("kept", "same"), [({FIRST}, {"a_bias"}), ({SECOND, ADD}, {"b_bias"}), ({THIRD}, {"c_bias"})])
def test_what_stays_in_float_is_not_corrected(kept, same):
    model, batch = build(), pixels(6)
    new, count = corrected(model, batch, coarse(model, batch), {name: Kept("fp16", "") for name in kept})
    assert count == 2
    old, found = biases(model), biases(new)
    assert {name for name in old if np.array_equal(old[name], found[name])} == same


def test_a_conv_in_float_still_makes_up_for_the_skip_branch():
    model, batch = build(), pixels(6)
    scales = coarse(model, batch)
    assert {edge.node for edge in quantized_edges(model, {SECOND})} >= {ADD}
    new, _ = corrected(model, batch, scales, {SECOND})
    (r,) = inner(model, batch, "r")
    error = (rounded(r, scales.scales["r"]) - r).mean(axis=(0, 2, 3))
    np.testing.assert_allclose(biases(new)["b_bias"], WEIGHTS["b_bias"] - error, rtol=1e-4, atol=1e-5)


def test_what_was_added_is_told_beside_the_division_of_equalization():
    factors = {"s": np.array([2.0, 0.5, 4.0, 1.0])}
    added = np.array([1.0, -2.0, 0.25, 3.0])
    nodes = [*NODES]
    nodes[5] = ("Conv", ["u", "c"], "v", {"group": 2})
    before = build(nodes)
    after = build(nodes, a_bias=(WEIGHTS["a_bias"] / factors["s"] + added).astype(np.float32))
    found = added_to_biases(before, after, factors)
    assert found.keys() == {FIRST, SECOND}, "the third has no bias"
    np.testing.assert_allclose(found[FIRST], added, rtol=1e-5)
    np.testing.assert_array_equal(found[SECOND], np.zeros(4))


def test_no_images_are_refused():
    model = build()
    with pytest.raises(ProjectError, match="Received: none"):
        collect_mean_maps(model, [], coarse(model, pixels(3)))


def test_a_resnet_is_corrected_throughout(quantized):
    exported, scales, _, _ = quantized
    errors = bias_errors(exported.model, collect_mean_maps(exported.model, [images(8)], scales))
    new, count = correct_biases(exported.model, errors)
    assert count == 15
    assert np.isfinite(run_onnx(new, images(2))[0]).all()
