"""Weights and scales that do not follow from the FP32 file fail the verdict, although the answers stay near."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from export.int8.scales import Scales
from pipeline.artifacts.parity_report import CONSISTENCY, VALUES_OF, Hop, ParityReport
from pipeline.artifacts.tensor_changes import write_changes
from pipeline.recipe.schema import VerifyThresholds
from pipeline.runners.open import open_runner
from pipeline.verification.checks.rounded import Misfit, Origin, Rounded
from pipeline.verification.culprits import culprits
from pipeline.verification.evaluate import evaluate
from pipeline.verification.explain.case import Case
from pipeline.verification.explain.causes import explain
from pipeline.verification.explain.misfits import explain_misfits, find_misfits
from pipeline.verification.parity import Candidate, Reference, judge
from tests import tiny_onnx

PIXELS = tiny_onnx.pixels(24)
SOURCE = "export/model.onnx"
Values = dict[str, np.ndarray]


def values_of(model: onnx.ModelProto) -> Values:
    return {tensor.name: numpy_helper.to_array(tensor).copy() for tensor in model.graph.initializer}


def with_values(model: onnx.ModelProto, change: Callable[[Values], None]) -> onnx.ModelProto:
    values = values_of(model)
    change(values)
    for tensor in model.graph.initializer:
        tensor.CopyFrom(
            numpy_helper.from_array(values[tensor.name].astype(numpy_helper.to_array(tensor).dtype), tensor.name)
        )
    return model


def own_back_scale(name: str, tensor: str) -> Callable[[onnx.ModelProto], None]:
    """Give the DequantizeLinear of a tensor another scale than its QuantizeLinear."""

    def change(model: onnx.ModelProto) -> None:
        back = next(node for node in model.graph.node if list(node.output) == [f"{tensor}_dq"])
        model.graph.initializer.append(numpy_helper.from_array(values_of(model)[name] * np.float32(2), "other"))
        back.input[1] = "other"

    return change


def setting(name: str, change: Callable[[np.ndarray], object]) -> Callable[[onnx.ModelProto], None]:
    def apply(model: onnx.ModelProto) -> None:
        with_values(model, lambda values: values.update({name: np.asarray(change(values[name]))}))

    return apply


def first_doubled(scales: np.ndarray) -> np.ndarray:
    return scales * np.where(np.arange(len(scales)) == 0, 2, 1)


def one_value(weight: np.ndarray) -> np.ndarray:
    changed = weight.copy()
    changed.flat[5] *= 1.01
    return changed


@pytest.fixture
def origin(tmp_path: Path) -> Origin:
    (tmp_path / "scales.json").write_text(Scales({"nchw": 2.0}, "minmax", 8).to_json())
    return Origin(SOURCE, tiny_onnx.write(tmp_path / "fp32.onnx"), tmp_path / "scales.json")


def found_in(model: onnx.ModelProto, folder: Path, origin: Origin) -> Rounded | None:
    onnx.save(model, folder / "candidate.onnx")
    return find_misfits(folder / "candidate.onnx", origin, PIXELS)


@pytest.mark.parametrize(("precision", "weights", "scales"), [("int8", 2, 1), ("fp16", 4, 0), ("fp32", 4, 0)])
def test_what_follows_from_its_source_is_sound(
    tmp_path: Path, origin: Origin, precision: str, weights: int, scales: int
) -> None:
    found = found_in(tiny_onnx.classifier(precision), tmp_path, origin)
    assert found == Rounded(SOURCE, weights, scales)


FLIPPED = setting("kernel", lambda weight: weight[:, :, ::-1, ::-1])
FAULTS = [
    ("int8", FLIPPED, "weights", "conv", "216 weights"),
    ("int8", setting("k_scale", lambda scales: np.roll(scales, 1)), "weights", "conv", "farther"),
    ("int8", setting("k_scale", lambda scales: scales * 2), "weights", "conv", "in 8 of 8 output channels"),
    ("int8", setting("k_scale", first_doubled), "weights", "conv", "in 1 of 8 output channels"),
    ("int8", own_back_scale("k_scale", "kernel"), "weights", "conv", "divided by one scale and multiplied by another"),
    ("int8", setting("k_zero", lambda zero: zero + 3), "weights", "conv", "TensorRT refuses"),
    ("int8", setting("dense", one_value), "weights", "dense", "1 of its 32 weights is farther"),
    ("int8", setting("x_zero", lambda zero: zero + 40), "layer scale", "transpose", "zero point of its scale is 40"),
    ("int8", setting("x_scale", lambda scale: scale * 2), "layer scale", "transpose", "2 times the one that quantize"),
    ("int8", own_back_scale("x_scale", "nchw"), "layer scale", "transpose", "divided by 2 and multiplied by 4"),
    ("fp16", FLIPPED, "weights", "conv", "farther"),
    ("fp16", setting("dense", one_value), "weights", "dense", "1 of its 32 weights is farther"),
    ("fp16", setting("bias", one_value), "weights", "conv", "1 of its 8 biases is farther"),
    ("fp16", setting("kernel", lambda weight: np.full_like(weight, np.nan)), "weights", "conv", "farther"),
]  # fmt: skip


@pytest.mark.parametrize(("precision", "fault", "cause", "layer", "text"), FAULTS)
def test_what_does_not_is_named_with_its_layer(
    tmp_path: Path,
    origin: Origin,
    precision: str,
    fault: Callable[[onnx.ModelProto], None],
    cause: str,
    layer: str,
    text: str,
) -> None:
    model = tiny_onnx.classifier(precision)
    fault(model)
    found = found_in(model, tmp_path, origin)
    assert found is not None
    (misfit,) = found.misfits
    assert (misfit.cause, misfit.layer) == (cause, layer)
    assert text in misfit.text


@pytest.mark.parametrize(
    ("factor", "cause", "noted"),
    [(0.5, "saturation", 0), (0.98, None, 1), (1.0, None, 0), (3.0, None, 0), (5.0, None, 1), (16.0, "layer scale", 0)],
)
def test_a_scale_without_a_record_is_held_against_the_values(
    tmp_path: Path, origin: Origin, factor: float, cause: str | None, noted: int
) -> None:
    model = tiny_onnx.classifier("int8")
    setting("x_scale", lambda scale: scale * factor)(model)
    found = found_in(model, tmp_path, replace(origin, scales=None))
    assert found is not None
    assert [misfit.cause for misfit in found.misfits] == ([cause] if cause else [])
    assert len(found.notes) == noted


def test_equalization_is_taken_into_account(tmp_path: Path, origin: Origin) -> None:
    """Else every weight would be wrong; with no record of the factors nothing can be said."""
    origin = replace(origin, path=tiny_onnx.write(tmp_path / "two.onnx", more_convolutions=1), scales=None)
    factors = np.geomspace(0.3, 3, 8)

    def equalize(values: Values) -> None:
        for name, shape, power in (("kernel", (-1, 1, 1, 1), -1), ("bias", (-1,), -1), ("kernel1", (1, -1, 1, 1), 1)):
            values[name] = values[name] * (factors**power).reshape(shape)
        for kernel, scale in (("kernel", "k_scale"), ("kernel1", "k_scale1")):
            values[scale] = np.abs(values[kernel]).max((1, 2, 3)) / 127

    model = tiny_onnx.classifier("int8", more_convolutions=1)
    model.graph.initializer.append(numpy_helper.from_array(values_of(model)["bias"], "bias1"))
    next(node for node in model.graph.node if node.name == "conv1").input[2] = "bias1"  # with a bias of its own
    model = with_values(model, equalize)
    write_changes(tmp_path / "tensors.npz", {"conv": factors, "relu": factors}, {})
    known = replace(origin, changes=tmp_path / "tensors.npz")
    found = found_in(model, tmp_path, known)
    assert found is not None
    assert (found.weights, [misfit for misfit in found.misfits if misfit.cause == "weights"]) == (3, [])
    assert found_in(model, tmp_path, origin) is None


def test_files_without_values_in_common_are_not_compared(tmp_path: Path, origin: Origin) -> None:
    model = tiny_onnx.classifier("fp16")
    for node in model.graph.node:
        node.name = f"other/{node.name}"
    assert found_in(model, tmp_path, origin) is None


def test_a_file_that_cannot_be_compared_hides_no_verdict(
    tmp_path: Path, origin: Origin, caplog: pytest.LogCaptureFixture
) -> None:
    assert find_misfits(tmp_path / "none.onnx", origin, PIXELS) is None
    assert "whether its weights and scales are those of export/model.onnx is unknown" in caplog.text


def judged(folder: Path, origin: Origin, model: onnx.ModelProto, fp32: onnx.ModelProto) -> tuple[ParityReport, Case]:
    """The verdict on an FP32 file and the INT8 file beside it; the reference is the sound FP32 file."""
    with open_runner(origin.path, "onnxruntime", "fp32") as runner:
        logits = runner.infer(PIXELS).logits
    reference = Reference("keras", "", PIXELS, logits.argmax(axis=1), logits)
    candidates = []
    for precision, graph in (("fp32", fp32), ("int8", model)):
        path = folder / f"{precision}-judged.onnx"
        onnx.save(graph, path)
        name, opened = f"{precision}.onnx", partial(open_runner, path, "onnxruntime", precision)
        source = SOURCE if precision == "int8" else None
        candidates.append(Candidate(name if source else SOURCE, "onnxruntime", precision, "", source, opened))
    own = replace(origin, path=folder / "fp32-judged.onnx")
    candidates[1] = replace(candidates[1], rounded=partial(find_misfits, folder / "int8-judged.onnx", own))
    answers = {one.run_name: evaluate(one, PIXELS, 8, lambda _: None) for one in candidates}
    parity = judge(candidates, answers, reference, VerifyThresholds())
    card = None  # of which nothing is asked where a misfit settles it
    return parity, Case(candidates, answers, reference, card, {})  # type: ignore[arg-type]


def values_hop(parity: ParityReport) -> Hop | None:
    return next(
        (hop for hop in parity.hops if hop.kind == CONSISTENCY and hop.reference == f"{VALUES_OF}{SOURCE}"), None
    )


def test_one_wrong_scale_fails_a_verdict_that_its_answers_pass(tmp_path: Path, origin: Origin) -> None:
    model = tiny_onnx.classifier("int8")
    setting("x_scale", lambda scale: scale * 2)(model)
    parity, case = judged(tmp_path, origin, model, tiny_onnx.classifier())
    hop = values_hop(parity)
    assert hop is not None
    assert [one for one in parity.hops if one.verdict == "fail"] == [hop]
    assert "layer 'transpose': its scale is 2 times the one that quantize recorded" in hop.why
    (hint,) = explain(culprits(parity.hops), case)
    assert (hint.cause, hint.layer) == ("layer scale", "transpose")
    assert "The answers hide it" in hint.evidence


def test_a_sound_file_passes_and_says_what_was_compared(tmp_path: Path, origin: Origin) -> None:
    hop = values_hop(judged(tmp_path, origin, tiny_onnx.classifier("int8"), tiny_onnx.classifier())[0])
    assert hop is not None
    assert (hop.verdict, hop.certainty) == (
        "pass", "2 weights within rounding of export/model.onnx's, 1 scale of activations that fit"
    )  # fmt: skip


def test_nothing_is_held_against_a_file_that_is_wrong_itself(tmp_path: Path, origin: Origin) -> None:
    fp32 = tiny_onnx.classifier()
    setting("dense", lambda weight: weight * 2)(fp32)
    parity, _ = judged(tmp_path, origin, tiny_onnx.classifier("int8"), fp32)
    assert values_hop(parity) is None
    assert {hop.run_name for hop in culprits(parity.hops)} == {SOURCE}


def test_an_engine_of_a_wrong_file_fails_with_it(tmp_path: Path, origin: Origin) -> None:
    model = tiny_onnx.classifier("int8")
    setting("x_scale", lambda scale: scale * 2)(model)
    _, case = judged(tmp_path, origin, model, tiny_onnx.classifier())
    file = case.candidates[1]
    engine = replace(file, name="build/rtx/int8.plan", backend="tensorrt", step_from=file.name, rounded=None)
    answers = {**case.answers, engine.run_name: replace(case.answers[file.name], rounded=None)}
    parity = judge([*case.candidates, engine], answers, case.reference, VerifyThresholds())
    assert parity.verdict_of(engine.name, {}) == "not verified"
    assert parity.verdict_of(engine.name, {engine.name: ""}) == "fail"
    assert [hop.run_name for hop in culprits(parity.hops)] == [file.name]


def test_many_wrong_scales_are_a_calibration() -> None:
    misfits = tuple(Misfit("layer scale", f"layer{i}", f"layer 'layer{i}': its scale is 2 times") for i in range(5))
    logits = np.eye(4, dtype=np.float32)
    found = explain_misfits(Rounded(SOURCE, 9, 8, misfits), logits, logits * np.float32(1.01), "int8")
    assert (found.cause, found.layer, found.settles) == ("calibration", "", True)
    assert found.text.startswith("5 of 8 INT8 scales are not")
    assert "So are 4 more values." in found.evidence
    few = explain_misfits(Rounded(SOURCE, 9, 20, misfits), logits, None, "int8")
    assert (few.cause, few.layer, few.settles) == ("layer scale", "layer0", False)
