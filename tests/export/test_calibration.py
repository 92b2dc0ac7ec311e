import json
import logging

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from export import graph
from export.calibration import MINIMUM_SCALE, Scales, collect_ranges, collect_scales
from export.errors import ExportError
from export.placement import quantizable_tensors
from tests.export.keras_models import images


@pytest.fixture(scope="module")
def pixels() -> np.ndarray:
    return images(24, seed=3)


def brute_force(model, tensor, pixels):
    """One image at a time, every value, through the reference runtime of ONNX itself."""
    from onnx.reference import ReferenceEvaluator

    probe = graph.copy_model(model)
    probe.graph.output.append(helper.make_tensor_value_info(tensor, TensorProto.FLOAT, None))
    session = ReferenceEvaluator(probe)
    values = [session.run([tensor], {"images": pixels[i : i + 1]})[0] for i in range(len(pixels))]
    return float(np.min(values)), float(np.max(values))


def test_ranges_are_those_of_the_values(v1, pixels):
    tensors = ["conv1_relu/Relu:0", "conv2_block1_3_conv/Conv:0"]
    ranges = collect_ranges(v1.model, [pixels[:3]], tensors)
    for name in tensors:
        assert ranges[name] == pytest.approx(brute_force(v1.model, name, pixels[:3]), rel=1e-4, abs=1e-5)
    assert ranges[tensors[0]][0] == 0  # behind a Relu
    assert ranges[tensors[1]][0] < 0


def test_neither_batch_size_nor_order_matters(exported, pixels):
    tensors = quantizable_tensors(exported.model)
    whole = collect_ranges(exported.model, [pixels], tensors)
    single = collect_ranges(exported.path, (p[None] for p in pixels), tensors)
    ragged = collect_ranges(exported.model, [pixels[17:], pixels[5:17], pixels[:5]], tensors)
    assert set(whole) == set(tensors)
    for name in tensors:
        assert single[name] == pytest.approx(whole[name], rel=1e-5, abs=1e-6)
        assert ragged[name] == pytest.approx(whole[name], rel=1e-5, abs=1e-6)


def test_batches_are_streamed(v1, pixels):
    """The next batch is asked for only when the one before has been reduced."""
    seen, asked = [], []

    def batches():
        for start in range(0, 24, 8):
            asked.append((start, len(seen)))
            yield pixels[start : start + 8]

    collect_ranges(v1.model, batches(), ["conv1_relu/Relu:0"], seen.append)
    assert seen == [8, 16, 24]
    assert asked == [(0, 0), (8, 1), (16, 2)]


def test_a_negative_zero_pad_is_not_fused_away(v2, pixels):
    """ONNX Runtime's Pad_Fusion would make the pool of ResNetV2 wrong."""
    pool = next(n for n in v2.model.graph.node if n.op_type == "MaxPool")
    tensor = pool.output[0]
    ranges = collect_ranges(v2.model, [pixels[:2]], [tensor])
    assert ranges[tensor] == pytest.approx(brute_force(v2.model, tensor, pixels[:2]), rel=1e-4)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_values_that_are_not_finite_are_named(v1, pixels, bad):
    model = graph.copy_model(v1.model)
    tensor = next(t for t in model.graph.initializer if t.name == "conv2_block1_1_conv/Conv/bias")
    bias = numpy_helper.to_array(tensor).copy()
    bias[2] = bad
    tensor.CopyFrom(numpy_helper.from_array(bias, tensor.name))
    with pytest.raises(ExportError, match="conv2_block1_1_relu/Relu:0"):
        collect_ranges(model, [pixels[:2]], ["conv1_relu/Relu:0", "conv2_block1_1_relu/Relu:0"])


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
    with pytest.raises(ExportError, match=message):
        collect_ranges(v1.model, batches, ["conv1_relu/Relu:0"])


def test_unknown_tensors_are_named(v1, pixels):
    with pytest.raises(ExportError, match="nope:0"):
        collect_ranges(v1.model, [pixels], ["nope:0"])


def test_scales_are_symmetric_and_never_too_small(caplog):
    with caplog.at_level(logging.WARNING):
        scales = Scales.from_ranges({"a": (-2.54, 1.0), "b": (0.0, 1.27), "dead": (0.0, 0.0)}, images=3)
    assert scales.scales["a"] == float(np.float32(2.54 / 127))
    assert scales.scales["b"] == float(np.float32(1.27 / 127))
    assert scales.scales["dead"] == MINIMUM_SCALE == 2**-14
    assert "dead" in caplog.text
    assert "a (" not in caplog.text
    assert np.float16(MINIMUM_SCALE) == MINIMUM_SCALE


def test_json_round_trip_is_exact(v1, pixels):
    scales = collect_scales(
        v1.model,
        [pixels[:8], pixels[8:12]],
        quantizable_tensors(v1.model),
        model_sha256="ab" * 32,
        images_sha256="cd" * 32,
        preprocessing=v1.spec,
    )
    assert scales.images == 12
    assert scales.method == "minmax"
    again = Scales.from_json(scales.to_json())
    assert again == scales
    data = json.loads(scales.to_json())
    assert (data["model_sha256"], data["images_sha256"]) == ("ab" * 32, "cd" * 32)
    assert data["preprocessing"] == v1.spec.to_dict()


@pytest.mark.parametrize(
    "text",
    ["", "[]", "{}", '{"scales": {"a": 0.0}, "method": "minmax", "images": 1, "model_sha256": "", '
     '"images_sha256": "", "preprocessing": {}}'],
)  # fmt: skip
def test_bad_json(text):
    with pytest.raises(ExportError, match="Expected"):
        Scales.from_json(text)


def test_probing_does_not_change_the_model(v1, pixels):
    before = v1.model.SerializeToString()
    collect_ranges(v1.model, [pixels[:1]], quantizable_tensors(v1.model))
    assert v1.model.SerializeToString() == before
    assert onnx.load(v1.path) == v1.model
