"""Faults in the files of a finished recipe are explained with their cause and layer; what is right has no hint."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from export.onnx_passes.graph import topological_sort
from pipeline.artifacts.files import sha256_file
from pipeline.artifacts.parity_report import FAIL, Hop
from pipeline.artifacts.paths import CARD, KERAS, ONNX, REFERENCE, TENSORS
from pipeline.artifacts.tensor_changes import read_changes
from pipeline.models.model_card import read_card
from pipeline.recipe.schema import Thresholds, VerifyThresholds
from pipeline.runners.keras import load_logits_model
from pipeline.runners.open import open_runner
from pipeline.verification.checks.engine_files import REMEDY
from pipeline.verification.culprits import culprits
from pipeline.verification.evaluate import evaluate
from pipeline.verification.explain.case import Case
from pipeline.verification.explain.causes import explain
from pipeline.verification.explain.twin import quantized_tensors
from pipeline.verification.parity import Answer, Candidate, Reference, judge
from tests.conftest import Chain

IMAGES = 32
CONV = "stage2_block2_1_conv/Conv"


class Bench:
    """The tiny recipe's files, one of which is replaced."""

    def __init__(self, root: Path) -> None:
        saved = np.load(root / REFERENCE)
        pixels, labels, logits = (saved[name][:IMAGES] for name in ("pixels", "labels", "logits"))
        self.root, self.card = root, read_card(root / CARD)
        self.reference = Reference(KERAS, "", pixels, labels, logits)
        self.network = load_logits_model(root / KERAS, self.card.output)
        self.changes = read_changes(root / TENSORS)

    def load(self, precision: str) -> onnx.ModelProto:
        return onnx.load(str(self.root / ONNX[precision]))

    def judged(
        self, folder: Path, precision: str, model: onnx.ModelProto, thresholds: VerifyThresholds | None = None
    ) -> tuple[Sequence[Hop], Case]:
        """The comparisons at fault of the FP32 file and of another one, which replaces it if it is FP32 itself."""
        path = folder / "planted.onnx"
        path.write_bytes(model.SerializeToString())
        files = {ONNX["fp32"]: ("fp32", self.root / ONNX["fp32"]), ONNX[precision]: (precision, path)}
        candidates = []
        for name, (kind, file) in files.items():
            runner = partial(open_runner, file, "onnxruntime", kind)
            source = ONNX["fp32"] if kind != "fp32" else None
            candidates.append(Candidate(name, "onnxruntime", kind, sha256_file(file), source, runner))
        answers = {c.run_name: evaluate(c, self.reference.pixels, 16, lambda images: None) for c in candidates}
        parity = judge(candidates, answers, self.reference, thresholds or VerifyThresholds())
        paths = {name: file for name, (_, file) in files.items()}
        case = Case(candidates, answers, self.reference, self.card, paths, lambda: self.network, self.changes)
        return culprits(parity.hops), case


@pytest.fixture(scope="module")
def bench(made_chain: Chain) -> Bench:
    return Bench(made_chain.root)


def changed(model: onnx.ModelProto, **weights: np.ndarray | float) -> onnx.ModelProto:
    """The model with weights multiplied, by the last word of their name."""
    for tensor in model.graph.initializer:
        for name, factor in weights.items():
            if tensor.name in (f"{CONV}/{name}", f"{CONV}/{name}/quantized"):  # the codes of INT8
                values = numpy_helper.to_array(tensor)
                tensor.CopyFrom(numpy_helper.from_array((values * factor).astype(values.dtype), tensor.name))
    return model


def node_of(model: onnx.ModelProto, name: str) -> onnx.NodeProto:
    return next(node for node in model.graph.node if node.name == name)


def with_attribute(model: onnx.ModelProto, node: onnx.NodeProto, name: str, value: object) -> onnx.ModelProto:
    kept = [item for item in node.attribute if item.name != name]
    del node.attribute[:]
    node.attribute.extend([*kept, helper.make_attribute(name, value)])
    return model


