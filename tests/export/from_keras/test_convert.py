import hashlib
import json
import logging
import subprocess
import sys

import keras
import numpy as np
import onnx
import pytest
from keras import layers
from onnx import TensorProto

from export.errors import ProjectError
from export.files import ROOT
from export.from_keras import convert
from export.from_keras.convert import export_keras
from export.from_keras.logits import logits_model
from export.metrics.distances import relative_error
from export.onnx_passes import graph
from export.preprocessing import PreprocessingSpec
from pipeline.runners.base import top_k_of
from pipeline.verification import assert_parity
from tests.export import keras_models
from tests.export.conftest import run_onnx
from tests.export.keras_models import CLASSES, classifier, images

CAFFE = PreprocessingSpec.from_mode("caffe")


def parity(keras_model, spec, model, pixels, tolerance=1e-5):
    expected = logits_model(keras_model).predict(spec.apply(pixels), verbose=0)
    logits, probabilities = run_onnx(model, pixels)
    assert relative_error(expected, logits) <= tolerance
    assert np.ptp(expected, axis=0).max() > 1e-3 * np.abs(expected).max()  # the images are told apart
    np.testing.assert_allclose(probabilities.sum(axis=1), 1, rtol=1e-5)
    assert (probabilities.argmax(axis=1) == logits.argmax(axis=1)).all()
    return logits


