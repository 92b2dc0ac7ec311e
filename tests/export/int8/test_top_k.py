"""The best classes that the graph picks, through every step that makes a file: they stay FP32, and stay right."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto

from export.errors import ProjectError
from export.fp16.convert import TENSORRT8_OPSET, to_half
from export.int8.bias_correction import bias_errors, collect_mean_maps, correct_biases
from export.int8.qdq import quantize
from export.int8.simulate import simulate
from export.onnx_passes import graph
from export.onnx_passes.file import save_model
from export.onnx_passes.signature import append_top_k
from export.tensorrt.build import build_engine
from export.tensorrt.library import find_tensorrt, why_missing
from export.tensorrt.network import check_tensors
from export.tensorrt.sidecar import OUTPUTS, TOP_OUTPUTS, BatchProfile
from pipeline.runners.base import top_k_of
from pipeline.runners.onnxruntime import OnnxRunner
from tests.export.conftest import calibrate, run_onnx
from tests.export.keras_models import images

K = 3
FILES = ("fp32", "fp16", "int8", "fp16-trt8", "int8-trt8")


@pytest.fixture(scope="module")
def files(v2):
    """Each file that the chain writes, without top-k and with it."""

    def made(model):
        scales = calibrate(model, [images(16, seed=seed) for seed in (1, 2)])
        maps = collect_mean_maps(model, [images(16, seed=1)], scales)
        corrected, _ = correct_biases(model, bias_errors(model, maps))
        int8, older = (quantize(corrected, scales, base=base) for base in ("fp16", "fp32"))
        return {
            "fp32": (model, None),
            "fp16": (to_half(model), None),
            "int8": (int8.model, int8.placements),
            "fp16-trt8": (to_half(model, minimum_opset=TENSORRT8_OPSET), None),
            "int8-trt8": (older.model, older.placements),
        }

    return made(v2.model), made(append_top_k(v2.model, "probabilities", K))


def test_what_is_for_tensorrt_8_is_at_its_opset(files):
    opsets = {name: graph.opset(model) for name, (model, _) in files[0].items()}
    assert opsets == {"fp32": 17, "fp16": 19, "int8": 19, "fp16-trt8": 17, "int8-trt8": 17}
    kinds = {tensor.data_type for tensor in files[0]["fp16-trt8"][0].graph.initializer}
    assert TensorProto.FLOAT16 in kinds


def test_scales_have_no_fp16_there(files):
    with pytest.raises(ProjectError, match="valid"):
        to_half(files[0]["int8-trt8"][0], minimum_opset=TENSORRT8_OPSET)


@pytest.mark.parametrize("name", FILES)
def test_the_best_classes_are_those_of_the_probabilities(files, name):
    _, with_top = files
    model, _ = with_top[name]
    _, probabilities, values, classes = run_onnx(model, images(32, seed=5), exact=True)
    expected = top_k_of(probabilities, K)
    np.testing.assert_array_equal(values, expected.probabilities)
    np.testing.assert_array_equal(classes, expected.classes)
    assert len(set(classes[:, 0])) > 1  # the images are told apart


@pytest.mark.parametrize("name", FILES)
def test_the_rest_of_the_file_is_as_without(files, name):
    without, with_top = files[0][name][0], files[1][name][0]
    onnx.checker.check_model(with_top, full_check=True)
    added = list(with_top.graph.node)[len(without.graph.node) :]
    assert list(with_top.graph.node)[: len(without.graph.node)] == list(without.graph.node)
    assert [(node.op_type, node.name) for node in added] == [
        ("TopK", "top_probabilities/TopK"),
        ("Cast", "top_classes/Cast"),
    ]
    assert added[0].input[0] == "probabilities"  # no cast in between
    kinds = {o.name: o.type.tensor_type.elem_type for o in with_top.graph.output}
    assert kinds == dict.fromkeys((*OUTPUTS, "top_probabilities"), TensorProto.FLOAT) | {
        "top_classes": TensorProto.INT32
    }
    assert graph.opset(with_top) == graph.opset(without)
    assert np.array_equal(simulate(with_top, images(4)), simulate(without, images(4)))


def test_bf16_too(files):
    model = to_half(files[1]["fp32"][0], "bf16")
    top = next(node for node in model.graph.node if node.op_type == "TopK")
    assert list(top.input[:1]) == ["probabilities"]
    assert [o.type.tensor_type.elem_type for o in model.graph.output] == [TensorProto.FLOAT] * 3 + [TensorProto.INT32]


@pytest.mark.parametrize("name", ["int8", "int8-trt8"])
def test_the_placement_says_that_they_are_fp32(files, name):
    precisions = {row.node: row.precision for row in files[1][name][1]}
    assert precisions["top_probabilities/TopK"] == precisions["top_classes/Cast"] == "fp32"
    assert precisions.items() >= {row.node: row.precision for row in files[0][name][1]}.items()


@pytest.mark.parametrize("name", FILES)
def test_onnxruntime_gives_only_them(files, name, tmp_path, monkeypatch):
    path = save_model(files[1][name][0], tmp_path / "model.onnx")
    pixels = images(7, seed=3)
    with OnnxRunner(path, max_batch=3) as runner:
        assert runner.graph_top_k == K
        probabilities = runner.infer(pixels).probabilities
        asked = []
        session = runner._session
        monkeypatch.setattr(runner, "_session", Recording(session, asked))
        for k in (1, 2, K):
            top, expected = runner.top(pixels, k), top_k_of(probabilities, k)
            np.testing.assert_array_equal(top.classes, expected.classes)
            np.testing.assert_array_equal(top.probabilities, expected.probabilities)
        assert set(asked) == {TOP_OUTPUTS}
        more = runner.top(pixels, K + 1)  # more than the graph picks: the host does
        np.testing.assert_array_equal(more.classes, top_k_of(probabilities, K + 1).classes)
        assert asked[-1] == OUTPUTS


class Recording:
    """A session that says which outputs were asked for."""

    def __init__(self, session, asked):
        self.session, self.asked = session, asked

    def get_inputs(self):
        return self.session.get_inputs()

    def run(self, names, feeds):
        self.asked.append(tuple(names))
        return self.session.run(names, feeds)


def test_without_them_the_host_picks(files, tmp_path):
    path = save_model(files[0]["fp32"][0], tmp_path / "model.onnx")
    pixels = images(5, seed=3)
    with OnnxRunner(path) as runner:
        assert runner.graph_top_k == 0
        expected = top_k_of(runner.infer(pixels).probabilities, 2)
        np.testing.assert_array_equal(runner.top(pixels, 2).classes, expected.classes)


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_a_real_tensorrt_builds_it(files, precision, tmp_path):
    rtx = find_tensorrt("rtx")
    if rtx is None:
        pytest.skip(why_missing()["rtx"])
    source = save_model(files[1][precision][0], tmp_path / "model.onnx")
    built = build_engine(source, tmp_path / "e.plan", precision=precision, profile=BatchProfile(1, 4, 8), trt=rtx)
    assert [(t.name, t.dtype, list(t.shape)) for t in built.tensors if t.mode == "output"] == [
        ("logits", "float32", [-1, 5]),
        ("probabilities", "float32", [-1, 5]),
        ("top_probabilities", "float32", [-1, K]),
        ("top_classes", "int32", [-1, K]),
    ]
    assert built.network_layers["TOPK"] == 1


class Tensor:
    def __init__(self, name, dtype, shape):
        self.name, self.dtype, self.shape = name, f"DataType.{dtype}", shape


class Network:
    """What `check_tensors` asks of a parsed network."""

    def __init__(self, *outputs):
        self.inputs, self.outputs = [Tensor("images", "UINT8", (-1, 8, 8, 3))], [Tensor(*one) for one in outputs]
        self.num_inputs, self.num_outputs = 1, len(outputs)

    def get_input(self, index):
        return self.inputs[index]

    def get_output(self, index):
        return self.outputs[index]


LOGITS, PROBABILITIES = (("logits", "FLOAT", (-1, 9)), ("probabilities", "FLOAT", (-1, 9)))
VALUES, CLASSES = (("top_probabilities", "FLOAT", (-1, 5)), ("top_classes", "INT32", (-1, 5)))


@pytest.mark.parametrize("outputs", [(LOGITS, PROBABILITIES), (LOGITS, PROBABILITIES, VALUES, CLASSES)])
def test_a_build_takes_the_outputs(outputs):
    listed = check_tensors(Network(*outputs), BatchProfile(1, 2, 4), "m.onnx")
    assert [one.name for one in listed] == ["images", *(name for name, _, _ in outputs)]


@pytest.mark.parametrize(
    "outputs",
    [
        (LOGITS,),
        (LOGITS, ("probabilities", "FLOAT", (-1, 8))),
        (LOGITS, ("probabilities", "HALF", (-1, 9))),
        (LOGITS, ("probabilities", "FLOAT", (-1, 9, 1))),
        (("logits", "FLOAT", (-1, 0)), ("probabilities", "FLOAT", (-1, 0))),
        (LOGITS, PROBABILITIES, VALUES),
        (LOGITS, PROBABILITIES, CLASSES),
        (LOGITS, PROBABILITIES, ("top_probabilities", "HALF", (-1, 5)), CLASSES),
        (LOGITS, PROBABILITIES, VALUES, ("top_classes", "INT64", (-1, 5))),
        (LOGITS, PROBABILITIES, VALUES, ("top_classes", "INT32", (-1, 4))),
        (LOGITS, PROBABILITIES, ("top_probabilities", "FLOAT", (-1, 10)), ("top_classes", "INT32", (-1, 10))),
        (LOGITS, PROBABILITIES, VALUES, CLASSES, ("more", "FLOAT", (-1, 5))),
        (VALUES, CLASSES),
    ],
)
def test_a_build_refuses_other_outputs(outputs):
    with pytest.raises(ProjectError, match="top_classes int32"):
        check_tensors(Network(*outputs), BatchProfile(1, 2, 4), "m.onnx")