def cut_off(shape: Sequence[int]) -> np.ndarray:
    mask = np.ones(shape).reshape(-1)
    mask[-len(mask) // 3 :] = 0
    return mask.reshape(shape)


SHAPE = (32, 32, 3, 3)


def plant(model: onnx.ModelProto, fault: str, bench: Bench) -> onnx.ModelProto:
    if fault == "layer scale":
        return changed(model, weight=2.0)
    if fault == "weights":
        return changed(model, weight=cut_off(SHAPE))
    if fault == "padding":
        return with_attribute(model, node_of(model, CONV), "pads", [0, 0, 2, 2])
    if fault == "attribute":
        node = node_of(model, "stage2_block2_1_relu/Relu")
        node.op_type = "LeakyRelu"
        return with_attribute(model, node, "alpha", 0.3)
    if fault == "epsilon":
        norm = bench.network.get_layer("stage2_block2_1_bn")
        variance, beta = np.asarray(norm.moving_variance), np.asarray(norm.beta)
        factor = np.sqrt((variance + norm.epsilon) / (variance + 0.3))
        for tensor in model.graph.initializer:
            if tensor.name == f"{CONV}/bias":
                bias = (numpy_helper.to_array(tensor) - beta) * factor + beta
                tensor.CopyFrom(numpy_helper.from_array(bias.astype(np.float32), tensor.name))
        return changed(model, weight=factor.reshape(-1, 1, 1, 1))
    assert fault == "wiring"
    add, other = node_of(model, "stage1_block3_add/Add"), node_of(model, "stage1_block2_add/Add")
    add.input[1] = other.input[1]
    return model


LAYERS = {
    "layer scale": "stage2_block2_1_conv",
    "weights": "stage2_block2_1_conv",
    "padding": "stage2_block2_1_conv",
    "attribute": "stage2_block2_1_relu",
    "epsilon": "stage2_block2_1_bn",
    "wiring": "stage1_block3_add",
}


@pytest.mark.parametrize(
    ("fault", "precision"),
    [
        *((fault, "fp32") for fault in ("padding", "epsilon", "wiring")),
        *(pytest.param(fault, "fp32", marks=pytest.mark.slow) for fault in ("layer scale", "weights", "attribute")),
        *(pytest.param(fault, "fp16", marks=pytest.mark.slow) for fault in LAYERS if fault != "epsilon"),
        *(
            pytest.param(fault, "int8", marks=pytest.mark.slow) for fault in ("weights", "wiring")
        ),  # a scale cuts larger weights off
    ],
)
def test_a_fault_in_a_layer_is_named(fault: str, precision: str, bench: Bench, tmp_path: Path) -> None:
    hops, case = bench.judged(tmp_path, precision, plant(bench.load(precision), fault, bench))
    assert [hop.candidate for hop in hops] == [ONNX[precision]]
    hint = explain(hops, case)[0]
    assert (hint.run, hint.cause, hint.layer) == (ONNX[precision], fault, LAYERS[fault])
    assert hint.text.endswith(".")
    assert hint.evidence
    verb = "export" if precision == "fp32" else "quantize"
    assert fault == "epsilon" or f"python -m pipeline {verb} -c RECIPE --force" in hint.remedy


def test_a_layer_that_the_file_leaves_out_is_named(bench: Bench, tmp_path: Path) -> None:
    model = bench.load("fp32")
    relu = node_of(model, "stage2_block2_1_relu/Relu")
    for node in model.graph.node:
        node.input[:] = [relu.input[0] if name == relu.output[0] else name for name in node.input]
    model.graph.node.remove(relu)
    hint = explain(*bench.judged(tmp_path, "fp32", model))[0]
    assert (hint.cause, hint.layer) == ("wiring", "stage2_block2_1_relu")
    assert "is missing in the file" in hint.text


def test_another_dilation_is_named(bench: Bench, tmp_path: Path) -> None:
    model = bench.load("fp32")
    with_attribute(model, node_of(model, CONV), "dilations", [2, 2])
    with_attribute(model, node_of(model, CONV), "pads", [2, 2, 2, 2])
    hint = explain(*bench.judged(tmp_path, "fp32", model))[0]
    assert (hint.cause, hint.layer) == ("attribute", "stage2_block2_1_conv")
    assert "the dilation is (2, 2) instead of (1, 1)" in hint.text


def put_in(model: onnx.ModelProto, behind: str, *steps: tuple[str, float], readers: Sequence[str] = ()) -> None:
    """Put nodes with a constant, and no name of a layer, between a node and those that read it, or some of them."""
    source = node_of(model, behind).output[0]
    last = source
    for index, (kind, value) in enumerate(steps):
        model.graph.initializer.append(numpy_helper.from_array(np.float32(value), f"put/{index}"))
        model.graph.node.append(helper.make_node(kind, [last, f"put/{index}"], [f"put{index}"], f"graph/{index}"))
        last = f"put{index}"
    for node in model.graph.node:
        if not node.name.startswith("graph/") and (not readers or node.name in readers):
            node.input[:] = [last if name == source else name for name in node.input]
    model.CopyFrom(topological_sort(model))


INFINITE = (("Mul", 0.0), ("Add", -1.0), ("Pow", 0.5))  # the root of -1


@pytest.mark.parametrize(
    ("behind", "steps", "readers", "cause", "layer"),
    [
        ("stage2_block3_add/Add", [("Mul", 0.5)], [], "layer scale", "stage2_block3_add"),
        ("head_pool/Squeeze", [("Mul", 49 / 64)], [], "layer scale", "head_pool"),
        ("stage2_block1_out/Relu", INFINITE, [], "not finite", "stage2_block1_out"),
        ("stage2_block1_out/Relu", INFINITE, [CONV], "not finite", "stage2_block1_out"),
    ],
)
def test_what_was_put_in_behind_a_layer_is_blamed_on_that_one(
    behind: str,
    steps: Sequence[tuple[str, float]],
    readers: Sequence[str],
    cause: str,
    layer: str,
    bench: Bench,
    tmp_path: Path,
) -> None:
    model = bench.load("fp32")
    put_in(model, behind, *steps, readers=readers)
    hint = explain(*bench.judged(tmp_path, "fp32", model))[0]
    assert (hint.cause, hint.layer) == (cause, layer)


@pytest.mark.parametrize(("training", "cause"), [(1, "training mode"), (0, "epsilon")])
def test_a_batchnorm_without_a_name_is_named(training: int, cause: str, bench: Bench, tmp_path: Path) -> None:
    model, norm = bench.load("fp32"), bench.network.get_layer("stage2_block2_1_bn")
    kernel = np.asarray(bench.network.get_layer("stage2_block2_1_conv").kernel).transpose(3, 2, 0, 1)
    weights = {f"{CONV}/weight": kernel, f"{CONV}/bias": np.zeros(len(kernel), np.float32)}
    for tensor in model.graph.initializer:
        if tensor.name in weights:
            tensor.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(weights[tensor.name]), tensor.name))
    parts = ("gamma", "beta", "moving_mean", "moving_variance")
    model.graph.initializer.extend(numpy_helper.from_array(np.asarray(getattr(norm, part)), part) for part in parts)
    conv = node_of(model, CONV)
    after, conv.output[0] = conv.output[0], "unfolded"
    outputs = [after, "mean", "variance"] if training else [after]
    options = {"training_mode": 1} if training else {"epsilon": 0.3}
    model.graph.node.append(helper.make_node("BatchNormalization", ["unfolded", *parts], outputs, **options))
    model.CopyFrom(topological_sort(model))
    hint = explain(*bench.judged(tmp_path, "fp32", model))[0]
    assert (hint.cause, hint.layer) == (cause, "stage2_block2_1_bn")


