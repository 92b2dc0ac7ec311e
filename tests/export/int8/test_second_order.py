import itertools

import numpy as np
import pytest
from threadpoolctl import threadpool_info, threadpool_limits

from export.errors import ProjectError
from export.int8 import second_order
from export.int8.scales import Scales
from export.int8.second_order import MOST_GAIN_DB, round_second_order, round_weight
from export.int8.weights import round_to_nearest, weight_scales
from tests.export.conftest import calibrate, run_onnx
from tests.export.tiny_graphs import floats, pixel_graph, pixels

# --- one weight -------------------------------------------------------------------------------------------------------


def inputs(rows, size, groups=1, seed=0):
    """Inputs that go together, as those of a convolution do, float64 (groups, rows, size)."""
    random = np.random.default_rng(seed)
    return np.maximum(random.normal(size=(groups, rows, 4)) @ random.normal(size=(groups, 4, size)), 0) + 0.1 * (
        random.normal(size=(groups, rows, size))
    )


def moments_of(x):
    return x.swapaxes(1, 2) @ x


def by_the_papers(weight, moments):
    """The codes of one output (d,), as in OBQ and GPTQ: the inverse of H loses a row and a column for each weight."""
    size = len(weight)
    inverse = np.linalg.inv(moments + 0.01 * np.diag(moments).mean() * np.eye(size))
    left, codes = weight.astype(np.float64).copy(), np.zeros(size)
    for place in np.argsort(-np.diag(moments), kind="stable"):
        codes[place] = np.clip(np.rint(left[place]), -127, 127)
        left -= (left[place] - codes[place]) / inverse[place, place] * inverse[place]
        inverse -= np.outer(inverse[:, place], inverse[place]) / inverse[place, place]
        inverse[place, place] = 1.0  # it is never read again
    return codes


def energy(weight, rounded, moments):
    """The noise of each output, float64 (out,)."""
    difference = (weight.astype(np.float64) - rounded.astype(np.float64)).reshape(len(moments), -1, moments.shape[1])
    return np.einsum("god,gde,goe->go", difference, moments, difference).reshape(-1)


