"""FP16 in true arithmetic: every node of an FP16 file gives what NumPy's float16 gives."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import TensorProto, helper
from onnx.reference import ReferenceEvaluator

from export.errors import ProjectError
from export.fp16.convert import has_half
from export.ort_session import open_session
from pipeline.verification.layers.half import compute_in_half, half_note
from pipeline.verification.layers.subject import Subject
from tests.export.tiny_graphs import graph
from tests.tiny_onnx import classifier, pixels

IMAGES = pixels(6)
KERAS = open_session(classifier(), exact=True).run(["logits"], {"images": IMAGES})[0]


def test_only_files_with_fp16_in_them_are_computed_again():
    assert has_half(classifier("fp16"))
    assert not has_half(classifier())
    cast = graph([("Cast", ["x"], "h", {"to": TensorProto.FLOAT16}), ("Cast", ["h"], "y", {"to": TensorProto.FLOAT})])
    assert has_half(cast)


def test_four_images_against_keras_and_against_the_cpu():
    model = classifier("fp16")
    half = compute_in_half(Subject("quantize/model.fp16.onnx", "fp16", model), IMAGES, KERAS)
    assert (half.run, half.images, half.agreement, half.finite) == ("quantize/model.fp16.onnx", 4, 1.0, True)
    assert 40 < half.sqnr_db < 100
    assert 40 < half.cpu_sqnr_db < 100
    assert 0 < half.relative_error < 1e-2
    assert f"4 images are {half.sqnr_db:.1f} dB from Keras' and {half.cpu_sqnr_db:.1f} dB from those" in half_note(half)


def test_no_image_is_begun_after_the_time():
    model = classifier("fp16")
    assert compute_in_half(Subject("fp16", "fp16", model), IMAGES, KERAS, seconds=0).images == 1


def test_a_file_of_a_fixed_batch_gets_that_many():
    half = compute_in_half(Subject("fp16", "fp16", classifier("fp16", batch=3)), IMAGES, KERAS)
    assert half.images == 3


def test_what_the_evaluator_does_not_know_is_said():
    model = classifier()
    (relu,) = (node for node in model.graph.node if node.op_type == "Relu")
    relu.op_type, relu.domain = "Gelu", "com.microsoft"
    model.opset_import.add(domain="com.microsoft", version=1)
    with pytest.raises(ProjectError, match=r"Expected fp16 to be computed by ONNX's reference evaluator. Received: "):
        compute_in_half(Subject("fp16", "fp16", model), IMAGES, KERAS)


def test_an_overflow_is_said_without_numbers_that_json_lacks():
    model = classifier("fp16")
    (dense,) = (one for one in model.graph.initializer if one.name == "dense")
    dense.raw_data = np.full(dense.dims, 65000, np.float16).tobytes()
    half = compute_in_half(Subject("fp16", "fp16", model), IMAGES, KERAS)
    assert not half.finite
    assert (half.sqnr_db, half.relative_error, half.cpu_sqnr_db, half.agreement) == (None, None, None, 0.0)


def one_node(operator, *inputs, **attributes):
    names = [f"i{at}" for at in range(len(inputs))]
    kinds = [helper.np_dtype_to_tensor_dtype(value.dtype) for value in inputs]
    node = helper.make_node(operator, names, ["y"], **attributes)
    given = [helper.make_tensor_value_info(n, k, v.shape) for n, k, v in zip(names, kinds, inputs)]
    made = helper.make_graph([node], "one", given, [helper.make_tensor_value_info("y", TensorProto.FLOAT16, None)])
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", 19)], ir_version=9)
    return ReferenceEvaluator(model).run(None, dict(zip(names, inputs)))[0]


def test_a_sum_of_products_is_exact_to_fp32_and_rounded_once():
    """Added in FP16, 4,096 ones would stop at 2,048; what is said of the evaluator is this."""
    ones = np.ones((1, 4096), np.float16)
    conv = one_node("Conv", ones.reshape(1, 4096, 1, 1), ones.reshape(1, 4096, 1, 1))
    for value in (conv, one_node("MatMul", ones, ones.T), one_node("Gemm", ones, ones.T)):
        assert value.dtype == np.float16
        assert value.item() == 4096
    with np.errstate(over="ignore"):
        assert np.isinf(one_node("MatMul", ones * 16, ones.T).item())  # 65,536


def test_a_bias_a_residual_and_a_scale_are_rounded_to_fp16_each():
    one, little = np.ones((1, 1, 1, 1), np.float16), np.full(1, 2.0**-12, np.float16)
    assert one_node("Conv", one, one, little).item() == 1  # in FP32, 1.000244
    for operator in ("Add", "Sub", "Mul"):
        value = one_node(operator, one, (1 + little).astype(np.float16))
        assert value.dtype == np.float16
    assert one_node("Add", one, little.reshape(1, 1, 1, 1)).item() == 1


@pytest.mark.parametrize(
    ("operator", "attributes"),
    [
        ("Relu", {}),
        ("GlobalAveragePool", {}),
        ("MaxPool", {"kernel_shape": [2, 2]}),
        ("AveragePool", {"kernel_shape": [2, 2]}),
        ("Flatten", {}),
        ("Softmax", {}),
        ("Transpose", {"perm": [0, 2, 3, 1]}),
    ],
)
def test_what_a_resnet_has_besides_stays_in_fp16(operator, attributes):
    value = one_node(operator, np.arange(32, dtype=np.float16).reshape(1, 2, 4, 4), **attributes)
    assert value.dtype == np.float16