def test_a_skip_that_is_subtracted_is_named(bench: Bench, tmp_path: Path) -> None:
    model = bench.load("fp32")
    node_of(model, "stage2_block2_add/Add").op_type = "Sub"
    hint = explain(*bench.judged(tmp_path, "fp32", model))[0]
    assert (hint.cause, hint.layer) == ("attribute", "stage2_block2_add")
    assert "Sub where Keras has Add" in hint.text


def test_two_faults_are_both_named(bench: Bench, tmp_path: Path) -> None:
    model = changed(bench.load("fp32"), weight=2.0)
    with_attribute(model, node_of(model, "stage3_block2_1_conv/Conv"), "pads", [2, 2, 0, 0])
    hops, case = bench.judged(tmp_path, "fp32", model)
    found = [(hint.cause, hint.layer) for hint in explain(hops, case)]
    assert found == [("layer scale", "stage2_block2_1_conv"), ("padding", "stage3_block2_1_conv")]


@pytest.mark.slow
def test_low_quality_is_no_fault_of_a_layer(bench: Bench, tmp_path: Path) -> None:
    """All activations with three bits: no cause but the scales themselves."""
    model = bench.load("int8")
    factors: Mapping[str, float] = {pair.scale_name: 24.0 for pair in quantized_tensors(model)}
    for tensor in model.graph.initializer:
        if tensor.name in factors:
            values = numpy_helper.to_array(tensor)
            tensor.CopyFrom(numpy_helper.from_array((values * factors[tensor.name]).astype(values.dtype), tensor.name))
    hops, case = bench.judged(tmp_path, "int8", model)
    assert hops
    assert {hint.cause for hint in explain(hops, case)} <= {"unknown", "calibration"}


