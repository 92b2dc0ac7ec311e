"""Each of the nineteen faults fails the verdict at its own hop, and sound artifacts pass."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.faults.catalogue import FAULTS
from pipeline.artifacts.parity_report import FAIL, STEP
from pipeline.artifacts.paths import ONNX
from tests.benchmarks.faults.conftest import Bench, examined

# INT8 keeps its thresholds in spite of these: images of another colour, or centred elsewhere, have much the same range.
MILD = {("calibration", "no mean"), ("calibration", "channels")}
# FP16 or INT8, made again from the FP32 file with the fault, may lose too much against that file, too: also at fault.
MORE_THAN_ONE = {
    *(("mean", "none, inherited"), ("mean", "twice, inherited"), ("mean", "other unit, inherited")),
    *(("resize", "corners, inherited"), ("scale", "weights and bias, inherited"), ("skips", "exchanged, inherited")),
}
FIRST = [(name, next(iter(fault.forms))) for name, fault in FAULTS.items()]
# The same at another end: in the files that are made from the first, in engines, or inherited by all files.
OTHERS = [
    ("channels", "weights, inherited"),
    ("mean", "twice, fp16"),
    ("resize", "interpolation, int8"),
    ("softmax", "behind, int8"),
    ("scale", "scale of an activation, int8"),
    ("stale", "former weights"),
    ("weights", "bits, fp16"),
    ("weights", "codes, int8"),
    ("offset", "unrounded sums, int8"),
]
MORE = [
    (name, form)
    for name, fault in FAULTS.items()
    for form in fault.forms
    if (name, form) not in [*FIRST, *OTHERS] and (name, form) not in MILD
]


def test_there_are_nineteen() -> None:
    assert len(FAULTS) == 19
    assert all(len(fault.forms) > 1 for fault in FAULTS.values())


def test_sound_artifacts_pass(tiny: Bench, small: Bench) -> None:
    for bench in (tiny, small):
        found = bench.examiner.examine(bench.specimen, None)
        assert (found.verdict, found.runs, found.hints) == ("pass", (), ()), [hop.why for hop in found.hops]


@pytest.mark.parametrize(("name", "form"), [*FIRST, *OTHERS], ids=lambda text: text.replace(", ", "-"))
def test_each_is_caught_at_its_hop(benches: tuple[Bench, ...], name: str, form: str, tmp_path: Path) -> None:
    planted, found = examined(benches, name, form, tmp_path)
    assert found.catches(planted), "the run with the fault fails"
    assert found.names_hop(planted), f"{found.runs} are said to be at fault, and {planted.run} is"


@pytest.mark.slow
@pytest.mark.parametrize(("name", "form"), MORE, ids=lambda text: text.replace(", ", "-"))
def test_each_form_is_caught_at_its_hop(small: Bench, tiny: Bench, name: str, form: str, tmp_path: Path) -> None:
    if form.startswith("matrix") or form in ("none", "caffe") or form.startswith("no scale"):
        pytest.skip("neither model has it: a resizing by a product, pixels that are scaled")
    planted, found = examined((small, tiny), name, form, tmp_path)
    assert found.catches(planted), "the run with the fault fails"
    if (name, form) in MORE_THAN_ONE:
        first, *others = found.runs
        lost = {hop.run_name for hop in found.hops if hop.kind == STEP and hop.verdict == FAIL}
        assert first == planted.run
        assert set(others) <= lost <= {ONNX["fp16"], ONNX["int8"]}
        return
    assert found.names_hop(planted), f"{found.runs} are said to be at fault, and {planted.run} is"


def test_scales_of_other_pixels_are_not_taken_for_other_pixels(small: Bench, tmp_path: Path) -> None:
    planted, found = small.examine("calibration", "unit", tmp_path, explained=True)
    hint = found.hint(planted)
    assert hint is not None
    assert hint.cause == "calibration", hint.text


def test_a_value_beyond_fp16_is_named_with_its_layer(small: Bench, tmp_path: Path) -> None:
    for form in ("activation, fp16", "between, fp16"):
        planted, found = small.examine("overflow", form, tmp_path / form, explained=True)
        assert found.catches(planted)
        assert found.names_cause(planted)
        assert found.names_layer(planted)


@pytest.mark.slow
def test_causes_and_layers_are_named(benches: tuple[Bench, ...], tmp_path: Path) -> None:
    causes, layers = {}, {}
    for name, form in FIRST:
        planted, found = examined(benches, name, form, tmp_path / name, explained=True)
        causes[name] = found.names_cause(planted)
        if (layer := found.names_layer(planted)) is not None:
            layers[name] = layer
    assert sum(causes.values()) >= 17, [name for name, right in causes.items() if not right]
    assert all(layers.values()), layers
