import json

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from export.calibration import BINS, Histogram, count_bins
from export.errors import ProjectError
from export.int8.placement import quantizable_tensors
from export.int8.scales import INT8_MAX, METHODS, MINIMUM_SCALE, Scales, clipping_point
from tests.export.conftest import calibrate
from tests.export.keras_models import images


def read(folder, text):
    (folder / "scales.json").write_text(text)
    return Scales.read(folder / "scales.json", json.loads(text).get("key", {}) if text.startswith("{") else {})


def histogram_of(values):
    limit = float(np.abs(values).max())
    return Histogram(count_bins(values, limit), limit)


def test_scales_are_symmetric_and_never_too_small():
    tensors = {"a": [-2.54, 1.0], "b": [0.0, 1.27], "dead": [0.0, 0.0]}
    found = {name: histogram_of(np.array(values, np.float32)) for name, values in tensors.items()}
    scales = Scales.from_histograms(found, "minmax", images=3)
    assert scales.scales["a"] == np.float32(np.float32(2.54) / 127)
    assert scales.scales["b"] == np.float32(np.float32(1.27) / 127)
    assert scales.scales["dead"] == MINIMUM_SCALE == 2**-14
    assert scales.smallest == ["dead"]
    assert np.float16(MINIMUM_SCALE) == MINIMUM_SCALE


def test_a_shifted_tensor_has_255_steps():
    values = samples("relu")
    found = {name: histogram_of(values) for name in ("plain", "moved")}
    found |= {name: histogram_of(np.zeros(4, np.float32)) for name in ("dead", "other")}
    for method in METHODS:
        scales = Scales.from_histograms(found, method, images=1, shifted=["other", "dead", "moved"])
        assert scales.shifted == ("moved", "dead", "other"), "in the order of the tensors"
        point = clipping_point(found["moved"], method, 255)
        assert scales.scales["moved"] == np.float32(point / 255)
        assert scales.scales["plain"] == np.float32(clipping_point(found["plain"], method) / 127)
        assert scales.shift("moved") == 128 * scales.scales["moved"] == np.float32(128 * scales.scales["moved"])
        assert scales.shift("plain") == 0
        assert scales.shift("dead") == 128 * MINIMUM_SCALE
    by_largest = Scales.from_histograms(found, "minmax", images=1, shifted=["moved"])
    lowered = values - by_largest.shift("moved")
    codes = np.clip(np.rint(lowered / by_largest.scales["moved"]), -128, 127)
    assert (codes.min(), codes.max()) == (-128, 127)
    restored = codes * by_largest.scales["moved"] + by_largest.shift("moved")
    assert np.abs(restored - values).max() <= by_largest.scales["moved"] * 0.501
    np.testing.assert_array_equal(restored[values == 0], 0)


def test_scales_in_fp16_are_those_of_the_file():
    scales = Scales({"a": 0.1, "b": 0.25, "c": MINIMUM_SCALE}, "lp_3", 4, {"k": 1}, ("a",))
    assert scales.of_type("fp32") == scales
    half = scales.of_type("fp16")
    assert half.scales == {"a": float(np.float16(0.1)), "b": 0.25, "c": MINIMUM_SCALE}
    assert (half.shifted, half.method, half.images, half.key) == (("a",), "lp_3", 4, {"k": 1})
    assert half.shift("a") == 128 * float(np.float16(0.1)) != scales.shift("a")


def test_a_scale_beyond_fp16_stays_as_it_is():
    """Activations of ten million: all of their readers are FP32, so the file does not hold it."""
    scales = Scales({"a": 0.1, "b": 65504.0, "c": 80000.0}, "minmax", 4)
    assert scales.of_type("fp16").scales == {"a": float(np.float16(0.1)), "b": 65504.0, "c": 80000.0}


def test_a_shifted_tensor_without_a_scale_is_named():
    with pytest.raises(ProjectError, match=r"a scale for each shifted tensor. Received: none for \['b'\]"):
        Scales({"a": 1.0}, "minmax", 1, shifted=("a", "b"))


def test_json_round_trip_is_exact(v1, tmp_path):
    scales = calibrate(v1.model, [images(8, seed=3), images(4, seed=4)])
    key = {"model_sha256": "ab" * 32, "images_sha256": "cd" * 32, "preprocessing": v1.spec.to_dict()}
    shifted = tuple(list(scales.scales)[1:3])
    scales = Scales(scales.scales, scales.method, scales.images, key, shifted)
    assert list(scales.scales) == quantizable_tensors(v1.model)
    assert scales.images == 12
    assert scales.method == "minmax"
    assert read(tmp_path, scales.to_json()) == scales
    data = json.loads(scales.to_json())
    assert data["key"] == key
    assert (data["schema"], data["shifted"]) == (2, list(shifted))
    assert all(np.float32(value) == value for value in data["scales"].values())


