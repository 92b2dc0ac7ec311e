from __future__ import annotations

import pytest

from pipeline.artifacts.parity_report import CONSISTENCY, FAIL, FROM_KERAS, NO_LOGITS, NOT_RUN, PASS, STEP, TOP_K
from pipeline.verification.culprits import culprits
from tests.made_records import make_hop

FP32, FP16, INT8 = "export/model.onnx", "quantize/model.fp16.onnx", "quantize/model.int8.onnx"


def chain(fp32: str, fp16: tuple[str, str], int8: tuple[str, str]) -> list:
    """The hops of three files, each made from the one before: verdicts from Keras, and of the steps."""
    return [
        make_hop(FP32, fp32),
        make_hop(FP16, fp16[0]),
        make_hop(FP16, fp16[1], kind=STEP, reference=FP32),
        make_hop(INT8, int8[0]),
        make_hop(INT8, int8[1], kind=STEP, reference=FP16),
    ]


@pytest.mark.parametrize(
    ("hops", "expected"),
    [
        (chain(PASS, (PASS, PASS), (PASS, PASS)), []),
        (chain(FAIL, (FAIL, PASS), (FAIL, PASS)), [(FROM_KERAS, FP32)]),
        (chain(PASS, (FAIL, FAIL), (FAIL, PASS)), [(STEP, FP16)]),
        (chain(PASS, (PASS, PASS), (FAIL, FAIL)), [(STEP, INT8)]),
        (chain(PASS, (PASS, PASS), (FAIL, PASS)), [(FROM_KERAS, INT8)]),
        (chain(PASS, (PASS, PASS), (PASS, FAIL)), [(STEP, INT8)]),
        (chain(FAIL, (FAIL, PASS), (FAIL, FAIL)), [(FROM_KERAS, FP32), (STEP, INT8)]),
        (chain(FAIL, (PASS, FAIL), (PASS, PASS)), [(FROM_KERAS, FP32)]),
        (chain(FAIL, ("inconclusive", FAIL), (PASS, PASS)), [(FROM_KERAS, FP32)]),
        (chain(NOT_RUN, (FAIL, NOT_RUN), (FAIL, PASS)), [(FROM_KERAS, FP16)]),
    ],
)
def test_who_is_at_fault(hops: list, expected: list) -> None:
    assert [(hop.kind, hop.candidate) for hop in culprits(hops)] == expected


def crashed(name: str, why: str, **fields: object) -> object:
    return make_hop(name, FAIL, why=why, top1_agreement=None, **fields)


def test_a_file_whose_source_has_no_usable_logits_or_the_same_error_is_not_at_fault() -> None:
    fixed = "Expected /a/{} to run. Received: batch 32 where 1 is expected"
    hops = [crashed(FP32, fixed.format(FP32))]
    for kind, reference in ((FROM_KERAS, "train/model.keras"), (STEP, FP32)):
        hops.append(crashed(FP16, fixed.format(FP16), kind=kind, reference=reference))
    assert culprits(hops) == [hops[0]]
    own = "Expected /a to run. Received: another error"
    hops[2] = crashed(FP16, own, kind=STEP, reference=FP32)
    assert culprits(hops) == [hops[0], hops[2]]
    nan = [make_hop(FP32, FAIL, finite=False), make_hop(FP16, FAIL, finite=False)]
    nan.append(crashed(FP16, f"its reference {FP32} {NO_LOGITS}", kind=STEP, reference=FP32))
    assert culprits(nan) == [nan[0]]


def test_what_a_run_does_to_itself_is_inherited_too() -> None:
    hops = chain(PASS, (PASS, PASS), (PASS, PASS))
    first, inherited = (make_hop(name, FAIL, kind=CONSISTENCY, reference="itself") for name in (FP32, FP16))
    own = make_hop(INT8, FAIL, kind=TOP_K, reference="its own probabilities")
    assert culprits([*hops, first, inherited, own]) == [first, own]


def test_the_same_file_on_another_backend_is_told_apart() -> None:
    cuda = {"backend": "onnxruntime-cuda"}
    hops = [make_hop(FP32), make_hop(FP32, FAIL, **cuda), make_hop(FP32, FAIL, kind=STEP, reference=FP32, **cuda)]
    assert culprits(hops) == [hops[2]]
