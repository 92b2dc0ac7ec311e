"""What a person sees on the report: every number in its place, verdicts in words and colour."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from export.tensorrt.sidecar import sidecar_path
from pipeline.artifacts.parity_report import ParityReport
from pipeline.recipe.schema import Thresholds
from pipeline.reporting.headline import accuracy_in_words, reason
from tests.pipeline.report_artifacts import LAYERS, ONNX, PLAN, Artifacts, compute, distances, hop, not_compared, row

# --- a page of a run where all is well ---


def test_a_page_shows_every_number_in_its_place(artifacts: Artifacts, real_plots: None) -> None:
    artifacts.plans = ["build/rtx/fp16.plan", PLAN]
    artifacts.hops += [hop(name, Path(name).stem, "not run", why="built, not run here") for name in artifacts.plans]
    artifacts.sensitivity = LAYERS
    artifacts.hops.append(hop(ONNX[2], "int8", kind="step", reference=ONNX[1], sqnr_db=33.0))
    engine = row("tensorrt", "int8", 4, 3.0, variant="latency", caveat="no copies", compute=compute(1.75))
    artifacts.rows = [*(artifacts.rows or []), row("onnxruntime", "int8", 4, None), engine]
    page = artifacts.write().page()
    words = "ONNX files pass on 200 images; engines not run"
    assert (page.badge.text, page.badge.kinds) == (words, {"badge", "pass"})
    assert page.alerts == []
    assert page.card("Keras accuracy") == ("92.50%", "Keras accuracy on 200 test images", set())
    assert page.card("FP32") == ("100.00%", "FP32 agrees with Keras - pass", {"pass"})
    assert page.card("FP16") == ("99.50%", "FP16 agrees with Keras - pass", {"pass"})
    assert page.card("INT8") == ("97.50%", "INT8 agrees with Keras - pass", {"pass"})
    assert page.card("engines") == ("2", "TensorRT engines: 2 not run here", {"notrun"})
    assert page.card("speed")[0] == "4.0x"
    stages = [node.text for node in page.section("Stages").all("div", "chain")[0].children if not isinstance(node, str)]
    assert [text.split()[0] for text in stages] == [
        *("train", "export", "quantize", "build", "verify", "benchmark", "infer")
    ]
    written = sum(p.stat().st_size for p in (artifacts.root / "export").iterdir() if p.name != "manifest.json")
    assert stages[1] == f"export 1.2 s, {written / 1e3:.1f} kB"
    assert page.rows("Parity")[1] == {
        "verdict": "pass",
        "candidate": "quantize/model.fp16.onnx",
        "against": "train/model.keras",
        "SQNR, dB": "61.2",
        "agreement": "99.50%",
        "accuracy": "91.50%",
        "lost / gained": "3 / 1, p 0.62",
        "rel. error": "1.3e-02",
    }
    assert [cells["against"] for cells in page.rows("Parity")] == [*["train/model.keras"] * 3, ONNX[1]]
    assert [node.text for node in page.section("Parity").all("p", "apart")] == [
        "not run build/rtx/fp16.plan, build/rtx/int8.plan: built, not run here."
    ]
    assert "on 200 test images" in page.section("Parity").text
    assert page.rows("Engines") == [
        {
            "verdict": "not run",
            "engine": f"rtx/{precision}.plan",
            "TensorRT": "rtx 1.7.1",
            "built for": "SM86, SM89",
            "batch min / opt / max": "1 / 4 / 8",
            "convolutions": convolutions,
            "size": "1.2 MB",
            "build time": "2.5 s",
        }
        for precision, convolutions in (("fp16", "20 FP16, 1 FP32 asked for"), ("int8", "19 INT8, 2 FP16"))
    ]
    assert [page.remarks("Engines", row) for row in (0, 1)] == [["A convolution is FP32."], []]
    assert "Fast CPU, 2 cores; Big GPU." in page.section("Speed").text
    head = {"verdict": "reference", "what ran": "keras fp32", "batch": "4"}
    times = {"p50, ms": "12.000", "p90, ms": "18.000", "p99, ms": "24.000", "images/s": "333.3"}
    speeds = page.rows("Speed")
    assert speeds[0] == head | times
    assert [(cells["verdict"], cells["what ran"]) for cells in speeds[1:]] == [
        *(("pass", "onnxruntime fp32"), ("not run", "tensorrt int8 latency")),
    ]
    assert page.remarks("Speed", 2) == [
        *("1.750 ms of it are the engine alone.", "No copies.", "tensorrt: host to host."),
    ]
    (failed,) = page.rows("Speed", 1)
    assert (failed["verdict"], failed["what ran"]) == ("failed", "onnxruntime int8")
    assert page.remarks("Speed", 0, 1)[0] == "Failed: out of memory."
    words = page.section("Quantization").text
    assert "from 54 calibration images" in words
    assert "made on 18 others" in words
    assert "19 of 21 convolutions compute in INT8; 7 activations were equalized" in words
    assert page.rows("Sensitivity to INT8")[0] == {
        "stays": "FP16",
        "layer": "conv_2",
        "operator": "Conv",
        "SQNR alone, dB": "18.25",
        "agreement": "93.00%",
        "accuracy drop": "2.50%",
    }
    assert page.rows("INT8 placement")[1] == {
        **{"precision": "fp16", "layer": "dense", "operator": "MatMul", "why": "the classifier stays in float"}
    }
    assert "1 FP16, 1 INT8" in page.section("INT8 placement").text
    assert "FP32: conv_9, overflows." in page.section("INT8 placement").text
    judged = {cells["file"]: (cells["now"], cells["sha256"]) for cells in page.rows("What was judged")}
    assert judged["export/model.onnx"] == ("as judged", artifacts.digests("export/model.onnx")["export/model.onnx"])
    assert {"tool": "numpy", "version": np.__version__} in page.rows("What was judged", 1)
    assert "resnet20, 273,652 parameters, from scratch, 2 epochs." in page.section("Training").text
    accuracy, loss = page.root.all("svg")
    assert "validation 0.4 to 0.65" in accuracy.attrs["aria-label"]
    assert "training 0.9 to 0.3" in loss.attrs["aria-label"]
    assert [(bar.label, bar.shown, bar.more) for bar in page.chart("SQNR of the logits")] == [
        ("FP32 model.onnx", "120.5 dB", "asked: 100"),
        ("FP16 model.fp16.onnx", "61.2 dB", "asked: 50"),
        ("INT8 model.int8.onnx", "31.0 dB", "asked: 20"),
    ]
    labels = ["keras fp32", "onnxruntime fp32", "tensorrt int8 latency"]
    for chart in ("Latency of a batch of 4, ms", "Throughput in batches of 4, images/s"):
        assert [bar.label for bar in page.chart(chart)] == labels
    assert [(bar.label, bar.shown, bar.more) for bar in page.chart("Share of the noise")] == [
        ("conv_2 (Conv)", "75.0 %", "stays FP16"),
        ("conv_1 (Conv)", "25.0 %", ""),
    ]
    assert not any(node.tag in ("script", "link", "iframe") for node in page.root.walk())
    assert not [node for node in page.root.walk() if node.attrs.get("src", "data:").partition(":")[0] != "data"]


def test_a_model_that_was_taken_over(artifacts: Artifacts) -> None:
    artifacts.card = replace(artifacts.card, source="<b>theirs.h5", changes=("<i>Dropout left out",), backbone=None)
    artifacts.history, artifacts.rows = (), None
    page = artifacts.write().page()
    words = "Imported with changes that keep its outputs: <b>theirs.h5; nothing was trained. <i>Dropout left out"
    assert words in page.section("Model").text
    assert "Not measured. python -m pipeline benchmark -c " in page.section("Speed").text
    assert "hand.yaml" in page.section("Speed").text, "without its recipe the command measures another"
    assert "hand.yaml --set quantize.sensitivity=always" in page.section("Sensitivity to INT8").text
    assert "None was built on this machine. rtx: no wheel" in page.section("Engines").text
    assert "benchmark not run" in page.section("Stages").text


def test_no_epoch_and_no_budget(artifacts: Artifacts) -> None:
    artifacts.history = ()
    path = artifacts.write().root / "quantize/calibration.json"
    path.write_text(path.read_text().replace('"budget_met": true', '"budget_met": false'))
    page = artifacts.page()
    assert "no epoch was trained" in page.section("Training").text
    assert "The INT8 graph missed it on these images." in page.section("Quantization").text
    assert "meets the budget" not in page.section("Sensitivity to INT8").text


@pytest.mark.parametrize("missed", ["INT8", "FP16"])
def test_the_graph_that_missed_its_budget_is_named(artifacts: Artifacts, missed: str) -> None:
    if missed == "INT8":
        artifacts.calibration["budget_met"] = False
    else:
        artifacts.calibration["fp16"] = replace(artifacts.calibration_report.fp16, budget_met=False)
    shown = artifacts.write().page().section("Quantization").text
    sentences = {
        "INT8": "The INT8 graph missed it on these images.",
        "FP16": "The FP16 graph missed its own (nothing).",
    }
    assert {name for name, words in sentences.items() if words in shown} == {missed}


# --- cards ---

NEEDED = "SQNR 42.5 dB, at least 60.0 dB needed"


def test_a_card_of_full_agreement_that_fails_says_why(artifacts: Artifacts) -> None:
    artifacts.hops[2] = hop(ONNX[2], "int8", "fail", top1_agreement=1.0, sqnr_db=19.96)
    words = "INT8 agrees with Keras - fail: SQNR 19.9 dB, 20 asked"
    assert artifacts.write().page().card("INT8") == ("100.00%", words, {"fail"})
    artifacts.hops[2] = hop(ONNX[2], "int8", "fail", finite=False, top1_agreement=0.5, sqnr_db=None)
    words = "INT8 agrees with Keras - fail: NaN or infinite logits"
    assert artifacts.write().page().card("INT8") == ("50.00%", words, {"fail"})


@pytest.mark.parametrize(
    ("limits", "numbers", "words"),
    [
        (
            {"top1_agreement": 0.999},
            {"top1_agreement": 0.99896},
            "99.89 % agreement, 99.9 % asked",
        ),
        (
            {"accuracy_drop": 0.01},
            {"accuracy_drop": 0.01301},
            "accuracy drop 1.30 %, at most 1 % allowed",
        ),
        (
            {"relative_error": 1e-5},
            {"relative_error": 3.12e-4, "relative_limit": 1e-5},
            "relative error 3.2e-04, at most 1.0e-05 allowed",
        ),
    ],
)
def test_rounding_never_makes_what_was_reached_meet_what_was_asked(limits: dict, numbers: dict, words: str) -> None:
    one = hop(ONNX[2], "int8", "fail", **numbers)
    parity = ParityReport("fail", {"int8": Thresholds(**limits)}, (one,), {})
    assert reason(one, parity) == words


def test_what_passed_has_no_reason_and_what_gave_no_answers_reached_nothing() -> None:
    passed = hop(ONNX[2], "int8")
    assert reason(passed, ParityReport("pass", {}, (passed,), {})) == ""
    assert accuracy_in_words(not_compared(ONNX[2], "int8", "fail", "it died")) == ""
    assert accuracy_in_words(hop(ONNX[2], "int8", sqnr_db=None, top1_agreement=0.5)) == "50.00% agreement"


def test_fp16_with_layers_in_fp32_has_a_row_with_how_many(artifacts: Artifacts) -> None:
    fp16 = artifacts.calibration_report.fp16
    artifacts.calibration = {"fp16": replace(fp16, kept=("conv_3",), mixed=distances(71.5))}
    said = artifacts.write().page().section("Quantization").text
    assert "FP16, layers kept in FP32: 1" in said
    assert "71.5" in said


def test_a_precision_that_never_agrees_has_its_card(artifacts: Artifacts) -> None:
    artifacts.hops[2] = hop(ONNX[2], "int8", "fail", top1_agreement=0.0, cosine=0.0, sqnr_db=-3.0)
    page = artifacts.write().page()
    words = "INT8 agrees with Keras - fail: SQNR -3.0 dB, 20 asked"
    assert page.card("INT8") == ("0.00%", words, {"fail"})
    assert page.badge.kinds == {"badge", "fail"}


@pytest.mark.parametrize("verdict", ["pass", "inconclusive", "fail"])
def test_a_card_says_its_verdict_in_words_and_colour(artifacts: Artifacts, verdict: str) -> None:
    artifacts.hops[2] = hop(ONNX[2], "int8", verdict, top1_agreement=0.612)
    page = artifacts.write().page()
    why = "" if verdict == "pass" else ": SQNR 42.5 dB, at least 60.0 dB needed"
    assert page.card("INT8") == ("61.20%", f"INT8 agrees with Keras - {verdict}{why}", {verdict})
    words = {
        "pass": "ONNX files pass",
        "fail": "model.int8.onnx fails",
        "inconclusive": "model.int8.onnx is inconclusive",
    }
    assert (page.badge.text.partition(" on 200 ")[0], verdict in page.badge.kinds) == (words[verdict], True)
    assert page.rows("Parity")[2]["verdict"] == verdict
    assert page.section("Parity").all("td")[16].all("span", "badge")[0].kinds == {"badge", verdict}
    css = page.root.all("style")[0].children[0]
    assert isinstance(css, str)
    assert f".card.{verdict} {{" in css
    assert f".card.{verdict} b" in css
    assert f".badge.{verdict} {{" in css


@pytest.mark.parametrize(
    ("bad", "expected"),
    [
        (
            not_compared(ONNX[2], "int8", "fail", "it died"),
            ("not compared", "INT8 gave no answers - fail: it died", {"fail"}),
        ),
        (hop(ONNX[2], "int8", "not run"), ("not run", "INT8: none of its 1 file", {"notrun"})),
    ],
)
def test_a_precision_that_was_not_compared_says_so(artifacts: Artifacts, bad, expected) -> None:
    artifacts.hops[2] = bad
    page = artifacts.write().page()
    assert page.card("INT8") == expected


def test_what_has_no_number_says_why(artifacts: Artifacts) -> None:
    artifacts.hops[0] = hop(ONNX[0], "fp32", sqnr_db=None, max_abs=0.0, relative_error=0.0)
    artifacts.hops[1] = hop(ONNX[1], "fp16", "fail", finite=False, sqnr_db=None, max_abs=None, relative_error=None)
    rows = artifacts.write().page().rows("Parity")
    assert [(cells["rel. error"], cells["SQNR, dB"]) for cells in rows[:2]] == [
        ("0.0e+00", "equal"),
        ("", "NaN or infinite"),
    ]


def test_a_card_shows_the_worst_of_its_files(artifacts: Artifacts) -> None:
    artifacts.hops += [
        hop("build/rtx/int8.plan", "int8", "fail", top1_agreement=0.98),
        hop("build/rtx/int8-large.plan", "int8", "fail", top1_agreement=0.985),
        hop("build/tensorrt/int8.plan", "int8", "not run"),
        hop("build/rtx/fp16.plan", "fp16", top1_agreement=0.99),
    ]
    page = artifacts.write().page()
    of = "build/rtx/int8.plan, the worst of 3 files"
    assert page.card("INT8") == ("98.00%", f"INT8 agrees with Keras ({of}) - fail: {NEEDED}", {"fail"})
    of = "build/rtx/fp16.plan, the worst of 2 files"
    assert page.card("FP16") == ("99.00%", f"FP16 agrees with Keras ({of}) - pass", {"pass"})


def test_a_file_that_died_is_worse_than_one_that_disagrees(artifacts: Artifacts) -> None:
    artifacts.hops[2] = hop(ONNX[2], "int8", "fail", top1_agreement=0.0)
    artifacts.hops.append(not_compared(PLAN, "int8", "fail", "it died"))
    words = f"INT8 gave no answers ({PLAN}, the worst of 2 files) - fail: it died"
    assert artifacts.write().page().card("INT8") == ("not compared", words, {"fail"})


def test_a_card_fails_with_any_comparison_of_its_file(artifacts: Artifacts) -> None:
    artifacts.hops.append(hop(ONNX[2], "int8", "fail", kind="step", reference=ONNX[1], top1_agreement=0.5))
    words = f"INT8 agrees with Keras - fail, against {ONNX[1]}: {NEEDED}"
    assert artifacts.write().page().card("INT8") == ("97.50%", words, {"fail"})


def test_a_step_whose_source_is_at_fault_is_told_apart_from_what_was_not_run(artifacts: Artifacts) -> None:
    why = f"{ONNX[1]} itself fails against Keras, and this file does not: their difference is no fault of it"
    artifacts.hops.append(hop(ONNX[2], "int8", "not run", kind="step", reference=ONNX[1], top1_agreement=0.5, why=why))
    page = artifacts.write().page()
    assert page.card("INT8") == ("97.50%", "INT8 agrees with Keras - pass", {"pass"})
    assert f"not judged {ONNX[2]} against {ONNX[1]}: {why}." in [
        node.text for node in page.section("Parity").all("p", "apart")
    ]
    assert len(page.rows("Parity")) == 3, "only files against Keras have a row here"


def test_a_share_is_never_rounded_up_to_all(artifacts: Artifacts) -> None:
    artifacts.hops[2] = hop(ONNX[2], "int8", top1_agreement=0.999996)
    page = artifacts.write().page()
    assert page.card("INT8")[0] == page.rows("Parity")[2]["agreement"] == "99.99%"


def test_the_engines_card_tells_failed_from_not_run(artifacts: Artifacts) -> None:
    artifacts.plans = [f"build/rtx/{name}.plan" for name in ("fp32", "fp16", "int8", "int8-a", "int8-b")]
    verdicts = ("pass", "fail", "not run", "inconclusive", "pass")
    artifacts.hops += [hop(name, name[10:14], verdict) for name, verdict in zip(artifacts.plans, verdicts)]
    artifacts.write()
    words = "TensorRT engines: 2 run and passed, 1 run, inconclusive, 1 failed, 1 not run here"
    assert artifacts.page().card("engines") == ("5", words, {"fail"})
    (artifacts.root / artifacts.plans[1]).write_bytes(b"another plan")
    sidecar = sidecar_path(artifacts.root / artifacts.plans[4])
    sidecar.write_text(sidecar.read_text() + "\n")
    page = artifacts.page()
    words = "TensorRT engines: 1 run and passed, 1 run, inconclusive, 1 not run here, 2 not verified"
    assert page.card("engines") == ("5", words, {"notverified"})
    shown = {cells["engine"]: cells["verdict"] for cells in page.rows("Engines")}
    assert shown["rtx/fp16.plan"] == shown["rtx/int8-b.plan"] == "not verified"
    assert shown["rtx/int8-a.plan"] == "inconclusive"


def test_one_engine_that_passed(artifacts: Artifacts) -> None:
    artifacts.plans = [PLAN]
    artifacts.hops.append(hop(PLAN, "int8"))
    words = "TensorRT engine: 1 run and passed"
    assert artifacts.write().page().card("engine") == ("1", words, {"pass"})


# --- the headline speed ---


def speed(artifacts: Artifacts, *rows, **more: object) -> tuple[str, str, set[str]] | None:
    from pipeline.artifacts.parity_report import ParityReport, overall_verdict
    from pipeline.reporting.cards import speed_card

    hops = (*artifacts.hops, hop(PLAN, "int8", str(more.get("verdict", "pass"))))
    card = speed_card(rows, ParityReport(overall_verdict(hops), {}, hops, {}))
    return card and (card.value, card.words, {card.verdict} - {""})


def test_the_headline_is_the_fastest_row_at_the_largest_batch(artifacts: Artifacts) -> None:
    found = speed(
        artifacts,
        *(row("keras", "fp32", 1, 5.0), row("onnxruntime", "fp32", 1, 0.1)),
        row("keras", "fp32", 8, 40.0),
        row("onnxruntime", "fp32", 8, 20.0),
        row("tensorrt", "int8", 8, 4.0, variant="large", p90_ms=80.0, p99_ms=90.0, mean_ms=30.0, images_per_second=1.0),
        row("tensorrt", "fp16", 8, 8.0),
        row("tensorrt", "fp16", 8, None),
    )
    assert found == ("10.0x", "Keras' speed: tensorrt int8 large, batch 8", set())


def test_the_headline_compares_at_a_batch_that_keras_was_timed_at(artifacts: Artifacts) -> None:
    rows = [row("keras", "fp32", 8, 40.0), row("onnxruntime", "fp32", 8, 20.0), row("tensorrt", "int8", 32, 4.0)]
    assert speed(artifacts, *rows) == ("2.0x", "Keras' speed: onnxruntime fp32, batch 8", set())
    assert speed(artifacts, row("keras", "fp32", 64, 4.0), *rows) == speed(artifacts, *rows)
    assert speed(artifacts, row("tensorrt", "int8", 8, 4.0)) is None
    assert speed(artifacts, row("keras", "fp32", 8, None), row("tensorrt", "int8", 8, 4.0)) is None
    assert speed(artifacts, row("keras", "fp32", 8, 4.0)) is None
    assert speed(artifacts) is None


def test_the_headline_counts_no_time_of_zero_and_the_first_of_equals(artifacts: Artifacts) -> None:
    keras = row("keras", "fp32", 1, 4.0)
    equal = [row("onnxruntime", precision, 1, 2.0) for precision in ("fp32", "fp16")]
    zero = row("tensorrt", "int8", 1, 0.0)
    assert speed(artifacts, keras, zero, *equal) == ("2.0x", "Keras' speed: onnxruntime fp32, batch 1", set())
    assert speed(artifacts, replace(keras, p50_ms=0.0), *equal) is None


def test_the_headline_says_when_nothing_gains_and_when_the_fastest_file_failed(artifacts: Artifacts) -> None:
    keras = row("keras", "fp32", 1, 4.0)
    assert speed(artifacts, keras, row("onnxruntime", "fp32", 1, 5.0)) == (
        *("0.80x", "Keras' speed: onnxruntime fp32, batch 1"),
        set(),
    )
    fast = row("tensorrt", "int8", 1, 1.0)
    words = "Keras' speed: tensorrt int8, batch 1"
    assert speed(artifacts, keras, fast, verdict="fail") == ("4.0x", f"{words} - its verdict: fail", {"fail"})
    assert speed(artifacts, keras, replace(fast, file="rtx/int8-x.plan")) == (
        *("4.0x", f"{words} - its verdict: not verified"),
        {"not verified"},
    )