def test_a_right_file_has_no_cause(bench: Bench, tmp_path: Path) -> None:
    hops, case = bench.judged(tmp_path, "fp32", bench.load("fp32"))
    assert list(hops) == []
    whole = judge(case.candidates, case.answers, case.reference, VerifyThresholds()).hops
    (hint,) = explain([replace(whole[0], verdict=FAIL, why="it was said to fail")], case)
    assert (hint.cause, hint.layer) == ("unknown", "")


def test_without_keras_what_needs_none_is_said(bench: Bench, tmp_path: Path) -> None:
    def missing() -> None:
        raise ModuleNotFoundError("No module named 'keras'")

    model = bench.load("fp32")
    for tensor in model.graph.initializer:
        if tensor.name.startswith("predictions/"):
            values = np.ascontiguousarray(numpy_helper.to_array(tensor)[..., ::-1])
            tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    hops, case = bench.judged(tmp_path, "fp32", model)
    (hint,) = explain(hops, replace(case, load=missing))  # type: ignore[arg-type]
    assert hint.cause == "class order"
    hops, case = bench.judged(tmp_path, "fp32", plant(bench.load("fp32"), "padding", bench))
    assert [hint.cause for hint in explain(hops, replace(case, load=None))] == ["unknown"]


def test_an_error_of_its_own_hides_nothing(bench: Bench, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    hops, case = bench.judged(tmp_path, "fp32", plant(bench.load("fp32"), "padding", bench))
    damaged = tmp_path / "damaged.onnx"
    damaged.write_bytes(b"no model")
    (hint,) = explain(hops, replace(case, paths={ONNX["fp32"]: damaged}))
    assert hint.cause == "unknown"
    assert "ended in an error" in hint.text, "a page without a hint would look like one that found nothing to say"
    assert "could not be computed" in caplog.text


@pytest.mark.parametrize("why_not", ["p.plan is stale: of another file", "p.plan is not the plan of its sidecar"])
def test_an_engine_that_must_not_run_is_named_by_what_the_verdict_says(
    why_not: str, bench: Bench, tmp_path: Path
) -> None:
    hops, case = bench.judged(tmp_path, "fp32", plant(bench.load("fp32"), "padding", bench))
    engine = replace(case.candidates[0], name="p.plan", backend="tensorrt", why_not=f"{why_not}. {REMEDY}")
    hop = replace(hops[0], candidate="p.plan", backend="tensorrt")
    answers = {**case.answers, "p.plan": Answer(None, FAIL, engine.why_not)}
    (hint,) = explain([hop], replace(case, candidates=[*case.candidates, engine], answers=answers))
    assert (hint.cause, hint.evidence, hint.remedy) == ("stale engine", f"{why_not}.", REMEDY)


def test_rounding_that_only_adds_up_is_blamed_on_nothing(bench: Bench, tmp_path: Path) -> None:
    thresholds = VerifyThresholds(int8=Thresholds(sqnr_db=100.0))
    (hint,) = explain(*bench.judged(tmp_path, "int8", bench.load("int8"), thresholds))
    assert (hint.cause, hint.layer) == ("unknown", "")
    assert "No fault was found" in hint.text
    assert "without the rounding of activations" in hint.evidence
