import logging

import keras
import numpy as np
import onnx
import pytest
from keras import layers, ops
from onnx import numpy_helper

from export.errors import ProjectError
from export.from_keras import convert
from export.preprocessing import PreprocessingSpec
from tests.export.keras_models import CLASSES, classifier, randomize

UNIT = PreprocessingSpec.from_mode("unit")


def export(model, path, **options):
    return convert.export_keras(model, path, preprocessing=UNIT, classes=CLASSES, **options)


def ending(inputs, x):
    x = layers.GlobalAveragePooling2D(name="pool")(x)
    model = keras.Model(inputs, layers.Dense(5, name="head")(x), name="small")
    randomize(model)
    return model


def test_a_pass_that_changes_an_answer_is_refused_with_the_layer(tmp_path, monkeypatch):
    """What a wrong pass does: here, one that changes a bias."""
    original = convert.fold_affine

    def wrong(model):
        result = original(model)
        convs = [node for node in result.graph.node if node.op_type == "Conv"]
        conv = next(node for node in convs if "conv3_block1_2_conv" in node.input[1])
        bias = next(tensor for tensor in result.graph.initializer if tensor.name == conv.input[2])
        bias.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(bias) + np.float32(0.5), bias.name))
        return result

    monkeypatch.setattr(convert, "fold_affine", wrong)
    with pytest.raises(ProjectError, match="first in the layer 'conv3_block1_2_conv' \\(Conv2D: Conv"):
        export(classifier(head="linear"), tmp_path / "m.onnx")
    assert not list(tmp_path.iterdir())


def test_answers_that_depend_on_the_batch_are_refused(tmp_path):
    inputs = layers.Input((8, 8, 3), name="pixels")
    x = layers.Conv2D(4, 3, name="conv")(inputs)
    model = ending(inputs, x - ops.mean(x, axis=0, keepdims=True))
    with pytest.raises(ProjectError, match=r"do not depend on the other pictures of a batch.*in Keras too"):
        export(model, tmp_path / "m.onnx")
    assert not list(tmp_path.iterdir())


def test_a_model_that_rounds_inside_is_judged_by_its_own_noise(tmp_path, caplog):
    """The last bit decides between whole steps, in Keras as in the export: that is no fault of the export."""
    x = inputs = layers.Input((8, 8, 3), name="pixels")
    x = layers.Conv2D(4, 3, name="conv")(x)
    model = ending(inputs, ops.mod(ops.floor(x * 1e7), 2.0))
    with caplog.at_level(logging.WARNING, logger="export.from_keras.check"):
        export(model, tmp_path / "m.onnx")
    assert "so does Keras itself" in caplog.text
    assert (tmp_path / "m.onnx").is_file()


def test_answers_that_depend_on_chance_are_refused(tmp_path):
    class Noise(layers.Layer):
        def call(self, x):
            return x * keras.random.uniform((1, 6, 6, 1), 0.0, 2.0)

    inputs = layers.Input((8, 8, 3), name="pixels")
    model = ending(inputs, Noise(name="noise")(layers.Conv2D(4, 3, name="conv")(inputs)))
    with pytest.raises(ProjectError, match=r"one answer for one picture.*from run to run"):
        export(model, tmp_path / "m.onnx")


def test_a_model_that_fixes_the_batch_inside_is_refused(tmp_path):
    class Fixed(layers.Layer):
        def call(self, x):
            import tensorflow as tf

            return tf.ensure_shape(tf.reshape(x, (3, 6, 6, -1)), (None, 6, 6, 4))

        def compute_output_shape(self, shape):
            return shape

    inputs = layers.Input((8, 8, 3), name="pixels")
    model = ending(inputs, Fixed(name="fixed")(layers.Conv2D(4, 3, name="conv")(inputs)))
    with pytest.raises(ProjectError, match="batch"):
        export(model, tmp_path / "m.onnx")
    assert not list(tmp_path.iterdir())


def test_inputs_and_outputs_with_names_are_checked_too(tmp_path):
    inputs = layers.Input((8, 8, 3), name="pixels")
    x = ending(inputs, layers.Conv2D(4, 3, name="conv")(inputs)).output
    export(keras.Model({"pixels": inputs}, {"scores": x}, name="named"), tmp_path / "m.onnx")
    assert (tmp_path / "m.onnx").is_file()


def test_a_graph_that_does_not_run_is_refused():
    from export.from_keras.check import check_logits
    from tests.export.tiny_graphs import pixel_graph

    nodes = [("Reshape", ["f", "odd"], "g", {}), ("ReduceMean", ["g"], "y", {"axes": [1], "keepdims": 0})]
    model = pixel_graph(nodes, {"odd": np.array([5, -1])}, ("batch", 8, 8, 3), shapes={"y": [5]})
    inputs = layers.Input((8, 8, 3), name="pixels")
    with pytest.raises(ProjectError, match="export that ONNX Runtime runs"):
        check_logits(model, ending(inputs, layers.Conv2D(4, 3, name="conv")(inputs)), UNIT)


def test_a_right_export_differs_by_float_noise_only(tmp_path, caplog):
    spec = PreprocessingSpec.from_mode("caffe")
    with caplog.at_level(logging.DEBUG, logger="export.from_keras.check"):
        convert.export_keras(classifier(), tmp_path / "m.onnx", preprocessing=spec, classes=CLASSES)
    found = [
        float(r.message.split(" by ")[1].split(" ")[0]) for r in caplog.records if "differs from Keras" in r.message
    ]
    assert len(found) == 1
    assert 0 < found[0] < 1e-5


def test_the_check_reads_the_channel_order_and_the_scale(tmp_path):
    """Handed another preprocessing than the graph has, it must see that."""
    from export.from_keras.check import check_logits
    from export.from_keras.logits import logits_model

    model = classifier(head="linear")
    export(model, tmp_path / "m.onnx")
    exported = onnx.load(tmp_path / "m.onnx")
    check_logits(exported, logits_model(model), UNIT)
    for other in (PreprocessingSpec.from_mode("tf"), PreprocessingSpec("BGR", UNIT.mean, UNIT.scale)):
        with pytest.raises(ProjectError, match="gives the model's logits"):
            check_logits(exported, logits_model(model), other)
