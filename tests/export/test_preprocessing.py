import json

import numpy as np
import pytest

from export.errors import ProjectError
from export.preprocessing import PreprocessingSpec

MODES = ("caffe", "tf", "torch", "unit", "none")


@pytest.fixture(scope="module")
def every_value() -> np.ndarray:
    values = np.arange(256, dtype=np.uint8)
    return np.stack([values, values[::-1], np.roll(values, 77)], axis=-1).reshape(2, 8, 16, 3)


@pytest.mark.parametrize("mode", ["caffe", "tf", "torch"])
def test_apply_is_what_keras_does(mode, every_value):
    from keras.applications import imagenet_utils

    expected = imagenet_utils.preprocess_input(every_value.astype(np.float32), mode=mode)
    result = PreprocessingSpec.from_mode(mode).apply(every_value)
    assert result.dtype == np.float32
    spread = expected.max() - expected.min()
    assert np.abs(result - expected).max() <= 1e-6 * spread


def test_unit_and_none(every_value):
    np.testing.assert_allclose(
        PreprocessingSpec.from_mode("unit").apply(every_value), every_value / 255, rtol=1e-6, atol=0
    )
    np.testing.assert_array_equal(PreprocessingSpec.from_mode("none").apply(every_value), every_value)


def test_order_mean_and_scale_belong_to_the_reordered_channels():
    spec = PreprocessingSpec("BGR", (1, 2, 3), (10, 100, 1000))
    red, green, blue = 11, 22, 33
    result = spec.apply(np.array([red, green, blue], dtype=np.uint8))
    assert result.tolist() == [(blue - 1) * 10, (green - 2) * 100, (red - 3) * 1000]


def test_apply_leaves_the_pixels_alone(every_value):
    before = every_value.copy()
    PreprocessingSpec.from_mode("caffe").apply(every_value)
    np.testing.assert_array_equal(every_value, before)


@pytest.mark.parametrize("mode", MODES)
def test_json_round_trip(mode):
    spec = PreprocessingSpec.from_mode(mode)
    assert PreprocessingSpec.from_dict(json.loads(json.dumps(spec.to_dict()))) == spec


@pytest.mark.parametrize(
    "data",
    [
        {},
        {"channel_order": "RGB", "mean": [0, 0], "scale": [1, 1, 1]},
        {"channel_order": "GRB", "mean": [0, 0, 0], "scale": [1, 1, 1]},
        {"channel_order": "RGB", "mean": [0, 0, float("nan")], "scale": [1, 1, 1]},
        {"channel_order": "RGB", "mean": None, "scale": [1, 1, 1]},
        {"channel_order": "RGB", "mean": ["a", "b", "c"], "scale": [1, 1, 1]},
    ],
)
def test_bad_specs(data):
    with pytest.raises(ProjectError, match="Expected"):
        PreprocessingSpec.from_dict(data)


def test_unknown_mode_names_the_known_ones():
    with pytest.raises(ProjectError, match=r"caffe.*imagenet"):
        PreprocessingSpec.from_mode("imagenet")


@pytest.mark.parametrize("pixels", [np.zeros((2, 2, 3), np.float32), np.zeros((2, 2, 4), np.uint8)])
def test_only_rgb_bytes(pixels):
    with pytest.raises(ProjectError, match="uint8"):
        PreprocessingSpec.from_mode("tf").apply(pixels)
