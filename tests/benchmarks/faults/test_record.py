"""What counts as caught and as named, and the table of it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.faults.examine import Examination
from benchmarks.faults.planted import Change, Planted
from benchmarks.faults.record import CONTROL, Table, control_row, make_row, markdown, read_table, summary, table_lines
from export.records import to_json
from pipeline.artifacts.diagnosis import Hint
from pipeline.artifacts.files import write_json
from pipeline.artifacts.machine import Machine
from pipeline.artifacts.parity_report import Hop, Verdict

FP32, FP16 = "export/model.onnx", "quantize/model.fp16.onnx"
PLANTED = Planted(Change("weights times 2", ("layer scale", "weights"), ("conv1", "bn1")), FP16)
HINT = Hint(
    FP16, FP32, "layer scale", "The layer is twice what it should be.", "A factor of 2.00.", "Export it.", "bn1"
)


def hop(run: str, verdict: Verdict) -> Hop:
    return Hop("from_keras", "train/model.keras", run, "onnxruntime", "fp16", 48, verdict)


def found(*at_fault: Hop, hints: tuple[Hint, ...] = (HINT,), hops: tuple[Hop, ...] = ()) -> Examination:
    return Examination("fail" if at_fault else "pass", (*hops, *at_fault), at_fault, hints, 1.234)


def test_a_fault_that_is_named_in_full() -> None:
    row = make_row("scale", "a scale off by 2", "weights", "digits", PLANTED, found(hop(FP16, "fail")))
    assert (row.caught, row.hop, row.layer, row.cause) == (True, True, True, True)
    assert row.as_it_should_be
    assert (row.said_cause, row.said_layer, row.seconds) == ("layer scale", "bn1", 1.2)


@pytest.mark.parametrize(
    ("examination", "caught", "named_hop", "layer", "cause"),
    [
        (found(), False, False, True, True),
        (found(hop(FP32, "fail")), False, False, True, True),
        (found(hop(FP32, "fail"), hop(FP16, "fail")), True, False, True, True),
        (found(hop(FP32, "fail"), hops=(hop(FP16, "fail"),)), True, False, True, True),
        (found(hop(FP16, "fail"), hints=()), True, True, False, False),
        (found(hop(FP16, "fail"), hints=(replace(HINT, run=FP32),)), True, True, False, False),
        (found(hop(FP16, "fail"), hints=(replace(HINT, cause="padding"), HINT)), True, True, True, False),
        (found(hop(FP16, "fail"), hints=(replace(HINT, layer="conv2"),)), True, True, False, True),
    ],
    ids=["passed", "another run", "two runs", "only its source", "no hint", "of another run", "second", "other layer"],
)
def test_what_is_wrong_counts_as_wrong(
    examination: Examination, caught: bool, named_hop: bool, layer: bool, cause: bool
) -> None:
    row = make_row("scale", "a scale off by 2", "weights", "digits", PLANTED, examination)
    assert (row.caught, row.hop, row.layer, row.cause) == (caught, named_hop, layer, cause)
    assert row.as_it_should_be == (caught and named_hop)


def test_a_fault_in_no_layer_has_no_right_layer() -> None:
    planted = Planted(Change("no mean", ("mean missing",)), FP16)
    assert make_row("mean", "mean missing", "none", "digits", planted, found(hop(FP16, "fail"))).layer is None


def test_sound_work_has_to_pass_without_a_hint() -> None:
    row = control_row("digits", found(hints=()))
    assert row.fault == CONTROL
    assert row.as_it_should_be
    assert not control_row("digits", found(hop(FP16, "fail"))).as_it_should_be


def test_the_table_is_read_back_and_shown(tmp_path: Path) -> None:
    right = make_row("scale", "a scale off by 2", "weights", "digits", PLANTED, found(hop(FP16, "fail")))
    wrong = make_row("pool", "a pool", "turned", "small model", PLANTED, found(hop(FP32, "fail"), hints=()))
    rows = (control_row("digits", found(hints=())), right, wrong)
    table = Table(rows, 48, 7, Machine(packages={"onnx": "1.23.2"}), "0" * 40)
    write_json(path := tmp_path / "faults.json", to_json(table))
    assert read_table(path) == table
    said = "1 of 2 faults caught; right: the hop of 1, the cause of 1, the layer of 1 of the 2 that are in one"
    assert summary(rows) == said
    page = markdown(table)
    assert said in page
    assert (
        "| a scale off by 2 | weights times 2 | digits | quantize/model.fp16.onnx | yes | yes | bn1 | layer scale |"
        in page
    )
    assert "| NO | [export/model.onnx] | [none] | [none] |" in page
    assert "onnx 1.23.2" in page
    assert len(table_lines(rows)) == 4