@pytest.mark.parametrize(
    "text",
    ["", "[]", "{}", '{"scales": {"a": 0.0}, "method": "minmax", "images": 1, "schema": 2, "key": {}}',
     '{"scales": {"a": NaN}, "method": "minmax", "images": 1, "schema": 2, "key": {}}',
     '{"scales": {"a": 1.0}, "method": "minmax", "key": {}, "schema": 2}'],
)  # fmt: skip
def test_bad_json(text, tmp_path):
    with pytest.raises(ProjectError, match="Expected"):
        read(tmp_path, text)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"schema": 1}, "scales of schema 2 in .*scales.json. Received: schema 1. Run the quantize stage again"),
        ({"images": "8"}, "'images' of type a whole number in .*scales.json. Received: '8'"),
        ({"scales": {"a": 0.0}}, "at least 2.-14. Received: 0.0 for 'a'"),
        ({"bins": 8}, "the unknown key 'bins'"),
    ],
)
def test_a_damaged_record_is_one_sentence_with_the_key(change, said, tmp_path):
    tree = json.loads(Scales({"a": 1.0}, "minmax", 8).to_json())
    with pytest.raises(ProjectError, match=said):
        read(tmp_path, json.dumps(tree | change))


def test_a_record_of_before_schemas_is_refused_by_its_number(tmp_path):
    with pytest.raises(ProjectError, match=r"Received: an object without the key 'schema'\. Run the quantize"):
        read(tmp_path, '{"scales": {"a": 1.0}, "method": "minmax", "images": 1, "key": {}}')


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"model_sha256": "ef"}, "model_sha256"),
        ({"images_sha256": "01", "preprocessing": {"mode": "tf"}}, "images_sha256, preprocessing"),
        ({"quantize": {"equalize": False}}, "quantize"),
    ],
)
def test_scales_of_another_key_are_refused_and_named(change, named, tmp_path):
    key = {"model_sha256": "ab", "images_sha256": "cd", "preprocessing": {"mode": "caffe"}}
    path = tmp_path / "scales.json"
    path.write_text(Scales({"a": 1.0}, "minmax", 1, key).to_json())
    with pytest.raises(ProjectError, match=f"scales with another {named}\\."):
        Scales.read(path, key | change)
    path.write_text('{"scales": {"a": 1.0}, "method": "minmax", "images": 1, "schema": 2}')
    with pytest.raises(ProjectError, match="model_sha256"):
        Scales.read(path, key)


# --- each method against the values themselves ------------------------------------------------------------------------


def samples(kind):
    random = np.random.default_rng(5)
    values = {
        "relu": lambda: np.maximum(random.normal(-0.5, 1, 39_989), 0),
        "gauss": lambda: random.normal(0, 3, 39_989),
        "tails": lambda: random.standard_t(2, 39_989),
        "outlier": lambda: np.append(random.uniform(0, 1, 39_989), 50.0),
    }[kind]()
    return values.astype(np.float32)


KINDS = ("relu", "gauss", "tails", "outlier")


@pytest.mark.parametrize("kind", KINDS)
def test_minmax_is_the_largest_value(kind):
    values = samples(kind)
    assert clipping_point(histogram_of(values), "minmax") == np.abs(values).max()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("share", ["99.9", "99.99", "99.999"])
def test_a_percentile_is_within_a_bin_of_that_of_the_values(kind, share):
    values = samples(kind)
    histogram = histogram_of(values)
    exact = np.quantile(np.abs(values).astype(np.float64), float(share) / 100, method="inverted_cdf")
    found = clipping_point(histogram, f"percentile_{share}")
    assert exact - 1e-6 * histogram.limit <= found <= exact + 1.001 * histogram.width


def norm_of_error(values, point, power, steps):
    scale = point / steps
    exact = np.abs(values).astype(np.float64)
    return float(np.mean(np.abs(exact - np.minimum(np.round(exact / scale), steps) * scale) ** power))


POWERS = {"mse": 2.0, "lp_2.4": 2.4, "lp_3": 3.0}


