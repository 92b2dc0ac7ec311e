from __future__ import annotations

import numpy as np

from export.tensorrt.sidecar import REBUILD
from pipeline.artifacts.diagnosis import Hint
from pipeline.artifacts.image_results import ImageResults
from pipeline.artifacts.parity_report import CONSISTENCY, FAIL, PASS, STEP, ParityReport, describe_distances
from pipeline.artifacts.results import VerifiedHop
from pipeline.verification.checks.engine_files import REMEDY
from pipeline.verification.explain.engines import explain_engine
from pipeline.verification.table import describe_hint, parity_table, shorten_hops
from tests.made_records import make_hop

FP32, INT8 = "export/model.onnx", "quantize/model.int8.onnx"
CHANGED = (3, 50, 99)
HOPS = (
    make_hop(FP32, sqnr_db=None, max_abs=0.0),
    make_hop(INT8, FAIL, top1_agreement=0.97, changed=CHANGED, why="too few", kl=0.0123),
    make_hop(INT8, kind=STEP, reference=FP32, top1_agreement=0.97, changed=CHANGED),
    make_hop(INT8, kind=CONSISTENCY, reference="itself", top1_agreement=None, certainty="a list of all that was tried"),
    make_hop("build/rtx/int8.plan", "not run", why="no GPU", top1_agreement=None, sqnr_db=None),
)
PARITY = ParityReport(FAIL, {}, HOPS, {})


def results(margin: float = 0.01, lost: bool = False) -> ImageResults:
    margins = np.ones(100, np.float32)
    margins[[3, 99]] = margin
    classes = np.zeros((3, 100), np.int32)
    classes[1:, CHANGED] = (1, 1, -1 if lost else 1)
    empty = np.zeros(classes.shape)
    return ImageResults(("",) * 100, np.zeros(100, int), ("k", FP32, INT8), classes, empty, margins, empty)


def test_each_line_has_both_ends_and_the_answers_that_changed() -> None:
    head, first, second, step, itself, *rest = parity_table(PARITY, results()).splitlines()
    assert head.split()[:4] == ["verdict", "reference", "->", "candidate"]
    assert first.startswith(f"  pass      Keras -> {FP32} ")
    assert "  0 of 100  " in first
    assert second.startswith(f"  fail [1]  Keras -> {INT8} ")
    assert "  3 of 100, 2 near ties  " in second
    assert second.endswith("  1.2e-02")
    assert step.startswith(f"  pass      {FP32} -> {INT8} ")
    assert itself.startswith(f"  pass      {INT8}, itself "), "what was tried is in the report"
    assert rest[0] == "  [1] too few"
    assert " 3 of 100  " in parity_table(PARITY), "near ties are unknown without the results"


def test_a_reason_is_written_once() -> None:
    hops = tuple(make_hop(name, certainty="97 % agree") for name in (FP32, INT8))
    first, second, *rest = parity_table(ParityReport("pass", {}, hops, {})).splitlines()[1:]
    assert first.split()[:2] == second.split()[:2] == ["pass", "[1]"]
    assert rest == ["  [1] 97 % agree", "  verdict: pass"]


def test_what_counts_most_fits_into_80_columns() -> None:
    files = ("quantize/model.fp16.onnx", "quantize/model.int8.onnx")
    hop = make_hop(files[1], FAIL, kind=STEP, reference=files[0], why="a reason that is a long sentence " * 4)
    _, row, *_ = parity_table(ParityReport(FAIL, {}, (hop,), {})).splitlines()
    assert row[:80].split()[:6] == ["fail", "[1]", files[0], "->", files[1], "40.0"]


def test_an_image_without_an_answer_is_no_near_tie() -> None:
    assert "3 of 100, 1 near tie" in parity_table(PARITY, results(lost=True))


def test_near_ties_are_unknown_where_not_every_changed_answer_is_recorded() -> None:
    hop = make_hop(INT8, FAIL, top1_agreement=0.96, changed=CHANGED, why="too few")
    assert "4 of 100  " in parity_table(ParityReport(FAIL, {}, (hop,), {}), results())


def test_one_changed_answer_of_very_many_is_not_rounded_away() -> None:
    hop = make_hop(INT8, accuracy_candidate=0.99999, top1_agreement=0.99999)
    assert "99.99%" in parity_table(ParityReport(PASS, {}, (hop,), {}))
    assert "top-1 agreement 99.99%, accuracy 99.99%" in describe_distances(hop)


def test_hints_are_lines_at_the_end() -> None:
    hint = Hint(INT8, FP32, "layer scale", "The layer is twice as large.", "Factor 2.00.", "Export it again.", "conv1")
    assert (
        describe_hint(hint, PARITY)
        == f"{FP32} -> {INT8}, layer conv1: The layer is twice as large. Factor 2.00. Export it again."
    )
    unknown = Hint(INT8, FP32, "unknown", "None fits.", "SQNR 3 dB, at least 20 needed", "Look at it.")
    told = describe_hint(unknown, PARITY)
    assert told == f"{FP32} -> {INT8}: None fits. SQNR 3 dB, at least 20 needed. Look at it."
    lines = parity_table(PARITY, None, [hint]).splitlines()
    assert lines[-2:] == ["  verdict: fail", f"  {describe_hint(hint, PARITY)}"]


def test_the_reason_of_a_verdict_is_told_once() -> None:
    """An engine of other files: the reason is a note below the table, and its hint has the command."""
    plan, stale = "build/rtx/int8.plan", "build/rtx/int8.plan is stale: it was built from another file (its sidecar)"
    why_not = f"{stale}. {REMEDY}"
    engine = explain_engine(why_not)
    hint = Hint(plan, "train/model.keras", engine.cause, engine.text, engine.evidence, engine.remedy)
    report = ParityReport(FAIL, {}, (make_hop(plan, FAIL, why=why_not, top1_agreement=None, sqnr_db=None),), {})
    told = "\n".join([parity_table(report), describe_hint(hint, report)])
    assert told.count("is stale") == told.count(REBUILD) == 1
    assert stale in parity_table(report)
    assert describe_hint(hint, report).endswith(f"{engine.text} {REMEDY}.")
    other = describe_hint(hint, PARITY)
    assert stale in other, "where nothing else tells it"


def test_the_manifest_has_the_hops_in_short() -> None:
    short = shorten_hops(PARITY, results(0.5))
    assert short[1] == VerifiedHop(f"Keras -> {INT8}", "fail", 40.0, 3, 0, "too few")
    assert short[4] == VerifiedHop("Keras -> build/rtx/int8.plan", "not run", why="no GPU")