@pytest.mark.parametrize(
    ("shape", "groups"),
    [((6, 5, 1, 1), 1), ((8, 3, 3, 3), 1), ((8, 3, 3, 3), 4), ((12, 1, 3, 3), 12), ((2, 270, 1, 1), 1), ((4, 7, 5), 2)],
)
def test_the_codes_are_those_of_the_papers(shape, groups):
    """Also with more weights than a block has."""
    weight, size = floats(*shape), int(np.prod(shape[1:]))
    moments = moments_of(inputs(200, size, groups))
    found, _ = round_weight(weight, moments)
    ratio = (weight.astype(np.float64) / weight_scales(weight).reshape(-1, *[1] * (len(shape) - 1))).reshape(
        len(weight), -1
    )
    expected = np.stack([by_the_papers(row, moments[i * groups // len(weight)]) for i, row in enumerate(ratio)])
    nearest = round_to_nearest(weight).codes.reshape(expected.shape)
    per_group = np.repeat(moments, len(weight) // groups, axis=0)
    noise = [np.einsum("od,ode,oe->o", ratio - c, per_group, ratio - c) for c in (expected, nearest)]
    chosen = np.where((noise[0] < noise[1])[:, None], expected, nearest)
    assert (chosen != nearest).any(axis=1).mean() > 0.3, "the papers' codes are often the better ones"
    assert np.array_equal(found.codes.reshape(chosen.shape), chosen)
    assert np.array_equal(found.scales, weight_scales(weight))


def test_it_is_never_worse_than_nearest_and_often_near_the_best():
    """All 729 choices of a code or one of its neighbours for six weights."""
    weight = floats(100, 6, 1, 1)
    moments = moments_of(inputs(100, 6, seed=3))
    found, gain = round_weight(weight, moments)
    nearest = round_to_nearest(weight)
    after, before = (energy(weight, rounded.values, moments) for rounded in (found, nearest))
    assert (after <= before).all()
    steps = np.array(list(itertools.product((-1, 0, 1), repeat=6))).reshape(-1, 1, 6, 1, 1)
    choices = np.clip(nearest.codes.astype(int) + steps, -127, 127) * nearest.scales.reshape(-1, 1, 1, 1)
    best = np.min([energy(weight, choice, moments) for choice in choices], axis=0)
    assert before.sum() > 2 * best.sum(), "there is something to gain"
    assert after.sum() < 1.2 * best.sum()
    found_best, nearest_best = ((noise < 1.001 * best).mean() for noise in (after, before))
    assert found_best > 0.5 > nearest_best
    assert gain == pytest.approx(10 * np.log10(before.sum() / after.sum()), abs=1e-3)


def test_outputs_of_different_scales_are_added_as_they_are():
    """A gain is of the energy of the output, not of that in steps of each channel."""
    weight = floats(8, 6, 1, 1) * np.float32(10.0) ** np.arange(8).reshape(-1, 1, 1, 1)
    moments = moments_of(inputs(100, 6, seed=2))
    found, gain = round_weight(weight, moments)
    before, after = (energy(weight, r.values, moments).sum() for r in (round_to_nearest(weight), found))
    assert gain == pytest.approx(10 * np.log10(before / after), abs=1e-2)


def test_an_output_that_nearest_suits_better_keeps_it():
    weight, moments = floats(200, 3, 1, 1, seed=3), moments_of(inputs(4, 3, seed=1))
    found, _ = round_weight(weight, moments)
    raw = np.stack(
        [
            by_the_papers(row, moments[0])
            for row in (weight.astype(float) / found.scales.reshape(-1, 1, 1, 1))[..., 0, 0]
        ]
    )
    noise = [
        energy(weight, r, moments)
        for r in (raw.reshape(weight.shape) * found.scales.reshape(-1, 1, 1, 1), round_to_nearest(weight).values)
    ]
    worse = noise[0] > noise[1] * 1.001
    assert worse.any(), "else nothing is tested"
    assert np.array_equal(found.codes[worse], round_to_nearest(weight).codes[worse])


def test_of_codes_that_are_equally_good_those_of_nearest_stay():
    """Only the sum of the errors matters here, and it is 0 both for nearest and for the codes of the papers."""
    weight, moments = np.array([127, 10.4375, 10.375, 9.5625, 9.625], np.float32), np.ones((1, 5, 5))
    other = by_the_papers(weight, moments[0])
    assert other.sum() == weight.sum()
    assert other.tolist() == [127, 10, 11, 9, 10]
    found, gain = round_weight(weight.reshape(1, 5, 1, 1), moments)
    assert found.codes.reshape(-1).tolist() == [127, 10, 10, 10, 10]
    assert gain == 0


def test_weights_of_inputs_that_are_always_0_are_rounded_to_nearest():
    weight, x = floats(6, 8, 3, 3), inputs(100, 72)
    x[:, :, 9:27] = 0
    found, gain = round_weight(weight, moments_of(x))
    nearest = round_to_nearest(weight).codes
    assert np.array_equal(found.codes[:, 1:3], nearest[:, 1:3])
    assert not np.array_equal(found.codes, nearest)
    assert gain > 0


def test_a_dead_group_does_not_hinder_the_others():
    weight, x = floats(6, 4, 3, 3), inputs(100, 36, groups=3)
    x[1] = 0
    found, gain = round_weight(weight, moments_of(x))
    changed = (found.codes != round_to_nearest(weight).codes).any(axis=(1, 2, 3))
    assert changed.tolist() == [True, True, False, False, True, True]
    assert 0 < gain < MOST_GAIN_DB


def test_a_weight_without_any_input_is_rounded_to_nearest_and_gains_nothing():
    weight = floats(4, 4, 3, 3)
    found, gain = round_weight(weight, np.zeros((1, 36, 36)))
    assert np.array_equal(found.codes, round_to_nearest(weight).codes)
    assert gain == 0


def test_weights_that_are_codes_stay_so():
    weight = np.array([127, -3, 8, 0], np.float32).reshape(1, 4, 1, 1)
    found, gain = round_weight(weight, moments_of(inputs(50, 4)))
    assert found.codes.reshape(-1).tolist() == [127, -3, 8, 0]
    assert gain == 0


def test_no_code_leaves_the_range():
    """The first input is much larger, so its rounding error moves the others by many steps."""
    weight = np.full((64, 4, 1, 1), 126.9, np.float32)
    weight[:, 0, 0, 0] = np.linspace(100, 101, 64)
    weight[:, 1] = 127
    weight[32:] *= -1
    x = inputs(100, 4)
    x[:, :, 0] = 40 * x[:, :, 1:].sum(axis=2)
    moments = moments_of(x)
    found, _ = round_weight(weight, moments)
    assert found.codes.min() == -127
    assert found.codes.max() == 127
    assert (energy(weight, found.values, moments) <= energy(weight, round_to_nearest(weight).values, moments)).all()


def test_scales_of_fp16_are_kept():
    weight = floats(4, 4, 3, 3)
    found, _ = round_weight(weight, moments_of(inputs(100, 36)), "fp16")
    assert np.array_equal(found.scales, weight_scales(weight, "fp16"))
    assert not np.array_equal(found.scales, weight_scales(weight))


def test_a_perfect_fit_has_a_gain_that_a_report_can_hold():
    """One input of which only the sum matters."""
    weight = np.array([127, 0.4, 0.6], np.float32).reshape(1, 3, 1, 1)
    found, gain = round_weight(weight, np.ones((1, 3, 3)))
    assert found.codes.reshape(-1).tolist() == [127, 0, 1]
    assert gain == 0
    weight = np.array([127, 0.5 - 2**-10, 0.5 + 2**-10, 0.5 - 2**-10, 0.5 + 2**-10, 0.5, 0.5], np.float32).reshape(
        1, 7, 1, 1
    )
    assert round_to_nearest(weight).codes.sum() != 130
    for independent in (0.0, 1e-13):
        _, gain = round_weight(weight, np.ones((1, 7, 7)) + independent * np.eye(7))
        assert gain == MOST_GAIN_DB


# --- a model ----------------------------------------------------------------------------------------------------------

SAME = {"pads": [1, 1, 1, 1]}
WEIGHTS = {
    "a": floats(8, 4, 3, 3, seed=1) / 100, "a_bias": floats(8, seed=2),
    "b": floats(8, 8, 1, 1, seed=3), "b_bias": floats(8, seed=4),
    "c": floats(8, 4, 3, 3, seed=5), "c_bias": floats(8, seed=6),
    "dense": floats(8, 3, seed=7),
}  # fmt: skip
NODES = [
    ("Conv", ["f", "a", "a_bias"], "s", SAME),
    ("Relu", ["s"], "r", {}),
    ("Conv", ["r", "b", "b_bias"], "m", {}),
    ("Add", ["m", "r"], "t", {}),
    ("Relu", ["t"], "u", {}),
    ("Conv", ["u", "c", "c_bias"], "v", {"group": 2, **SAME}),
    ("Relu", ["v"], "w", {}),
    ("GlobalAveragePool", ["w"], "g", {}),
    ("Flatten", ["g"], "k", {}),
    ("MatMul", ["k", "dense"], "y", {}),
]
FIRST, SECOND, THIRD = "Conv_1", "Conv_3", "Conv_6"


def build(nodes=NODES, **others):
    used = {name for _, inputs, *_ in nodes for name in inputs}
    return pixel_graph(nodes, {k: v for k, v in {**WEIGHTS, **others}.items() if k in used}, shapes={"y": ["batch", 3]})


def batched(batch, size=5):
    return lambda _: (batch[i : i + size] for i in range(0, len(batch), size))


def rounded(model, scales, batch, *, size=5, images=1000, **options):
    return round_second_order(model, scales, batched(batch, size), images=images, **options)


def same(one, other):
    assert list(one.weights) == list(other.weights)
    return one.gains_db == other.gains_db and all(
        np.array_equal(one.weights[name].codes, other.weights[name].codes) for name in one.weights
    )


MODEL, BATCH = build(), pixels(24)


@pytest.fixture(scope="module")
def scales():
    plain = calibrate(MODEL, [BATCH])
    values = {name: plain.scales[name] * (127 / 255 if name == "r" else 1) for name in plain.scales}
    return Scales(values, "minmax", len(BATCH), shifted=("r",))


@pytest.fixture(scope="module")
def result(scales):
    return rounded(MODEL, scales, BATCH)


def test_every_quantized_conv_is_rounded_in_the_order_of_the_graph(result, scales):
    assert list(result.weights) == list(result.gains_db) == ["a", "b", "c"]
    assert result.skipped == {}
    assert result.images == 24
    for name, weight in result.weights.items():
        assert weight.codes.shape == WEIGHTS[name].shape
        assert weight.codes.dtype == np.int8
        assert np.array_equal(weight.scales, weight_scales(WEIGHTS[name]))
        assert result.gains_db[name] > 0.5


def test_the_logits_of_other_images_come_closer(result):
    other = pixels(200, seed=5)
    exact = run_onnx(MODEL, other, exact=True)[0]
    noise = {}
    for name in ("a", "b", "c"):
        for kind, weight in (("second", result.weights[name]), ("nearest", round_to_nearest(WEIGHTS[name]))):
            candidate = build(**{name: weight.values})
            noise[name, kind] = ((run_onnx(candidate, other, exact=True)[0] - exact) ** 2).sum()
    assert sum(noise[n, "second"] for n in "abc") < 0.7 * sum(noise[n, "nearest"] for n in "abc")


def test_the_inputs_are_those_of_the_quantized_model(result, scales):
    """A coarse scale of the tensor before changes what the Convs behind it are rounded for."""
    coarse = Scales({**scales.scales, "f": scales.scales["f"] * 16}, "minmax", 24, shifted=scales.shifted)
    other = rounded(MODEL, coarse, BATCH)
    assert not np.array_equal(other.weights["c"].codes, result.weights["c"].codes)


def test_a_shifted_tensor_is_read_with_its_own_values(scales, monkeypatch):
    """The moments of a 1x1 Conv at all places: those of the dequantized tensor."""
    seen = {}

    def spy(weight, moments, kind):
        seen[weight.tobytes()] = moments
        return round_weight(weight, moments, kind)

    small = pixel_graph(NODES, WEIGHTS, x=("batch", 4, 4, 4), shapes={"y": ["batch", 3]})
    monkeypatch.setattr(second_order, "round_weight", spy)
    batch = pixels(6, 4, 4, 4)
    rounded(small, scales, batch)
    scale, amount = (np.float64(np.float32(v)) for v in (scales.scales["r"], scales.shift("r")))
    f_scale = np.float32(scales.scales["f"])
    f = (np.clip(np.rint(batch.astype(np.float32) / f_scale), -128, 127) * f_scale).astype(np.float32)
    first = pixel_graph(NODES[:2], {k: WEIGHTS[k] for k in ("a", "a_bias")}, x=("batch", 4, 4, 4), outputs=("r",))
    del first.graph.node[0]
    first.graph.node[0].input[0] = "x"
    first.graph.input[0].type.tensor_type.elem_type = 1
    r = run_onnx(first, f, exact=True)[0].astype(np.float64)
    values = np.clip(np.rint((r - amount) / scale), -128, 127) * scale + amount
    assert values.max() > 127 * scale
    x = values.transpose(0, 2, 3, 1).reshape(-1, 8)
    np.testing.assert_allclose(seen[WEIGHTS["b"].tobytes()][0], x.T @ x, rtol=1e-3, atol=1e-3 * (x.T @ x).max())


def test_neither_the_batches_nor_the_passes_change_a_code(result, scales, monkeypatch):
    assert same(result, rounded(MODEL, scales, BATCH))
    assert same(result, rounded(MODEL, scales, BATCH, size=1))
    assert same(result, rounded(MODEL, scales, BATCH, size=24))
    monkeypatch.setattr(second_order, "SAMPLES_BYTES", 1)
    calls, tracked = [], []

    def batches(description):
        calls.append(description)
        return batched(BATCH)(description)

    def track(names):
        tracked.append(list(names))
        return names

    assert same(result, round_second_order(MODEL, scales, batches, images=1000, track=track))
    assert len(calls) == 3
    assert tracked == [["a"], ["b"], ["c"]]


def test_what_fits_the_memory_is_one_pass(monkeypatch):
    """An output reads 36 values with `a`, 8 with `b` and `d`, 72 with `c`; 16,000 places are planned for."""
    nodes = [*NODES[:7], ("Conv", ["w", "d"], "z", {}), ("GlobalAveragePool", ["z"], "g", {}), *NODES[8:]]
    model = build(nodes, d=floats(8, 8, 1, 1, seed=8))
    monkeypatch.setattr(second_order, "SAMPLES_BYTES", 80 * 16_000)
    tracked = []
    rounded(model, calibrate(model, [BATCH]), BATCH, track=lambda names: tracked.append(list(names)) or names)
    assert tracked == [["a", "b"], ["c", "d"]]


@pytest.mark.parametrize(("size", "threads"), [(1024, 1), (1, 2)], ids=["small", "large"])
def test_small_moments_are_factorized_by_one_thread(monkeypatch, result, scales, size, threads):
    """Several would wait for each other longer than they compute."""
    real, used = second_order.round_weight, set()

    def counted(*arguments):
        used.update(pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas")
        return real(*arguments)

    monkeypatch.setattr(second_order, "ONE_THREAD", size)
    monkeypatch.setattr(second_order, "round_weight", counted)
    with threadpool_limits(limits=2, user_api="blas"):
        assert same(result, rounded(MODEL, scales, BATCH))
        assert {pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"} == {2}
    assert used == {threads}


def test_the_seed_chooses_the_places(result, scales):
    assert not same(result, rounded(MODEL, scales, BATCH, seed=1))


def test_the_first_images_are_taken(result, scales):
    short = rounded(MODEL, scales, BATCH, images=7)
    assert short.images == 7
    assert same(short, rounded(MODEL, scales, BATCH[:7]))
    assert not same(short, result)


def test_a_batch_that_ends_with_the_last_image_is_the_last(scales):
    assert rounded(MODEL, scales, BATCH, images=10).images == 10


def test_the_inputs_are_those_of_the_scales_in_the_file(scales):
    """A file of FP16 rounds the scales of activations, too."""
    half = scales.of_type("fp16")
    assert half != scales
    found = rounded(MODEL, scales, BATCH, kind="fp16")
    assert same(found, rounded(MODEL, half, BATCH, kind="fp16"))
    assert found.gains_db.keys() == {"a", "b", "c"}
    assert all((weight.scales == weight.scales.astype(np.float16)).all() for weight in found.weights.values())


def test_no_images_are_refused(scales):
    with pytest.raises(ProjectError, match="Received: none"):
        rounded(MODEL, scales, BATCH[:0])


def test_the_model_stays(scales):
    before = MODEL.SerializeToString()
    rounded(MODEL, scales, BATCH[:4])
    assert MODEL.SerializeToString() == before


def test_what_stays_in_float_is_named(result, scales):
    kept = rounded(MODEL, scales, BATCH, kept={SECOND})
    assert kept.skipped == {SECOND: "it stays in float"}
    assert list(kept.weights) == ["a", "c"]
    unscaled = Scales({k: v for k, v in scales.scales.items() if k != "u"}, "minmax", 24)
    assert rounded(MODEL, unscaled, BATCH).skipped == {THIRD: "its input has no scale"}


def test_computed_weights_are_named():
    nodes = [*NODES[:5], ("Neg", ["c"], "d", {}), ("Conv", ["u", "d", "c_bias"], "v", {"group": 2, **SAME}), *NODES[6:]]
    model = build(nodes)
    found = rounded(model, calibrate(model, [BATCH]), BATCH)
    assert found.skipped == {"Conv_7": "its weights are computed"}
    assert list(found.weights) == ["a", "b"]


def test_shared_weights_are_rounded_for_all_of_their_readers():
    nodes = [*NODES]
    nodes[5] = ("Conv", ["u", "b", "c_bias"], "v", {})
    model = build(nodes)
    scales = calibrate(model, [BATCH])
    both, second = rounded(model, scales, BATCH), rounded(model, scales, BATCH, kept={THIRD})
    third = rounded(model, scales, BATCH, kept={SECOND})
    assert list(both.weights) == ["a", "b"]
    assert both.skipped == {}
    codes = [found.weights["b"].codes for found in (both, second, third)]
    assert not np.array_equal(codes[0], codes[1])
    assert not np.array_equal(codes[0], codes[2])


def test_weights_shared_between_other_groups_are_named():
    nodes = [
        ("Conv", ["f", "a", "a_bias"], "s", SAME),  # 4 channels
        ("Relu", ["s"], "r", {}),
        ("Conv", ["r", "a"], "v", {"group": 2, **SAME}),  # 8 channels
        *NODES[6:],
    ]
    model = build(nodes)
    found = rounded(model, calibrate(model, [BATCH]), BATCH)
    assert list(found.weights) == []
    assert list(found.skipped) == [FIRST, SECOND]
    assert "another number of groups" in found.skipped[FIRST]


def test_maps_of_patches_that_are_folded_into_the_first_axis_are_named():
    """As in a TimeDistributed layer: no row of theirs is an image, so they have no places of their own in one."""
    nodes = [
        *NODES[:2],  # 8 channels of 6 x 6
        ("Reshape", ["r", "patches"], "p", {}),
        ("Conv", ["p", "b", "b_bias"], "q", {}),
        ("Reshape", ["q", "whole"], "m", {}),
        ("Conv", ["m", "b", "b_bias"], "n", {}),
        ("Conv", ["n", "c", "c_bias"], "v", {"group": 2, **SAME}),
        *NODES[6:],
    ]
    model = build(nodes, patches=np.int64([-1, 8, 3, 3]), whole=np.int64([-1, 8, 6, 6]))
    found = rounded(model, calibrate(model, [BATCH]), BATCH)
    assert list(found.weights) == ["a", "c"]
    assert list(found.skipped) == ["Conv_4", "Conv_6"], "the second one shares its weights"
    assert "not one map an image" in found.skipped["Conv_4"]


def test_a_later_conv_of_patches_takes_its_weights_from_an_earlier_conv_of_a_map():
    nodes = [
        *NODES[:3],  # `b` of a map of 8 channels of 6 x 6
        ("Reshape", ["m", "patches"], "p", {}),
        ("Conv", ["p", "b", "b_bias"], "q", {}),
        ("Reshape", ["q", "whole"], "n", {}),
        ("Conv", ["n", "c", "c_bias"], "v", {"group": 2, **SAME}),
        *NODES[6:],
    ]
    model = build(nodes, patches=np.int64([-1, 8, 3, 3]), whole=np.int64([-1, 8, 6, 6]))
    found = rounded(model, calibrate(model, [BATCH]), BATCH)
    assert list(found.weights) == ["a", "c"]
    assert list(found.skipped) == ["Conv_3", "Conv_5"]
