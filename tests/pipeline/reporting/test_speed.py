"""What the report says of speed: what serves and why, what a graph was refused for, and whose times are a peer's."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from pipeline.artifacts.fastest import Contender, Pair, Serves, make_contest
from pipeline.artifacts.parity_report import ParityReport, overall_verdict
from pipeline.reporting.cards import is_proxy, speed_card
from tests.pipeline.report_artifacts import ONNX, Artifacts, hop, row

FP16, INT8 = "build/rtx/fp16.plan", "build/rtx/int8.plan"


def serves(second: str = FP16, backend: Any = "tensorrt") -> Serves:
    first = Contender(INT8, "tensorrt", "int8", "0" * 64, "1.7.1")
    contenders = [first, Contender(second, backend, "fp16", "0" * 64, "1.7.1")]
    contest = make_contest(32, contenders, [Pair(INT8, second, 20, 1 / 1.31, (1 / 1.34, 1 / 1.28))])
    return Serves("Big GPU", "9.0", {}, (contest,))


@pytest.mark.parametrize(
    ("served", "found", "words"),
    [
        (
            {"model": FP16, "backend": "tensorrt", "measured_faster_than": INT8, "at_batch": 32},
            serves(),
            f"by {FP16}: measured 1.31x (1.28 to 1.34) as fast as {INT8}, the default, at batch 32.",
        ),
        (
            {"model": ONNX[1], "backend": "onnxruntime-cuda", "measured_faster_than": INT8, "at_batch": 32},
            serves(ONNX[1], "onnxruntime-cuda"),
            f"classified by {ONNX[1]} on CUDA: measured 1.31x (1.28 to 1.34) as fast as {INT8}, the default",
        ),
        (
            {"model": FP16, "backend": "tensorrt", "measured_faster_than": INT8, "at_batch": 8},
            serves(),
            f"classified by {FP16}: it was measured to be faster than {INT8}, in an earlier benchmark.",
        ),
        (
            {"model": INT8, "backend": "tensorrt"},
            serves(),
            f"by {INT8}: it is the default, and no other file that may serve was measured to be clearly faster.",
        ),
        (
            {"model": ONNX[0], "backend": "onnxruntime"},
            None,
            f"classified by {ONNX[0]}: it is the default on a CPU, where measurements do not count.",
        ),
    ],
)
def test_the_page_says_what_serves_and_why(
    artifacts: Artifacts, served: dict[str, Any], found: Serves | None, words: str
) -> None:
    artifacts.served, artifacts.serves = served, found
    assert words in artifacts.write().page().section("Speed").text


def test_where_infer_has_not_said_nothing_is_claimed(artifacts: Artifacts) -> None:
    (artifacts.write().root / "infer/manifest.json").unlink()
    assert "classified by" not in artifacts.page().section("Speed").text


def test_a_graph_that_was_refused_is_a_remark(artifacts: Artifacts) -> None:
    graph = "no graph: there are 8 already"
    artifacts.rows = [row("tensorrt", "fp16", 1, 2.0, graph=graph), row("tensorrt", "int8", 1, 1.0, graph="graph")]
    page = artifacts.write().page()
    assert page.remarks("Speed", 0)[0] == "Launched without a CUDA graph: there are 8 already."
    assert page.remarks("Speed", 1) == ["tensorrt: host to host."]


def test_a_peer_is_called_one_and_makes_no_headline(artifacts: Artifacts) -> None:
    keras, ours = row("keras", "fp32", 4, 12.0), row("onnxruntime-cuda", "fp16", 4, 4.0, file=ONNX[1])
    peer = row("onnxruntime-tensorrt", "fp16", 4, 1.0, file=ONNX[1])
    artifacts.rows = [keras, ours, peer]
    artifacts.hops.append(hop(ONNX[1], "fp16", backend="onnxruntime-cuda"))
    page = artifacts.write().page()
    shown = [(cells["verdict"], cells["what ran"]) for cells in page.rows("Speed")]
    assert shown == [
        ("reference", "keras fp32"),
        ("pass", "onnxruntime-cuda fp16"),
        ("peer", "onnxruntime-tensorrt fp16"),
    ]
    assert page.card("speed")[:2] == ("3.0x", "Keras' speed: onnxruntime-cuda fp16, batch 4")


def test_a_row_has_the_verdict_of_its_own_backend() -> None:
    """What passed on a CPU may fail in a GPU's own arithmetic."""
    hops = (hop(ONNX[1], "fp16"), hop(ONNX[1], "fp16", "fail", backend="onnxruntime-cuda"))
    parity = ParityReport(overall_verdict(hops), {}, hops, {})
    card = speed_card([row("keras", "fp32", 4, 8.0), row("onnxruntime-cuda", "fp16", 4, 4.0, file=ONNX[1])], parity)
    assert card is not None
    assert (card.value, card.verdict) == ("2.0x", "fail")


def test_only_a_cpu_times_something_else_than_an_engine() -> None:
    rows = [replace(row("onnxruntime", "fp16", 4, 1.0), backend=name) for name in ("onnxruntime", "onnxruntime-cuda")]
    assert [is_proxy(one) for one in rows] == [True, False]
