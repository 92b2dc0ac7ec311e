import math

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from onnx import TensorProto, helper, numpy_helper

from export import calibration
from export.calibration import BINS, Ranges, collect_histograms, collect_statistics, count_bins
from export.errors import ProjectError
from export.int8.equalization import STRENGTHS, equalize
from export.int8.placement import measured_tensors, quantizable_tensors
from export.int8.scales import METHODS, clipping_point
from export.onnx_passes import graph
from export.ort_session import open_session
from tests.export.keras_models import images
from tests.export.tiny_graphs import pixel_graph
from tests.export.tiny_graphs import pixels as noise

RELU = "conv1_relu/Relu:0"


@pytest.fixture(scope="module")
def pixels() -> np.ndarray:
    return images(24, seed=3)


def values_of(model, tensor, pixels):
    """Every value (N, C, ...), one image at a time, through the reference runtime of ONNX itself."""
    from onnx.reference import ReferenceEvaluator

    probe = graph.copy_model(model)
    probe.graph.output.append(helper.make_tensor_value_info(tensor, TensorProto.FLOAT, None))
    session = ReferenceEvaluator(probe)
    values = [session.run([tensor], {"images": pixels[i : i + 1]})[0] for i in range(len(pixels))]
    return np.concatenate(values).astype(np.float64)


def by_channel(values):
    return np.moveaxis(values, 1, 0).reshape(values.shape[1], -1)


def assert_close(received, expected, rel=1e-5):
    """Each channel within rounding in float32 of the largest."""
    for part in ("low", "high", "mean"):
        a, b = getattr(received, part), getattr(expected, part)
        assert np.abs(a - b).max() <= rel * expected.limit, part


def test_statistics_are_those_of_the_values(v1, pixels):
    tensors = [RELU, "conv2_block1_3_conv/Conv:0"]
    seen, found = collect_statistics(v1.model, [pixels[:2], pixels[2:3]], tensors)
    assert seen == 3
    assert list(found) == tensors
    for name in tensors:
        rows = by_channel(values_of(v1.model, name, pixels[:3]))
        limit = np.abs(rows).max()
        for received, expected in (
            (found[name].low, rows.min(axis=1)),
            (found[name].high, rows.max(axis=1)),
            (found[name].mean, rows.mean(axis=1)),
            (found[name].largest, np.abs(rows).max(axis=1)),
        ):
            assert received.shape == (rows.shape[0],)
            assert received.dtype == np.float64
            assert np.abs(received - expected).max() <= 1e-5 * limit
        assert found[name].limit == pytest.approx(limit, rel=1e-5)
    assert (found[RELU].low == 0).all()  # behind a Relu
    assert (found[tensors[1]].low < 0).all()


def test_a_flat_tensor_is_its_own_statistics():
    """(N, C) has no positions to reduce; it may be an output of the model, too."""
    model = pixel_graph(
        [("GlobalAveragePool", ["f"], "p", {}), ("Flatten", ["p"], "y", {})], shapes={"y": ["batch", 4]}
    )
    batch = noise(5)
    found = collect_statistics(model, [batch[:4], batch[4:]], ["y"])[1]["y"]
    means = batch.astype(np.float64).mean(axis=(2, 3))
    np.testing.assert_allclose(found.low, means.min(axis=0), rtol=1e-5)
    np.testing.assert_allclose(found.high, means.max(axis=0), rtol=1e-5)
    np.testing.assert_allclose(found.mean, means.mean(axis=0), rtol=1e-5)


def test_neither_batch_size_nor_order_matters(exported, pixels):
    tensors = measured_tensors(exported.model)
    whole = collect_statistics(exported.model, [pixels], tensors)[1]
    single = collect_statistics(exported.model, (p[None] for p in pixels), tensors)[1]
    ragged = collect_statistics(exported.model, [pixels[17:], pixels[5:17], pixels[:5]], tensors)[1]
    assert set(whole) == set(tensors)
    for name in tensors:
        assert_close(single[name], whole[name])
        assert_close(ragged[name], whole[name])


def histograms_of(model, batches):
    tensors = quantizable_tensors(model)
    statistics = collect_statistics(model, batches, tensors)[1]
    return collect_histograms(model, batches, [Ranges({name: statistics[name].limit for name in tensors})])[0]