@pytest.mark.parametrize("steps", [INT8_MAX, 255])
@pytest.mark.parametrize("method", POWERS)
@pytest.mark.parametrize("kind", KINDS)
def test_a_norm_is_the_best_of_the_values_themselves(kind, method, steps):
    """As good as the best candidate, in float64: bins blur the values a little, more if a step is 8 bins wide."""
    values = samples(kind)
    histogram = histogram_of(values)
    points = np.arange(steps + 1, BINS + 1, 8) * histogram.width
    errors = [norm_of_error(values, point, POWERS[method], steps) for point in points]
    found = clipping_point(histogram, method, steps)
    assert np.abs(points - found).min() < 1e-9 * found
    assert norm_of_error(values, found, POWERS[method], steps) <= (1.005 if steps == INT8_MAX else 1.02) * min(errors)
    assert max(errors) > 1.1 * min(errors), "the choice matters"


@given(
    counts=arrays(np.int64, BINS, elements=st.sampled_from([0, 0, 0, 1, 3, 1000])),
    method=st.sampled_from(sorted(POWERS)),
    steps=st.sampled_from([INT8_MAX, 255]),
)
@settings(max_examples=30, deadline=None)
def test_no_candidate_has_a_smaller_norm(counts, method, steps):
    """Of the histogram itself, so that nothing is blurred, and whatever its shape."""
    assume(counts[1:].any())
    histogram = Histogram(counts, 1.0)
    centres = (np.arange(BINS) + 0.5) / BINS

    def error(point):
        scale = point / steps
        rounded = np.minimum(np.rint(centres / scale), steps) * scale
        return float(counts @ np.abs(centres - rounded) ** POWERS[method])

    least = min(error(bins / BINS) for bins in range(steps + 1, BINS + 1, 8))
    assert error(clipping_point(histogram, method, steps)) <= least * (1 + 1e-9)


@pytest.mark.parametrize("steps", [INT8_MAX, 255])
@pytest.mark.parametrize("kind", KINDS)
def test_a_larger_power_clips_less(kind, steps):
    histogram = histogram_of(samples(kind))
    points = [clipping_point(histogram, method, steps) for method in ("mse", "lp_2.4", "lp_3", "minmax")]
    assert points == sorted(points)


def divergence(counts, bins, levels=128):
    """Kullback-Leibler divergence of a distribution clipped after some bins and its levels, value by value."""
    wanted = [float(c) for c in counts[:bins]]
    wanted[-1] += float(sum(counts[bins:]))
    given = [0.0] * bins
    for level in range(levels):
        members = [i for i in range(bins) if i * levels // bins == level]
        filled = [i for i in members if counts[i] > 0]
        for i in filled:
            given[i] = sum(float(counts[j]) for j in members) / len(filled)
    total_wanted, total_given = sum(wanted), sum(given)
    result = 0.0
    for p, q in zip(wanted, given):
        if p > 0:
            if q == 0:
                return np.inf
            result += p / total_wanted * np.log(p / total_wanted / (q / total_given))
    return result


@pytest.mark.parametrize(
    ("kind", "levels", "number"), [*((kind, 128, 24) for kind in KINDS), ("relu", 256, 8), ("outlier", 256, 8)]
)
def test_entropy_is_the_smallest_divergence(kind, levels, number):
    histogram = histogram_of(samples(kind))
    counts = [0, *histogram.counts[1:].tolist()]
    found = round(clipping_point(histogram, "entropy", levels - 1) / histogram.width)
    mine = divergence(counts, found, levels)
    among = np.random.default_rng(0).choice(np.arange(levels + 8, BINS, 8), number, replace=False)
    assert (found - levels) % 8 == 0
    assert all(mine <= divergence(counts, bins, levels) * (1 + 1e-9) for bins in [levels, *among.tolist(), BINS])


@pytest.mark.parametrize("method", METHODS)
def test_no_method_leaves_the_range_of_the_values(method):
    for kind in KINDS:
        histogram = histogram_of(samples(kind))
        assert 0 < clipping_point(histogram, method) <= histogram.limit
    assert clipping_point(histogram_of(np.zeros(9, np.float32)), method) == 0
    assert clipping_point(histogram_of(np.full(9, -2, np.float32)), method) == 2


def test_an_outlier_is_clipped_where_that_loses_less():
    values = np.append(np.random.default_rng(0).uniform(0, 1, 10**6), 16).astype(np.float32)
    # A norm of a large power is there to spare the outlier.
    for method in [name for name in METHODS[1:] if not name.startswith("lp_")]:
        assert clipping_point(histogram_of(values), method) < 4, method
    points = [clipping_point(histogram_of(values), method) for method in ("mse", "lp_2.4", "lp_3", "minmax")]
    assert points == sorted(points)
    assert points[0] < points[1]


def test_an_unknown_method_is_named():
    with pytest.raises(ProjectError, match="percentile_50"):
        clipping_point(histogram_of(np.array([1, 2], np.float32)), "percentile_50")