@pytest.mark.parametrize("batch", [1, 2, 7])
def test_parity_at_any_batch(exported, batch):
    pixels = images(7)
    logits = parity(exported.keras_model, exported.spec, exported.model, pixels)
    np.testing.assert_allclose(run_onnx(exported.model, pixels[:batch])[0], logits[:batch], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("mode", ["torch", "unit", "none"])  # the fixtures have caffe and tf
def test_parity_in_every_mode(tmp_path, mode):
    spec, model = PreprocessingSpec.from_mode(mode), classifier(head="linear")
    export_keras(model, tmp_path / "m.onnx", preprocessing=spec, classes=CLASSES)
    assert_parity(model, tmp_path / "m.onnx", images(3), preprocessing=spec, thresholds={"relative_error": 1e-5})


def test_the_interface(exported):
    shapes = graph.tensor_shapes(exported.model)
    types = {i.name: i.type.tensor_type.elem_type for i in (*exported.model.graph.input, *exported.model.graph.output)}
    assert types == {"images": TensorProto.UINT8, "logits": TensorProto.FLOAT, "probabilities": TensorProto.FLOAT}
    assert shapes["images"] == ("batch", 32, 32, 3)
    assert shapes["logits"] == shapes["probabilities"] == ("batch", 5)
    assert all(s[0] == "batch" for name, s in shapes.items() if name.endswith(":0") and len(s) in (2, 4))
    assert graph.opset(exported.model) == 17
    onnx.checker.check_model(exported.model, full_check=True)
    assert not [p for p in exported.path.parent.iterdir() if p != exported.path]


def test_metadata(exported):
    data = {p.key: p.value for p in exported.model.metadata_props}
    assert json.loads(data["classes"]) == list(CLASSES)
    assert PreprocessingSpec.from_dict(json.loads(data["preprocessing"])) == exported.spec
    assert json.loads(data["input"]) == {
        "name": "images",
        "dtype": "uint8",
        "layout": "NHWC",
        "channel_order": "RGB",
        "size": [32, 32],
    }


def test_every_batch_norm_of_v1_is_folded(v1):
    convs = sum(isinstance(x, layers.Conv2D) for x in v1.keras_model.get_layer("resnet_v1").layers)
    counts = graph.op_counts(v1.model)
    assert counts["Conv"] == convs == 15
    assert counts["Add"] == 4 + 1  # the residual ones and the Dense's bias
    assert set(counts) == {
        *("Cast", "Sub", "Transpose", "Conv", "Relu", "MaxPool", "Add"),
        *("GlobalAveragePool", "Squeeze", "MatMul", "Softmax"),
    }
    # What makes this a test: with biases that are not zero, the exporter leaves all of them.
    assert v1.summary.ops_before["Mul"] == convs
    assert v1.summary.ops_after == counts
    assert v1.summary.nodes == len(v1.model.graph.node)


def test_only_pre_activations_stay_in_v2(v2):
    counts = graph.op_counts(v2.model)
    assert counts["Mul"] == 4 + 1 + 1  # four pre-activations, post_bn, the scale of the pixels
    assert "Pad" not in counts  # no Relu stands before it, so a Max brings its border back
    assert counts["Max"] == 1
    assert not {"Shape", "Gather", "Concat", "Identity"} & set(counts)
    assert counts["Reshape"] == 1
    assert convert.unfolded_convs(v2.model) == []


def test_nodes_carry_their_layers(exported):
    leaves = {layer.name for layer in convert._layers(exported.keras_model)}
    names = [node.name for node in exported.model.graph.node]
    assert len(set(names)) == len(names)
    for node in exported.model.graph.node:
        layer, operator = node.name.split("/")
        assert layer in leaves | {"preprocessing", "probabilities"}, node.name
        assert operator.split("_")[0] == node.op_type
    convs = [n.name for n in exported.model.graph.node if n.op_type == "Conv"]
    assert "conv2_block1_0_conv/Conv" in convs
    assert sorted(n.removesuffix("/Conv") for n in convs) == sorted(n for n in leaves if n.endswith("_conv"))


def test_layers_of_numbered_names_are_told_apart(tmp_path):
    """Keras names layers conv2d, conv2d_1, …, and the exporter appends numbers to scopes."""
    x = inputs = layers.Input((16, 16, 3))
    found = []
    for width in (3, 4, 5, 6):
        found.append(layers.Conv2D(width, 3))
        x = layers.ReLU()(found[-1](x))
    model = keras.Model(inputs, layers.Dense(5)(layers.GlobalAveragePooling2D()(x)))
    keras_models.randomize(model)
    export_keras(model, tmp_path / "m.onnx", preprocessing=CAFFE, classes=CLASSES)
    exported = onnx.load(tmp_path / "m.onnx")
    table = graph.constants(exported.graph)
    widths = {n.name.split("/")[0]: table[n.input[1]].dims[0] for n in exported.graph.node if n.op_type == "Conv"}
    assert widths == {layer.name: layer.filters for layer in found}


def test_the_callers_model_is_not_changed(tmp_path):
    model = classifier(nested=True)
    weights, config = [w.numpy() for w in model.weights], model.to_json()
    pixels = CAFFE.apply(images(2))
    answers = model.predict(pixels, verbose=0)
    export_keras(model, tmp_path / "m.onnx", preprocessing=CAFFE, classes=CLASSES)
    assert model.to_json() == config
    for a, b in zip(weights, model.weights, strict=True):
        np.testing.assert_array_equal(a, b.numpy())
    np.testing.assert_array_equal(model.predict(pixels, verbose=0), answers)


@pytest.mark.parametrize("head", ["activation", "layer"])
def test_other_softmax_heads_in_a_sequential(tmp_path, head):
    base = classifier(head=head)
    model = keras.Sequential([layers.Input((32, 32, 3)), *([base])], name="wrapped")
    summary = export_keras(model, tmp_path / "m.onnx", preprocessing=CAFFE, classes=CLASSES)
    assert summary.ops_after["Softmax"] == 1
    parity(base, CAFFE, onnx.load(tmp_path / "m.onnx"), images(2))


def test_rescaling_inside_the_model_stays(tmp_path):
    inputs = layers.Input((32, 32, 3))
    x = layers.Rescaling(1 / 127.5, offset=-1)(inputs)
    model = keras.Model(inputs, classifier(head="linear")(x, training=False))
    none = PreprocessingSpec.from_mode("none")
    export_keras(model, tmp_path / "m.onnx", preprocessing=none, classes=CLASSES)
    parity(model, none, onnx.load(tmp_path / "m.onnx"), images(2))


def test_one_pixel_stages_leave_no_reshapes(tmp_path):
    model = classifier(size=16)
    summary = export_keras(model, tmp_path / "m.onnx", preprocessing=CAFFE, classes=CLASSES)
    assert "Reshape" not in summary.ops_after
    parity(model, CAFFE, onnx.load(tmp_path / "m.onnx"), images(2, 16))


def test_two_exports_are_equal_bytes(tmp_path):
    model = classifier()
    for name in ("a.onnx", "b.onnx"):
        export_keras(model, tmp_path / name, preprocessing=CAFFE, classes=CLASSES, metadata={"note": "x", "a": "b"})
    assert (tmp_path / "a.onnx").read_bytes() == (tmp_path / "b.onnx").read_bytes()


@pytest.mark.slow
def test_two_processes_export_equal_bytes(tmp_path):
    code = (
        "import sys; from tests.export.keras_models import classifier, CLASSES\n"
        "from export.from_keras.convert import export_keras; from export.preprocessing import PreprocessingSpec\n"
        "spec = PreprocessingSpec.from_mode('caffe')\n"
        "export_keras(classifier(), sys.argv[1], preprocessing=spec, classes=CLASSES)"
    )
    digests = set()
    for seed in ("1", "2"):
        path = tmp_path / f"{seed}.onnx"
        root = ROOT
        environment = {"PYTHONHASHSEED": seed, "PATH": "/usr/bin:/bin", "PYTHONPATH": str(root)}
        subprocess.run([sys.executable, "-c", code, str(path)], check=True, cwd=root, env=environment)
        digests.add(hashlib.sha256(path.read_bytes()).hexdigest())
    assert len(digests) == 1


def test_a_later_opset(tmp_path):
    model = classifier()
    summary = export_keras(model, tmp_path / "m.onnx", preprocessing=CAFFE, classes=CLASSES, opset=19)
    exported = onnx.load(tmp_path / "m.onnx")
    assert summary.opset == graph.opset(exported) == 19
    parity(model, CAFFE, exported, images(2))


def test_the_best_classes_come_out_of_the_graph(tmp_path):
    model = classifier()
    export_keras(model, tmp_path / "m.onnx", preprocessing=CAFFE, classes=CLASSES, top_k=3)
    exported = onnx.load(tmp_path / "m.onnx")
    assert [o.name for o in exported.graph.output] == ["logits", "probabilities", "top_probabilities", "top_classes"]
    for batch in (1, 2, 7):
        probabilities, values, classes = run_onnx(exported, images(batch))[1:]
        expected = top_k_of(probabilities, 3)
        np.testing.assert_array_equal(values, expected.probabilities)
        np.testing.assert_array_equal(classes, expected.classes)
        assert (values.dtype, classes.dtype) == (np.float32, np.int32)


def test_more_best_classes_than_classes(tmp_path):
    with pytest.raises(ProjectError, match=r"from 1 to 5, the number of classes\. Received: 6"):
        export_keras(classifier(), tmp_path / "m.onnx", preprocessing=CAFFE, classes=CLASSES, top_k=6)
    assert not list(tmp_path.iterdir())


def test_names_and_metadata_can_be_chosen(tmp_path):
    export_keras(
        classifier(),
        tmp_path / "m.onnx",
        preprocessing=CAFFE,
        classes=CLASSES,
        input_name="pixels",
        logits_name="scores",
        probabilities_name="p",
        metadata={"recipe": "digits"},
    )
    model = onnx.load(tmp_path / "m.onnx")
    assert [model.graph.input[0].name, *(o.name for o in model.graph.output)] == ["pixels", "scores", "p"]
    assert {p.key: p.value for p in model.metadata_props}["recipe"] == "digits"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"classes": CLASSES[:-1]}, "Expected 5 different class names.*Received: 4"),
        ({"classes": ("a", "a", "b", "c", "d")}, "4 of them different"),
        ({"classes": "abcde"}, "class names"),
        ({"metadata": {"classes": "mine"}}, "metadata"),
        ({"output": "softmax"}, "taken off"),
    ],
)
def test_arguments_that_do_not_fit(tmp_path, change, message):
    arguments = {"preprocessing": CAFFE, "classes": CLASSES, **change}
    with pytest.raises(ProjectError, match=message):
        export_keras(classifier(head="linear"), tmp_path / "m.onnx", **arguments)
    assert not list(tmp_path.iterdir())