@pytest.mark.parametrize("strength", STRENGTHS)
def test_histograms_of_an_equalized_model_come_from_the_original_one(v1, pixels, strength):
    """A value at the edge of a bin may go to its neighbour, as the equalized model rounds it in another way."""
    tensors = quantizable_tensors(v1.model)
    base = equalize(v1.model, collect_statistics(v1.model, [pixels], measured_tensors(v1.model))[1], strength)
    assert max(np.ptp(base.factors[name]) for name in base.factors) > 0.1
    limits = {name: base.statistics[name].limit for name in tensors}
    plain = Ranges(dict.fromkeys(tensors, 1.0))
    exact = collect_histograms(base.model, [pixels], [Ranges(limits)])[0]
    first, found = collect_histograms(v1.model, [pixels[:7], pixels[7:]], [plain, Ranges(limits, base.factors)])
    ones = collect_histograms(v1.model, [pixels], [plain])[0]
    for name in tensors:
        np.testing.assert_array_equal(first[name].counts, ones[name].counts)
        assert found[name].limit == exact[name].limit
        moved = np.abs(np.cumsum(found[name].counts - exact[name].counts))
        assert moved.max() <= 1e-3 * exact[name].counts.sum() + 2, name


@given(
    values=arrays(np.float32, (3, 4, 5), elements=st.integers(-(2**20), 2**20).map(lambda value: value / 64)),
    divisors=arrays(np.float64, 4, elements=st.sampled_from([0.25, 0.5, 1.0, 8.0])),
)
@settings(deadline=None)
def test_values_are_counted_in_the_units_of_their_channel(values, divisors):
    """Powers of two divide exactly, so that no edge is an excuse."""
    divided = (values / divisors[:, None]).astype(np.float32)
    limit = float(np.abs(divided).max())
    np.testing.assert_array_equal(count_bins(values, limit, divisors), count_bins(divided, limit))


def test_clipping_points_depend_on_neither_within_a_bin(v1, pixels):
    whole = histograms_of(v1.model, [pixels])
    ragged = histograms_of(v1.model, [pixels[17:], pixels[5:17], pixels[:5]])
    for name, histogram in whole.items():
        assert ragged[name].counts.sum() == histogram.counts.sum()
        for method in (m for m in METHODS if m == "minmax" or m.startswith("percentile")):
            difference = abs(clipping_point(ragged[name], method) - clipping_point(histogram, method))
            assert difference <= 1.01 * histogram.width, (name, method)


@settings(max_examples=15, deadline=None)
@given(data=st.data())
def test_whole_numbers_give_exactly_the_same_scales(data):
    """Small whole weights make float32 exact, so that nothing at all may differ."""
    random = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    weights = {name: random.integers(-3, 4, (4, 4, 3, 3)).astype(np.float32) for name in ("a", "b")}
    nodes = [("Conv", ["f", "a"], "c", {}), ("Relu", ["c"], "r", {}), ("Conv", ["r", "b"], "y", {})]
    model = pixel_graph(nodes, weights, shapes={"y": ["batch", 4, 2, 2]})
    batch = noise(9, seed=1)
    order = random.permutation(9)
    cuts = sorted(data.draw(st.sets(st.integers(1, 8))))
    whole, split = (histograms_of(model, b) for b in ([batch], np.split(batch[order], cuts)))
    assert whole.keys() == split.keys()
    for name, histogram in whole.items():
        assert split[name].limit == histogram.limit
        np.testing.assert_array_equal(split[name].counts, histogram.counts)
        assert all(clipping_point(split[name], m) == clipping_point(histogram, m) for m in METHODS)


@given(
    values=arrays(np.float32, st.integers(1, 200), elements=st.floats(-1e4, 1e4, width=32)),
    cut=st.integers(0, 200),
    seed=st.integers(0, 2**32 - 1),
)
@settings(deadline=None)
def test_counts_of_parts_add_up_in_any_order(values, cut, seed):
    limit = float(np.abs(values).max())
    whole = count_bins(values, limit)
    shuffled = np.random.default_rng(seed).permutation(values)
    parts = count_bins(shuffled[:cut], limit) + count_bins(shuffled[cut:], limit)
    np.testing.assert_array_equal(parts, whole)
    assert whole.sum() == len(values)
    assert whole.dtype == np.int64
    for value in values if limit > 1e-30 else ():  # each value is in its bin, rounding at an edge aside
        exact = min(abs(float(value)) * BINS / limit, BINS - 1.0)
        assert whole[max(math.floor(exact * (1 - 1e-6)), 0) : math.floor(exact * (1 + 1e-6)) + 1].any()


