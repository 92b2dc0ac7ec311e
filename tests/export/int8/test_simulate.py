import numpy as np
import pytest
from onnx import numpy_helper

from export.int8.qdq import quantize
from export.int8.report import Distances
from export.int8.simulate import HeldOut, Judged, simulate
from export.metrics.distances import sqnr_db
from export.onnx_passes import graph
from tests.export.conftest import calibrate, run_onnx
from tests.export.keras_models import images


@pytest.fixture(scope="module")
def int8(exported):
    model = quantize(exported.model, calibrate(exported.model, [images(16, seed=1)]), base="fp32").model
    return exported, model


def test_pairs_are_computed_as_the_file_says(int8):
    """Against ONNX Runtime without any optimization; a sum in another order may flip a tie of rounding."""
    exported, model = int8
    pixels = images(24, seed=11)
    exact, received = run_onnx(model, pixels, exact=True)[0], simulate(model, pixels)
    assert received.dtype == np.float32
    noise = sqnr_db(run_onnx(exported.model, pixels)[0], exact)
    assert sqnr_db(exact, received) > noise + 10, "much closer than the rounding itself"
    assert np.median(np.abs(received - exact)) < 1e-4 * np.abs(exact).max()


def test_the_pairs_are_kept(int8):
    exported, model = int8
    pixels = images(8, seed=11)
    assert 15 < sqnr_db(simulate(exported.model, pixels), simulate(model, pixels)) < 50


def test_int8_kernels_do_not_saturate():
    """255 · 127 twice is more than INT16 holds: kernels of CPUs without VNNI cut it off."""
    from tests.export.tiny_graphs import pixel_graph

    weight = np.ones((2, 4, 3, 3), np.float32)
    model = pixel_graph([("Relu", ["f"], "r", {}), ("Conv", ["r", "w"], "y", {})], {"w": weight})
    pixels = np.full((1, 4, 6, 6), 255, np.uint8)
    pixels[0, 0, 0, 0] = 0
    quantized = quantize(model, calibrate(model, [pixels]), base="fp32").model
    np.testing.assert_allclose(simulate(quantized, pixels), run_onnx(model, pixels)[0], rtol=1e-5)


def test_batches(v1):
    pixels = images(7, seed=2)
    whole = simulate(v1.model, pixels, batch_size=7)
    parts = simulate(v1.model, pixels, batch_size=3)
    np.testing.assert_allclose(parts, whole, rtol=1e-4, atol=1e-5 * np.abs(whole).max())


def test_a_negative_zero_pad_is_not_fused_away(v2):
    pixels = images(4, seed=3)
    exact = run_onnx(v2.model, pixels, exact=True)[0]
    np.testing.assert_allclose(simulate(v2.model, pixels), exact, rtol=1e-4, atol=1e-5 * np.abs(exact).max())


def test_held_out_images_judge(int8):
    exported, model = int8
    pixels, labels = images(12, seed=4), np.arange(12) % 5
    held_out = HeldOut.of(exported.model, pixels, labels, batch_size=5)
    assert len(held_out) == 12
    assert held_out.judge(exported.model).sqnr_db > 100
    expected = Judged.of(simulate(exported.model, pixels, 5), simulate(model, pixels, 5), labels)
    assert held_out.judge(model) == expected
    part = held_out.first(5)
    assert (len(part), len(held_out)) == (5, 12)
    assert part.judge(model) == Judged.of(*(simulate(m, pixels[:5], 5) for m in (exported.model, model)), labels[:5])
    row = Distances.of(expected)
    assert row.accuracy_drop == pytest.approx(expected.reference_accuracy - expected.candidate_accuracy)
    assert row.sqnr_db == expected.sqnr_db
    assert Distances.of(Judged.of(held_out.reference, held_out.reference, labels)).sqnr_db is None


def test_a_model_that_overflows_never_looks_good(v1):
    model = graph.copy_model(v1.model)
    bias = next(t for t in model.graph.initializer if t.name == "conv1_conv/Conv/bias")
    bias.CopyFrom(numpy_helper.from_array(np.full(bias.dims[0], 3.4e38, np.float32), bias.name))
    found = HeldOut.of(v1.model, images(2), np.zeros(2, np.int64)).judge(model)
    assert not found.finite
    assert found.top1_agreement == 0
    assert Distances.of(found).sqnr_db is None