def test_models_that_do_not_fit(tmp_path):
    def export(inputs, outputs):
        export_keras(keras.Model(inputs, outputs), tmp_path / "m.onnx", preprocessing=CAFFE, classes=CLASSES)

    free = layers.Input((None, None, 3))
    with pytest.raises(ProjectError, match="height, width"):
        export(free, layers.Dense(5)(layers.GlobalAveragePooling2D()(free)))
    gray = layers.Input((8, 8, 1))
    with pytest.raises(ProjectError, match="height, width"):
        export(gray, layers.Dense(5)(layers.GlobalAveragePooling2D()(gray)))
    one = layers.Input(batch_shape=(1, 8, 8, 3))
    with pytest.raises(ProjectError, match="free batch"):
        export(one, layers.Dense(5)(layers.GlobalAveragePooling2D()(one)))
    half = layers.Input((8, 8, 3))
    with pytest.raises(ProjectError, match="compute in float32"):
        export(half, layers.Dense(5, dtype="mixed_float16")(layers.GlobalAveragePooling2D()(half)))


def test_a_batch_norm_that_cannot_be_folded_is_named_and_exact(tmp_path, caplog):
    """It costs speed, not answers."""
    inputs = layers.Input((8, 8, 3))
    conv = layers.Conv2D(4, 3, name="shared_conv")(inputs)
    both = layers.Add()([layers.BatchNormalization()(conv), layers.ReLU()(conv)])
    model = keras.Model(inputs, layers.Dense(5)(layers.GlobalAveragePooling2D()(both)))
    keras_models.randomize(model)
    with caplog.at_level(logging.WARNING, logger="export.from_keras.convert"):
        export_keras(model, tmp_path / "m.onnx", preprocessing=CAFFE, classes=CLASSES)
    assert "shared_conv/Conv" in caplog.text
    parity(model, CAFFE, onnx.load(tmp_path / "m.onnx"), images(3, 8))


