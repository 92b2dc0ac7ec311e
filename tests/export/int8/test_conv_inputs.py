"""The second moments of what a Conv reads, against ONNX Runtime's own Conv."""

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from export.int8 import conv_inputs
from export.int8.conv_inputs import POSITIONS, ConvInput, Samples
from tests.export.conftest import run_onnx

SCALE = 0.03


def conv(weight, **attributes):
    return helper.make_node("Conv", ["x", "w"], ["y"], name="conv", **attributes), numpy_helper.from_array(weight, "w")


def codes(*shape, seed=0):
    return np.random.default_rng(seed).integers(-128, 128, shape).astype(np.int8)


def sampled(node, weight, x, *, shifted=False, sizes=(), seed=0, name="conv"):
    node.name = name
    samples = Samples([ConvInput.of(node, weight, "codes", SCALE, shifted)], len(x), seed)
    for part in np.split(x, np.cumsum(sizes)):
        samples.add(len(part), {"codes": part})
    return samples.take(name)


def energies(node, weight, x):
    """The energy of each output channel over all images and places, in ONNX Runtime; x is float32."""
    given, result = (helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in ("x", "y"))
    graph = helper.make_graph([node], "conv", [given], [result], [weight])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    y = run_onnx(model, x)[0].astype(np.float64)
    return (y**2).sum(axis=(0, *range(2, y.ndim))), y[0, 0].size


CASES = {
    "unpadded": ((5, 3, 2, 2), (3, 4, 5), {}),
    "padded": ((5, 3, 3, 3), (3, 4, 4), {"pads": [1, 1, 1, 1]}),
    "padded unevenly": ((5, 3, 3, 2), (3, 5, 4), {"pads": [2, 0, 1, 1], "strides": [2, 3]}),
    "strided": ((5, 3, 1, 1), (3, 7, 7), {"strides": [2, 2]}),
    "dilated": ((5, 3, 3, 2), (3, 7, 6), {"dilations": [2, 3]}),
    "grouped": ((6, 2, 3, 3), (4, 5, 5), {"group": 2}),
    "depthwise": ((8, 1, 3, 3), (4, 4, 4), {"group": 4, "pads": [1, 1, 1, 1]}),
    "same, upper": ((5, 3, 3, 4), (3, 8, 7), {"auto_pad": "SAME_UPPER", "strides": [2, 2]}),
    "same, lower": ((5, 3, 3, 4), (3, 8, 7), {"auto_pad": "SAME_LOWER", "strides": [2, 2]}),
    "valid": ((5, 3, 3, 4), (3, 6, 7), {"auto_pad": "VALID"}),
    "one axis": ((5, 3, 4), (3, 12), {"pads": [2, 1]}),
    "three axes": ((5, 2, 2, 3, 2), (2, 3, 4, 3), {"pads": [0, 1, 0, 1, 0, 0], "strides": [2, 2, 1]}),
}


@pytest.mark.parametrize("shifted", [False, True])
@pytest.mark.parametrize("case", CASES)
def test_the_moments_give_the_energy_of_any_output(case, shifted):
    shape, size, attributes = CASES[case]
    node, weight = conv(np.random.default_rng(1).normal(size=shape).astype(np.float32), **attributes)
    x = codes(3, *size)
    real = (SCALE * (x.astype(np.float32) + 128 * shifted)).astype(np.float32)
    expected, places = energies(node, weight, real)
    assert places <= POSITIONS, "all places are taken"
    moments = sampled(node, weight, x, shifted=shifted)
    rows = numpy_helper.to_array(weight).astype(np.float64).reshape(len(moments), -1, moments.shape[1])
    np.testing.assert_allclose(((rows @ moments) * rows).sum(axis=2).reshape(-1), expected, rtol=1e-4)


def test_a_large_output_gives_as_many_places_as_are_asked_for():
    node, weight = conv(np.ones((1, 1, 1, 1), np.float32))
    x = np.full((4, 1, 9, 9), 3, np.int8)
    assert sampled(node, weight, x)[0, 0, 0] == pytest.approx(4 * POSITIONS * (3 * SCALE) ** 2)


def test_no_place_is_taken_twice():
    """An image of 17 values, each a power of 2 of its own: the sum tells which 16 were taken."""
    node, weight = conv(np.ones((1, 1, 1), np.float32))
    x = np.zeros((17, 1, 17), np.int8)
    x[np.arange(17), 0, np.arange(17)] = 1
    taken = [round(sampled(node, weight, np.roll(x, turn, axis=0)[:1])[0, 0, 0] / SCALE**2) for turn in range(17)]
    assert sorted(taken) == [0, *[1] * 16]


def test_the_places_do_not_depend_on_the_batches_nor_on_other_convs():
    node, weight = conv(np.ones((2, 3, 3, 3), np.float32))
    x = codes(7, 3, 12, 12)
    whole = sampled(node, weight, x)
    assert np.array_equal(whole, sampled(node, weight, x, sizes=(1, 4)))
    other = helper.make_node("Conv", ["x", "w"], ["z"], name="other")
    samples = Samples([ConvInput.of(n, weight, "codes", SCALE, False) for n in (other, node)], 7, 0)
    samples.add(7, {"codes": x})
    assert np.array_equal(whole, samples.take("conv"))
    assert not np.array_equal(whole, samples.take("other")), "each Conv has places of its own"
    assert not np.array_equal(whole, sampled(node, weight, x, seed=1))


def test_each_image_has_places_of_its_own():
    node, weight = conv(np.ones((1, 1, 1), np.float32))
    x = np.tile(codes(1, 1, 500), (2, 1, 1))
    both, first = sampled(node, weight, x), sampled(node, weight, x[:1])
    assert not np.isclose(both[0, 0, 0], 2 * first[0, 0, 0])


@pytest.mark.parametrize("groups", [1, 3])
def test_the_sums_are_the_same_in_parts(monkeypatch, groups):
    """Whole numbers are added exactly."""
    node, weight = conv(np.ones((3, 3 // groups, 3, 3), np.float32), group=groups)
    whole = sampled(node, weight, codes(9, 3, 12, 12), shifted=True)
    monkeypatch.setattr(conv_inputs, "_ROWS", 7)
    assert np.array_equal(whole, sampled(node, weight, codes(9, 3, 12, 12), shifted=True))


def test_fewer_images_than_expected_leave_nothing_behind():
    node, weight = conv(np.ones((2, 3, 3, 3), np.float32))
    x = codes(3, 3, 5, 5)
    samples = Samples([ConvInput.of(node, weight, "codes", SCALE, False)], 100, 0)
    samples.add(3, {"codes": x})
    assert samples.seen == 3
    assert np.array_equal(samples.take("conv"), sampled(node, weight, x))
    with pytest.raises(KeyError):  # the memory is free again
        samples.take("conv")
