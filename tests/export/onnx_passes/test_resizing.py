import keras
import numpy as np
import onnx
import pytest
from keras import layers
from onnx import helper

from export.errors import ProjectError
from export.from_keras.convert import export_keras
from export.metrics.distances import relative_error
from export.onnx_passes.repairs import resizing_matrix
from export.preprocessing import PreprocessingSpec
from tests.export.conftest import run_onnx
from tests.export.keras_models import CLASSES, images, randomize

UNIT = PreprocessingSpec.from_mode("unit")
HALF = {"align_corners": False, "half_pixel_centers": True}


@pytest.mark.parametrize(
    ("operation", "options"),
    [
        ("ResizeArea", {"align_corners": False}),
        ("ResizeArea", {"align_corners": True}),
        ("ResizeBicubic", HALF),
        ("ResizeBicubic", {"align_corners": True, "half_pixel_centers": False}),
        ("ResizeBicubic", {"align_corners": False, "half_pixel_centers": False}),
        *[
            ("ScaleAndTranslate", {"kernel_type": kernel, "antialias": antialias})
            for kernel in ("lanczos3", "lanczos5", "gaussian", "box", "triangle", "mitchellcubic")
            for antialias in (True, False)
        ],
    ],
)
@pytest.mark.parametrize("size", [(5, 17), (23, 9), (13, 8)])
def test_two_matrices_are_the_kernel_of_tensorflow(operation, options, size):
    import tensorflow as tf

    image = np.random.default_rng(0).uniform(-1, 1, (1, 11, 14, 2)).astype(np.float32)
    more = {"scale": [size[0] / 11, size[1] / 14], "translation": [0.25, -0.5]} if "Scale" in operation else {}
    expected = getattr(tf.raw_ops, operation)(images=image, size=size, **more, **options).numpy()
    attributes = {key: value.encode() if isinstance(value, str) else int(value) for key, value in options.items()}
    node = helper.make_node(operation, ["x", "size"], ["y"], "resize", **attributes)
    parameters = [np.array(size), *(np.array(value) for value in more.values())]
    rows, columns = (resizing_matrix(node, axis, image.shape[1 + axis], parameters) for axis in (0, 1))
    np.testing.assert_allclose(np.einsum("ih,nhwc,jw->nijc", rows, image, columns), expected, atol=2e-6)


def resized(**options):
    """A classifier of 16x24 pictures that resizes them, and its features once more."""
    x = inputs = layers.Input((16, 24, 3), name="pixels")
    x = layers.Resizing(11, 13, name="first", **options)(x)
    x = layers.Conv2D(4, 3, name="conv", activation="relu")(x)
    x = layers.Flatten(name="flat")(layers.Resizing(7, 20, name="second", **options)(x))
    model = keras.Model(inputs, layers.Dense(5, name="head")(x), name="resized")
    randomize(model)
    return model


@pytest.mark.parametrize(
    ("method", "aspect"),
    [("nearest", None), ("lanczos3", None), ("area", "crop"), ("bicubic", "pad")],
)
def test_a_resizing_inside_a_model_is_exact(tmp_path, method, aspect):
    options = {} if aspect is None else {f"{aspect}_to_aspect_ratio": True}
    model = resized(interpolation=method, **options)
    export_keras(model, tmp_path / "m.onnx", preprocessing=UNIT, classes=CLASSES)
    exported = onnx.load(tmp_path / "m.onnx")
    pixels = images(7, 24)[:, :16]
    assert relative_error(model.predict(UNIT.apply(pixels), verbose=0), run_onnx(exported, pixels)[0]) < 3e-6
    assert "Resize" not in {node.op_type for node in exported.graph.node}


def test_the_nearest_neighbour_is_the_one_that_tensorflow_picks(tmp_path):
    class Nearest(layers.Layer):
        def call(self, x):
            import tensorflow as tf

            ways = [(False, True), (True, False), (False, False)]  # TensorFlow has no kernel for both
            return tf.concat(
                [
                    tf.raw_ops.ResizeNearestNeighbor(images=x, size=[9, 31], align_corners=a, half_pixel_centers=c)
                    for a, c in ways
                ],
                axis=-1,
            )

    inputs = layers.Input((16, 24, 3), name="pixels")
    head = layers.Dense(5, name="head")(layers.Flatten(name="flat")(Nearest(name="nearest")(inputs)))
    model = keras.Model(inputs, head, name="nearest_model")
    randomize(model)
    export_keras(model, tmp_path / "m.onnx", preprocessing=UNIT, classes=CLASSES)
    pixels = images(3, 24)[:, :16]
    expected = model.predict(UNIT.apply(pixels), verbose=0)
    assert relative_error(expected, run_onnx(onnx.load(tmp_path / "m.onnx"), pixels)[0]) < 3e-6


def test_a_resizing_to_a_size_that_pixels_decide_is_refused_by_name(tmp_path):
    class Wild(layers.Layer):
        def call(self, x):
            import tensorflow as tf

            side = tf.cast(4 + tf.reduce_max(x), tf.int32)
            x = tf.raw_ops.ResizeArea(images=x, size=tf.stack([side, side]))
            return tf.reshape(tf.reduce_mean(x, axis=(1, 2)), (-1, 3))

    inputs = layers.Input((16, 24, 3), name="pixels")
    model = keras.Model(inputs, layers.Dense(5, name="head")(Wild(name="wild")(inputs)), name="wild_model")
    with pytest.raises(ProjectError, match=r"resizing from one known size to another.*ResizeArea in .*wild"):
        export_keras(model, tmp_path / "m.onnx", preprocessing=UNIT, classes=CLASSES)