def test_what_lies_above_the_limit_is_in_the_last_bin():
    counts = count_bins(np.array([[-9.0, 0.0], [1.0, 0.5]], np.float32), 1.0)
    assert counts[[0, BINS // 2, BINS - 1]].tolist() == [1, 1, 2]
    assert counts.sum() == 4
    assert count_bins(np.zeros(3, np.float32), 0.0)[0] == 3


@pytest.mark.parametrize("tiny", [1e-36, 1e-40, 1e-45])
def test_denormal_values_are_counted_as_well(tiny):
    values = np.array([tiny, -tiny, 0], np.float32)
    assert count_bins(values, float(values.max())).sum() == 3


@pytest.mark.parametrize("histograms", [False, True])
def test_batches_are_streamed(v1, pixels, histograms, monkeypatch):
    """The next batch is asked for only when the one before has been run."""
    seen, asked = [], []

    class Session:
        def __init__(self, *arguments, **options):
            self.session = open_session(*arguments, **options)

        def run(self, names, feeds):
            seen.extend(len(batch) for batch in feeds.values())
            return self.session.run(names, feeds)

    def batches():
        for start in range(0, 24, 8):
            asked.append((start, len(seen)))
            yield pixels[start : start + 8]

    monkeypatch.setattr(calibration, "open_session", Session)
    if histograms:
        found = collect_histograms(v1.model, batches(), [Ranges({RELU: 1.0})])[0]
        assert found[RELU].counts.sum() == 24 * 8 * 16 * 16
    else:
        collect_statistics(v1.model, batches(), [RELU])
    assert seen == [8, 8, 8]
    assert asked == [(0, 0), (8, 1), (16, 2)]


def test_a_negative_zero_pad_is_not_fused_away(v2, pixels):
    """ONNX Runtime's Pad_Fusion would make the pool of ResNetV2 wrong."""
    tensor = next(n for n in v2.model.graph.node if n.op_type == "MaxPool").output[0]
    found = collect_statistics(v2.model, [pixels[:2]], [tensor])[1][tensor]
    rows = by_channel(values_of(v2.model, tensor, pixels[:2]))
    assert np.abs(found.low - rows.min(axis=1)).max() <= 1e-4 * np.abs(rows).max()
    assert np.abs(found.high - rows.max(axis=1)).max() <= 1e-4 * np.abs(rows).max()


def with_value(model, name, value):
    result = graph.copy_model(model)
    tensor = next(t for t in result.graph.initializer if t.name == name)
    values = numpy_helper.to_array(tensor).copy()
    values[2] = value
    tensor.CopyFrom(numpy_helper.from_array(values, name))
    return result


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_weights_that_are_not_finite_are_named(v1, pixels, bad):
    model = with_value(v1.model, "conv2_block1_1_conv/Conv/bias", bad)
    with pytest.raises(ProjectError, match="conv2_block1_1_conv/Conv/bias"):
        collect_statistics(model, [pixels[:2]], [RELU])


@pytest.mark.parametrize("channel", [3e38, -3e38])
def test_values_that_are_not_finite_are_named(v1, pixels, channel):
    """Finite weights whose sum overflows."""
    tensors = [RELU, "conv2_block1_1_conv/Conv:0"]
    model = with_value(v1.model, "conv2_block1_1_conv/Conv/weight", channel)
    with pytest.raises(ProjectError, match="conv2_block1_1_conv/Conv:0"):
        collect_statistics(model, [pixels[:2]], tensors)


@pytest.mark.parametrize("tint", [0, 255, (10, 200, 30)])
def test_images_of_one_colour_each_are_refused(v1, pixels, tint):
    plain = np.empty((3, 32, 32, 3), np.uint8)
    plain[:] = np.array([0, 1, 2])[:, None, None, None] if tint == 0 else tint
    with pytest.raises(ProjectError, match="3 of one colour each"):
        collect_statistics(v1.model, [plain[:2], plain[2:]], [RELU])
    assert collect_statistics(v1.model, [plain, pixels[:1]], [RELU])[0] == 4


@pytest.mark.parametrize(
    ("batches", "message"),
    [
        ([], "Received: none"),
        ([np.zeros((2, 32, 32, 3), np.float32)], "float32"),
        ([np.zeros((2, 16, 16, 3), np.uint8)], r"\(2, 16, 16, 3\)"),
        ([np.zeros((32, 32, 3), np.uint8)], "uint8 "),
        ([np.zeros((0, 32, 32, 3), np.uint8)], r"\(0, 32, 32, 3\)"),
    ],
)
def test_batches_that_do_not_fit(v1, batches, message):
    with pytest.raises(ProjectError, match=message):
        collect_statistics(v1.model, batches, [RELU])
    with pytest.raises(ProjectError, match=message):
        collect_histograms(v1.model, batches, [Ranges({RELU: 1.0})])


def test_unknown_tensors_are_named(v1, pixels):
    with pytest.raises(ProjectError, match="nope:0"):
        collect_statistics(v1.model, [pixels], ["nope:0"])
    with pytest.raises(ProjectError, match="nope:0"):
        collect_histograms(v1.model, [pixels], [Ranges({"nope:0": 1.0})])


def test_probing_does_not_change_the_model(v1, pixels):
    before = v1.model.SerializeToString()
    histograms_of(v1.model, [pixels[:1]])
    assert v1.model.SerializeToString() == before
    assert onnx.load(v1.path) == v1.model
