"""An ONNX file of any origin gives the answers of the classifier, whatever its names, layout, types and batch size."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from export.errors import ProjectError, RunnerError, UnfitError
from pipeline.runners.base import softmax
from pipeline.runners.foreign import ForeignRunner, are_probabilities, log_softmax, read_onnx_file
from pipeline.runners.onnxruntime import OnnxRunner
from tests import tiny_onnx
from tests.foreign_onnx import SIDE, foreign

PIXELS = tiny_onnx.pixels(5)


def as_floats(pixels: np.ndarray) -> np.ndarray:
    return pixels.astype(np.float32)


def opened(path: Path, **options: object) -> ForeignRunner:
    return ForeignRunner(path, (SIDE, SIDE), preprocess=as_floats, **options)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> np.ndarray:
    with OnnxRunner(tiny_onnx.write(tmp_path_factory.mktemp("own") / "own.onnx")) as runner:
        return runner.infer(PIXELS).logits


@pytest.mark.parametrize("floats", [True, False])
@pytest.mark.parametrize("channels_first", [True, False])
@pytest.mark.parametrize("shape", ["right", "free", "fixed to 1", "fixed to 4", "free sides"])
def test_every_form_of_input_gives_the_same_logits(
    floats: bool, channels_first: bool, shape: str, expected: np.ndarray, tmp_path: Path
) -> None:
    batch = {"fixed to 1": 1, "fixed to 4": 4}.get(shape, "n")
    sides = ["h", "w"] if shape == "free sides" else [SIDE, SIDE]
    form = ["n", "a", "b", "c"] if shape == "free" else [batch, 3, *sides] if channels_first else [batch, *sides, 3]
    path = foreign(tmp_path / "x.onnx", floats=floats, channels_first=channels_first, shape=form)
    with opened(path) as runner:
        np.testing.assert_allclose(runner.infer(PIXELS).logits, expected, rtol=1e-4, atol=1e-4)
        assert runner.classes == len(tiny_onnx.CLASSES)
        assert runner.top(PIXELS, 1).classes[:, 0].tolist() == expected.argmax(axis=1).tolist()
        assert runner.notes == (
            ("its batch size is fixed to 1, so images run one by one",) if batch == 1
            else ("its batch size is fixed to 4",) if batch == 4 else ()
        )  # fmt: skip
    assert read_onnx_file(path).size == (None if shape in ("free", "free sides") else (SIDE, SIDE))


def test_of_several_outputs_the_logits_are_taken(expected: np.ndarray, tmp_path: Path) -> None:
    path = foreign(tmp_path / "x.onnx", outputs=("pool", "probabilities", "logits"))
    with opened(path, classes=len(tiny_onnx.CLASSES)) as runner:
        np.testing.assert_allclose(runner.infer(PIXELS).logits, expected, rtol=1e-4, atol=1e-4)
        assert runner.log_floor is None


def test_probabilities_are_given_with_their_logarithms(expected: np.ndarray, tmp_path: Path) -> None:
    with opened(foreign(tmp_path / "x.onnx", outputs=("probabilities",))) as runner:
        outputs = runner.infer(PIXELS)
        assert runner.log_floor is not None
        np.testing.assert_allclose(outputs.probabilities, softmax(expected), rtol=1e-3, atol=1e-6)
        np.testing.assert_allclose(outputs.logits, log_softmax(expected, runner.log_floor), rtol=1e-4, atol=1e-4)
        assert "it gives probabilities, so logarithms of probabilities are compared" in runner.notes


@pytest.mark.parametrize(
    ("outputs", "said"),
    [
        (("logits", "gemm"), r"logits \(3, 4\), gemm \(3, 4\)"),
        (("pool",), r"with 4 values for each image.*pool \(3, 8"),
    ],
)
def test_outputs_that_may_be_anything_are_listed(outputs: tuple[str, ...], said: str, tmp_path: Path) -> None:
    with pytest.raises(RunnerError, match=said), opened(foreign(tmp_path / "x.onnx", outputs=outputs), classes=4):
        pass


def test_another_size_is_refused_with_the_shape_of_the_file(tmp_path: Path) -> None:
    path = foreign(tmp_path / "x.onnx")
    with pytest.raises(RunnerError, match=r"input of 20x20 images.*'n', 3, 16, 16"), ForeignRunner(path, (20, 20)):
        pass


def test_a_second_input_is_refused(tmp_path: Path) -> None:
    path = foreign(tmp_path / "x.onnx")
    model = onnx.load(str(path))
    model.graph.input.append(helper.make_tensor_value_info("mask", TensorProto.FLOAT, ["n"]))
    onnx.save(model, str(path))
    with pytest.raises(UnfitError, match=r"Expected one input of images.*mask"), opened(path):
        pass


def test_scores_in_a_sequence_are_refused_and_beside_a_tensor_left_alone(expected: np.ndarray, tmp_path: Path) -> None:
    path = foreign(tmp_path / "x.onnx")
    model = onnx.load(str(path))
    (scores,) = model.graph.output
    model.graph.node.append(helper.make_node("SplitToSequence", [scores.name], ["rows"], axis=0, keepdims=1))
    model.graph.output.append(helper.make_tensor_sequence_value_info("rows", TensorProto.FLOAT, None))
    onnx.save(model, str(path))
    with opened(path) as runner:
        np.testing.assert_allclose(runner.infer(PIXELS).logits, expected, rtol=1e-4, atol=1e-4)
    del model.graph.output[0]
    onnx.save(model, str(path))
    with pytest.raises(UnfitError, match=r"Expected an output of floats.*rows: seq\(tensor\(float\)\)"), opened(path):
        pass


def test_what_can_never_be_compared_is_told_from_what_fails(tmp_path: Path) -> None:
    """Another number of classes is another model; a row too few for a batch is a fault of it."""
    path = foreign(tmp_path / "x.onnx")
    with pytest.raises(UnfitError, match="with 9 values for each image"), opened(path, classes=9):
        pass
    model = onnx.load(str(path))
    (scores,) = model.graph.output
    for name, values in (("from", [0]), ("to", [1])):
        model.graph.initializer.append(helper.make_tensor(name, TensorProto.INT64, [1], values))
    model.graph.node.append(helper.make_node("Slice", [scores.name, "from", "to"], ["first"]))
    del model.graph.output[:]
    model.graph.output.append(helper.make_tensor_value_info("first", TensorProto.FLOAT, [None, 4]))
    onnx.save(model, str(path))
    with pytest.raises(RunnerError, match=r"first \(1, 4\)") as caught, opened(path, classes=4):
        pass
    assert not isinstance(caught.value, UnfitError)


def test_a_batch_that_is_fixed_inside_the_graph_is_told(tmp_path: Path) -> None:
    path = foreign(tmp_path / "x.onnx")
    model = onnx.load(str(path))
    flatten = next(node for node in model.graph.node if node.op_type == "Flatten")
    flatten.op_type = "Reshape"
    del flatten.attribute[:]
    flatten.input.append("baked")
    model.graph.initializer.append(helper.make_tensor("baked", TensorProto.INT64, [2], [1, 8]))
    onnx.save(model, str(path))
    with pytest.raises(RunnerError, match="to run a batch of 3"), opened(path):
        pass


def test_pixels_for_a_file_of_floats_need_preprocessing(tmp_path: Path) -> None:
    path = foreign(tmp_path / "x.onnx")
    with ForeignRunner(path, (SIDE, SIDE)) as runner, pytest.raises(RunnerError, match="Expected preprocessing"):
        runner.infer(PIXELS)
    with pytest.raises(RunnerError, match="open runner"):
        runner.scores(as_floats(PIXELS))


def test_a_file_that_is_none_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.onnx").write_bytes(b"no model")
    with pytest.raises(ProjectError, match="ONNX"), opened(tmp_path / "x.onnx"):
        pass


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_the_precision_is_what_the_file_says(precision: str, tmp_path: Path) -> None:
    path = foreign(tmp_path / "x.onnx", precision=precision)
    assert read_onnx_file(path).precision == precision
    with opened(path, precision=precision) as runner:
        assert np.isfinite(runner.infer(PIXELS).logits).all()


def test_probabilities_are_told_from_logits() -> None:
    logits = np.random.default_rng(0).normal(0, 5, (6, 10)).astype(np.float32)
    assert are_probabilities(softmax(logits))
    assert are_probabilities(softmax(logits).astype(np.float16))
    assert are_probabilities(np.vstack([softmax(logits), np.full((1, 10), np.nan, np.float32)]))
    assert not are_probabilities(logits)
    assert not are_probabilities(np.full((1, 10), np.nan, np.float32))
    np.testing.assert_allclose(log_softmax(logits, -87), np.log(softmax(logits)), rtol=1e-5, atol=1e-5)
    assert log_softmax(logits, -5).min() == -5
