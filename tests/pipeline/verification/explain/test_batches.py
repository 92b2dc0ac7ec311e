"""What the batch does to answers is found by running the same images together and alone."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import onnx
import pytest
from onnx import helper

from export.errors import DeviceUnavailableError, RunnerError
from pipeline.artifacts.parity_report import FAIL, PASS, Hop
from pipeline.artifacts.paths import KERAS
from pipeline.models.model_card import ModelCard
from pipeline.runners.base import Outputs, softmax
from pipeline.runners.onnxruntime import OnnxRunner
from pipeline.verification.explain.batches import Runs, explain_batches, nodes_over_batch, run_in_batches
from pipeline.verification.explain.case import Case
from pipeline.verification.explain.causes import explain
from pipeline.verification.parity import Answer, Candidate, Reference
from tests import tiny_onnx
from tests.foreign_onnx import foreign

IMAGES = tiny_onnx.pixels(8)
WEIGHTS = np.random.default_rng(0).normal(0, 1e-4, (IMAGES[0].size, 4))


def right(pixels: np.ndarray) -> np.ndarray:
    return (pixels.reshape(len(pixels), -1) @ WEIGHTS).astype(np.float32)


class FakeRunner:
    """Answers by a function of the pixels."""

    def __init__(self, answer: Callable[[np.ndarray], np.ndarray], over: int = -1) -> None:
        self.answer, self.over = answer, over

    def __enter__(self) -> FakeRunner:
        return self

    def __exit__(self, *exc: object) -> None:
        pass

    def infer(self, pixels: np.ndarray) -> Outputs:
        logits = self.answer(pixels)
        probabilities = softmax(logits) if self.over == -1 else softmax(np.ascontiguousarray(logits.T)).T
        return Outputs(logits, probabilities)


def candidate(open_runner: Callable[[], Any]) -> Candidate:
    return Candidate("x.onnx", "onnxruntime", "fp32", "", None, open_runner)


def causes(answer: Callable[[np.ndarray], np.ndarray], **options: Any) -> list[str]:
    runs = run_in_batches(candidate(lambda: FakeRunner(answer, **options)), IMAGES)
    assert runs is not None
    found = explain_batches(right(IMAGES), runs, "fp32", None, runs.together, None)
    return [explanation.cause for explanation in found]


def only_one(pixels: np.ndarray) -> np.ndarray:
    if len(pixels) > 1:
        raise RunnerError("Expected one image. Received: more.")
    return right(pixels)


def mixed(pixels: np.ndarray) -> np.ndarray:
    logits = right(pixels)
    return logits + (logits.mean(axis=0) if len(pixels) > 1 else 0)


def one_nan(pixels: np.ndarray) -> np.ndarray:
    logits = right(pixels)
    logits[3:4] = np.nan
    return logits


@pytest.mark.parametrize(
    ("answer", "options", "expected"),
    [
        (right, {}, []),
        (only_one, {}, ["fixed batch"]),
        (mixed, {}, ["batch dependence"]),
        (one_nan, {}, ["not finite"]),
        (right, {"over": 0}, ["activation"]),
        (lambda pixels: 1.5 * right(pixels), {}, []),
    ],
)
def test_the_batch_is_blamed_where_it_is_at_fault(
    answer: Callable[[np.ndarray], np.ndarray], options: dict[str, int], expected: list[str]
) -> None:
    assert causes(answer, **options) == expected


def test_a_nan_of_the_image_itself_is_told_from_one_of_the_batch() -> None:
    def of_the_image(pixels: np.ndarray) -> np.ndarray:
        logits = right(pixels)
        logits[(pixels == IMAGES[5]).all(axis=(1, 2, 3))] = np.nan
        return logits

    texts = []
    for answer in (one_nan, of_the_image):
        runs = run_in_batches(candidate(lambda answer=answer: FakeRunner(answer)), IMAGES)
        assert runs is not None
        (found,) = explain_batches(right(IMAGES), runs, "fp32", None, runs.together, None)
        texts.append(f"{found.text} {found.evidence}")
    assert "comes from the batch" in texts[0]
    assert "Test image 3: 4 x NaN" in texts[0]
    assert "comes from what these images hold" in texts[1]
    assert "Test image 5" in texts[1]


def test_a_nan_of_a_file_that_takes_floats_is_named_without_its_layer(tmp_path: Path) -> None:
    run, logits = candidate(lambda: FakeRunner(one_nan)), one_nan(IMAGES)
    case = Case(
        [run],
        {run.run_name: Answer(logits, PASS)},
        Reference(KERAS, "", IMAGES, np.zeros(len(IMAGES), int), right(IMAGES)),
        cast(ModelCard, SimpleNamespace(classes=tuple("abcd"))),
        {run.name: foreign(tmp_path / "theirs.onnx")},
    )
    hop = Hop("from_keras", KERAS, run.name, "onnxruntime", "fp32", len(IMAGES), FAIL)
    (hint,) = explain([hop], case)
    assert (hint.cause, hint.layer) == ("not finite", "")


def test_a_device_that_is_not_here_is_not_run() -> None:
    def unavailable() -> Any:
        raise DeviceUnavailableError("Expected a GPU. Received: none.", "no GPU")

    assert run_in_batches(candidate(unavailable), IMAGES) is None


def test_the_sizes_that_run_are_named(tmp_path: Path) -> None:
    path = tiny_onnx.write(tmp_path / "model.onnx", batch=2)
    runs = run_in_batches(candidate(lambda: OnnxRunner(path)), IMAGES)
    assert runs is not None
    assert runs.works == (2,)
    assert runs.alone is None
    (found,) = explain_batches(right(IMAGES), runs, "fp32", path, None, partial(onnx.load, path))
    assert "batches of 2" in found.text
    assert "2 x 16 x 16 x 3" in found.evidence


def test_a_batch_size_above_the_images_that_are_tried_is_found(tmp_path: Path) -> None:
    path = tiny_onnx.write(tmp_path / "model.onnx", batch=32)
    runs = run_in_batches(candidate(lambda: OnnxRunner(path)), IMAGES)
    assert runs is not None
    assert runs.works == (32,)
    (found,) = explain_batches(right(IMAGES), runs, "fp32", path, None, partial(onnx.load, path))
    assert found.cause == "fixed batch"
    assert "takes batches of 32 at a time and fails with fewer" in found.text


def test_a_mean_over_the_batch_alone_is_no_batchnorm(tmp_path: Path) -> None:
    model, path = tiny_onnx.classifier(), tmp_path / "mean.onnx"
    logits = next(node for node in model.graph.node if node.name == "logits")
    logits.output[:] = ["raw"]
    place = list(model.graph.node).index(logits) + 1
    model.graph.node.insert(place, helper.make_node("Sub", ["raw", "mean"], ["logits"], "sub"))
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.asarray([0]), "axes"))
    model.graph.node.insert(place, helper.make_node("ReduceMean", ["raw", "axes"], ["mean"], "mean"))
    path.write_bytes(model.SerializeToString())
    runs = run_in_batches(candidate(lambda: OnnxRunner(path)), IMAGES)
    assert runs is not None
    assert nodes_over_batch(onnx.load(path))
    (found,) = explain_batches(right(IMAGES), runs, "fp32", path, None, partial(onnx.load, path))
    assert (found.cause, found.layer) == ("batch dependence", "")
    assert "ReduceMean 'mean' computes over the first dimension" in found.evidence


def normalizing(**attributes: int) -> onnx.ModelProto:
    model = tiny_onnx.classifier()
    for node in model.graph.node:
        node.input[:] = ["normal" if name == "conv" else name for name in node.input]
    weights = [f"norm{index}" for index in range(4)]
    for name, value in zip(weights, (1, 0, 0, 1)):
        model.graph.initializer.append(onnx.numpy_helper.from_array(np.full(8, value, np.float32), name))
    outputs = ["normal", "mean", "var"] if attributes.get("training_mode") else ["normal"]
    node = helper.make_node("BatchNormalization", ["conv", *weights], outputs, "norm/Batch", **attributes)
    model.graph.node.insert(next(i for i, n in enumerate(model.graph.node) if n.name == "relu"), node)
    return model


def test_batchnorm_in_training_mode_is_named_with_its_layer(tmp_path: Path) -> None:
    path, good = tmp_path / "training.onnx", tmp_path / "good.onnx"
    path.write_bytes(normalizing(training_mode=1).SerializeToString())
    good.write_bytes(normalizing().SerializeToString())
    with OnnxRunner(good) as runner:
        expected = runner.infer(IMAGES).logits
    runs = run_in_batches(candidate(lambda: OnnxRunner(path)), IMAGES)
    assert runs is not None
    (found,) = explain_batches(expected, runs, "fp32", path, runs.together, partial(onnx.load, path))
    assert (found.cause, found.layer) == ("training mode", "norm")
    assert nodes_over_batch(onnx.load(good)) == []


def test_batchnorm_in_single_operators_is_named_whatever_its_nodes_are_called(tmp_path: Path) -> None:
    model, path = tiny_onnx.classifier(), tmp_path / "single.onnx"
    for node in model.graph.node:
        node.input[:] = ["normal" if name == "conv" else name for name in node.input]
    for name, value in (("axes", np.asarray([0, 2, 3])), ("epsilon", np.float32(1e-3))):
        model.graph.initializer.append(onnx.numpy_helper.from_array(np.asarray(value), name))
    place = next(i for i, n in enumerate(model.graph.node) if n.name == "relu")
    for index, (kind, inputs, output) in enumerate(
        (
            ("ReduceMean", ["conv", "axes"], "mean"),
            ("Sub", ["conv", "mean"], "centred"),
            ("Mul", ["centred", "centred"], "squares"),
            ("ReduceMean", ["squares", "axes"], "variance"),
            ("Add", ["variance", "epsilon"], "more"),
            ("Sqrt", ["more"], "deviation"),
            ("Div", ["centred", "deviation"], "normal"),
        )
    ):
        model.graph.node.insert(place + index, helper.make_node(kind, inputs, [output], f"{kind}_{index}"))
    path.write_bytes(model.SerializeToString())
    runs = run_in_batches(candidate(lambda: OnnxRunner(path)), IMAGES)
    assert runs is not None
    (found,) = explain_batches(right(IMAGES), runs, "fp32", path, None, partial(onnx.load, path))
    assert found.cause == "training mode"


def test_rows_that_all_are_not_finite_are_left_to_others() -> None:
    broken = np.full((8, 4), np.nan, np.float32)
    assert explain_batches(right(IMAGES), Runs(broken, None, broken), "fp32", None, broken, None) == []