@pytest.mark.parametrize("approximate", [False, True])
def test_gelu_behind_a_convolution_is_exact(tmp_path, approximate):
    """TensorFlow writes it with Erfc, which tf2onnx does not know, and with scalars that are no BatchNorm."""
    x = inputs = layers.Input((8, 8, 3))
    x = layers.BatchNormalization()(layers.Conv2D(4, 3)(x))
    x = layers.Activation(lambda v: keras.activations.gelu(v, approximate=approximate), name="curve")(x)
    model = keras.Model(inputs, layers.Dense(5)(layers.GlobalAveragePooling2D()(x)))
    keras_models.randomize(model)
    summary = export_keras(model, tmp_path / "m.onnx", preprocessing=CAFFE, classes=CLASSES)
    assert ("Tanh" if approximate else "Erf") in summary.ops_after
    parity(model, CAFFE, onnx.load(tmp_path / "m.onnx"), images(3, 8))


def test_an_operation_without_onnx_is_named_with_its_layer(tmp_path):
    class Curve(layers.Layer):
        def call(self, x):
            import tensorflow as tf

            return tf.math.digamma(tf.nn.relu(x) + 1.0)

    inputs = layers.Input((8, 8, 3))
    x = layers.GlobalAveragePooling2D()(Curve(name="curve")(layers.Conv2D(4, 3)(inputs)))
    with pytest.raises(ProjectError, match=r"Digamma in layer 'curve' \(replace the layer"):
        export_keras(keras.Model(inputs, layers.Dense(5)(x)), tmp_path / "m.onnx", preprocessing=CAFFE, classes=CLASSES)
    assert not list(tmp_path.iterdir())


def test_a_failing_exporter_pass_is_an_error(tmp_path, monkeypatch):
    """tf2onnx itself would only log it and go on."""
    from tf2onnx.optimizer.transpose_optimizer import TransposeOptimizer

    def fail(*_):
        raise RuntimeError("broken pass")

    monkeypatch.setattr(TransposeOptimizer, "optimize", fail)
    with pytest.raises(ProjectError, match="optimize_transpose: RuntimeError: broken pass"):
        export_keras(classifier(), tmp_path / "m.onnx", preprocessing=CAFFE, classes=CLASSES)


def test_a_batch_that_got_fixed_is_an_error(v1):
    model = graph.copy_model(v1.model)
    outputs = dict.fromkeys(("logits", "probabilities"), (TensorProto.FLOAT, 5))
    convert.check_interface(model, "images", outputs)
    model.graph.output[0].type.tensor_type.shape.dim[0].dim_value = 1
    with pytest.raises(ProjectError, match="batch"):
        convert.check_interface(model, "images", outputs)
