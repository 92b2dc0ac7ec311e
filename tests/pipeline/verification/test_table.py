from __future__ import annotations

import numpy as np

from pipeline.artifacts.diagnosis import Hint
from pipeline.artifacts.image_results import ImageResults
from pipeline.artifacts.parity_report import CONSISTENCY, FAIL, STEP, ParityReport
from pipeline.artifacts.results import VerifiedHop
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


def results(margin: float = 0.01) -> ImageResults:
    margins = np.ones(100, np.float32)
    margins[[3, 99]] = margin
    empty = np.zeros((1, 100))
    return ImageResults(("",) * 100, np.zeros(100, int), ("k",), empty, empty, margins, empty)


def test_each_line_has_both_ends_and_the_answers_that_changed() -> None:
    head, first, second, step, itself, *_ = parity_table(PARITY, results()).splitlines()
    assert head.split("  ")[1] == "reference -> candidate"
    assert f"Keras -> {FP32} " in first
    assert "  0 of 100  " in first
    assert f"Keras -> {INT8} " in second
    assert "  1.2e-02  3 of 100, 2 near ties  " in second
    assert second.endswith("fail (too few)")
    assert f"{FP32} -> {INT8} " in step
    assert f"{INT8}, itself " in itself
    assert itself.endswith(" pass"), "what was tried is in the report"
    assert "3 of 100  " in parity_table(PARITY), "near ties are unknown without the results"
    unnamed = ParityReport(FAIL, {}, (make_hop(INT8, FAIL, top1_agreement=0.9, changed=CHANGED),), {})
    assert "10 of 100  " in parity_table(unnamed, results()), "and where the record names not all that changed"


def test_hints_are_lines_at_the_end() -> None:
    hint = Hint(INT8, FP32, "layer scale", "The layer is twice as large.", "Factor 2.00.", "Export it again.", "conv1")
    assert (
        describe_hint(hint)
        == f"{FP32} -> {INT8}, layer conv1: The layer is twice as large. Factor 2.00. Export it again."
    )
    lines = parity_table(PARITY, None, [hint]).splitlines()
    assert lines[-2:] == ["  verdict: fail", f"  {describe_hint(hint)}"]


def test_the_manifest_has_the_hops_in_short() -> None:
    short = shorten_hops(PARITY, results(0.5))
    assert short[1] == VerifiedHop(f"Keras -> {INT8}", "fail", 40.0, 3, 0, "too few")
    assert short[4] == VerifiedHop("Keras -> build/rtx/int8.plan", "not run", why="no GPU")
