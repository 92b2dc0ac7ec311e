"""What a person sees on the report: every number in its place, verdicts in words and colour, and what changed since."""

from __future__ import annotations

import base64
import io
import json
import os
import re
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from export.sidecar import sidecar_path
from pipeline import charts, manifest
from pipeline.decode_spec import DecodeSpec
from pipeline.errors import PipelineError
from pipeline.stage import execute, reasons_to_run
from pipeline.stage_records import Epoch
from pipeline.stages import BY_NAME
from tests.pipeline.report_artifacts import CLASSES, ONNX, SIZE, Artifacts, compute, hop, not_compared, row, write_csv
from tests.pipeline.report_page import Page, read_bars

REPORT = BY_NAME["report"]
PLAN = "build/rtx/int8.plan"
LAYERS = [
    ("conv_2", "n2", "Conv", "18.25", "1.500e-02", "0.9300", "0.0250", "fp16"),
    ("conv_1", "n1", "Conv", "31.75", "5.000e-03", "0.9950", "-0.0050", "int8"),
]


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    """Without what takes most of the time and is tested elsewhere: plots, versions of packages, a disk that syncs."""
    if "real_plots" not in request.fixturenames:
        for name in ("training_curves", "parity_waterfall", "speed", "sensitivity"):
            monkeypatch.setattr(charts, name, lambda *_: "<svg></svg>")
    monkeypatch.setattr(manifest, "tool_versions", lambda: {"numpy": np.__version__})
    monkeypatch.setattr(os, "fsync", lambda _: None)


@pytest.fixture
def real_plots() -> None: ...


@pytest.fixture
def artifacts(tmp_path: Path) -> Artifacts:
    return Artifacts(tmp_path)


# --- a page of a run where all is well ---


def test_a_page_shows_every_number_in_its_place(artifacts: Artifacts, real_plots: None) -> None:
    artifacts.plans = ["build/rtx/fp16.plan", PLAN]
    artifacts.hops += [hop(name, Path(name).stem, "not run", why="built, not run here") for name in artifacts.plans]
    artifacts.sensitivity = LAYERS
    artifacts.hops.append(hop(ONNX[2], "int8", kind="step", reference=ONNX[1], sqnr_db=33.0))
    engine = row("tensorrt", "int8", 4, 3.0, variant="latency", caveat="no copies", compute=compute(1.75))
    artifacts.rows = [*(artifacts.rows or []), row("onnxruntime", "int8", 4, None), engine]
    page = artifacts.write().page()
    assert (page.badge.text, page.badge.kinds) == ("verdict: pass", {"badge", "pass"})
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
        "": "from Keras",
        "reference": "train/model.keras",
        "candidate": "quantize/model.fp16.onnx",
        "rel. error": "1.3e-02",
        "SQNR dB": "61.2",
        "top-1": "99.50%",
        "accuracy": "91.50%",
        "lost / gained": "3 / 1, p 0.62",
        "verdict": "pass",
    }
    assert page.rows("Parity")[4]["verdict"] == "not run"
    assert "Built, not run here." in page.section("Parity").text
    assert "on 200 test images" in page.section("Parity").text
    assert page.rows("Engines") == [
        {
            "engine": f"rtx/{precision}.plan",
            "TensorRT": "rtx 1.7.1",
            "built for": "SM86, SM89",
            "batch min / opt / max": "1 / 4 / 8",
            "convolutions": convolutions,
            "size": "1.2 MB",
            "build time": "2.5 s",
            "verdict": "not run",
        }
        for precision, convolutions in (("fp16", "20 FP16, 1 FP32 asked for"), ("int8", "19 INT8, 2 FP16"))
    ]
    assert "rtx/fp16.plan: a convolution is FP32." in page.section("Engines").text
    assert "Fast CPU, 2 cores; Big GPU." in page.section("Speed").text
    head = {"backend": "keras", "precision": "fp32", "batch": "4", "what it does not say": ""}
    times = {"p50 ms": "12.000", "p90 ms": "18.000", "p99 ms": "24.000", "images/s": "333.3"}
    speeds = page.rows("Speed")
    assert speeds[0] == head | times
    assert speeds[2]["what it does not say"] == "failed: out of memory"
    assert (speeds[3]["precision"], speeds[3]["what it does not say"]) == (
        "int8 latency",
        "1.750 ms of it the engine alone; no copies",
    )
    assert {row["scales by"]: row for row in _named(page.rows("Quantization"), "scales by")}["entropy"] == {
        **{"scales by": "entropy", "SQNR dB": "30.5", "agreement": "99.00%", "accuracy drop": "0.50%", "used": "used"}
    }
    quantized = page.rows("Quantization")
    assert [cells[""] for cells in quantized] == ["", "used", "", "", "used"]
    assert [cells["SQNR dB"] for cells in quantized] == ["28.5", "30.5", "29.5", "58.0", "66.0"]
    words = page.section("Quantization").text
    assert "from 54 calibration images" in words
    assert "made on 18 others" in words
    assert "19 of 21 convolutions compute in INT8; 7 activations were equalized" in words
    assert page.rows("Layers")[0] == {
        "layer": "conv_2",
        "operator": "Conv",
        "SQNR alone, dB": "18.25",
        "agreement": "93.00%",
        "accuracy drop": "2.50%",
        "": "FP16",
    }
    assert page.rows("INT8 placement")[1] == {
        **{"layer": "dense", "operator": "MatMul", "precision": "fp16", "why": "the classifier stays in float"}
    }
    assert "1 FP16, 1 INT8" in page.section("INT8 placement").text
    assert "FP32: conv_9, overflows." in page.section("INT8 placement").text
    judged = {cells["file"]: cells["sha256"] for cells in page.rows("What was judged")}
    assert judged["export/model.onnx"] == artifacts.digests("export/model.onnx")["export/model.onnx"]
    assert {"tool": "numpy", "version": np.__version__} in page.rows("What was judged", 1)
    assert "resnet20, 273,652 parameters, from scratch." in page.section("Training").text
    assert len(page.root.all("svg")) == 4
    source = (artifacts.folder / "out/report.html").read_text(encoding="utf-8")
    curves, parity, speeds, layers = re.findall(r"<svg.*?</svg>", source, re.DOTALL)
    assert "validation" in curves
    assert [(bar.label, bar.text, *map(round, bar.marks)) for bar in read_bars(parity)[0]] == [
        ("FP32 model.onnx", "120.5 dB", 100),
        ("FP16 model.fp16.onnx", "61.2 dB", 50),
        ("INT8 model.int8.onnx", "31.0 dB", 20),
    ]
    labels = ["keras fp32", "onnxruntime fp32", "tensorrt int8 latency"]
    assert [[bar.label for bar in axes] for axes in read_bars(speeds)] == [labels, labels]
    assert [(bar.label, bar.text) for bar in read_bars(layers)[0]] == [
        ("conv_2 (Conv)", "75.0 %"),
        ("conv_1 (Conv)", "25.0 %"),
    ]
    assert not any(node.tag in ("script", "link", "iframe") for node in page.root.walk())
    assert not [node for node in page.root.walk() if node.attrs.get("src", "data:").partition(":")[0] != "data"]


def _named(rows: list[dict[str, str]], prefix: str) -> list[dict[str, str]]:
    """Two columns of this table have no name: the first, and the last that says what is used."""
    return [
        {prefix: title.removeprefix(f"{prefix} "), **{k: v for k, v in cells.items() if k}, "used": cells[""]}
        for cells, title in zip(rows, ("scales by minmax", "scales by entropy"))
    ]


def test_a_model_that_was_taken_over(artifacts: Artifacts) -> None:
    artifacts.card = replace(artifacts.card, source="theirs.h5", changes=("Dropout left out",), backbone=None)
    artifacts.history, artifacts.rows = (), None
    page = artifacts.write().page()
    words = "Taken over with changes that keep its answers: theirs.h5; nothing was trained. Dropout left out"
    assert words in page.section("Model").text
    assert "Not measured" in page.section("Speed").text
    assert "None was built on this machine. rtx: no wheel" in page.section("Engines").text
    assert "benchmark not run" in page.section("Stages").text


def test_no_epoch_and_no_budget(artifacts: Artifacts) -> None:
    artifacts.history = ()
    path = artifacts.write().root / "quantize/calibration.json"
    path.write_text(path.read_text().replace('"budget_met": true', '"budget_met": false'))
    page = artifacts.page()
    assert "no epoch was trained" in page.section("Training").text
    assert "The INT8 graph missed it on these images." in page.section("Quantization").text
    assert "meets the budget" not in page.section("Layers").text


# --- cards ---


def test_a_precision_that_never_agrees_has_its_card(artifacts: Artifacts) -> None:
    artifacts.hops[2] = hop(ONNX[2], "int8", "fail", top1_agreement=0.0, cosine=0.0, sqnr_db=-3.0)
    page = artifacts.write().page()
    assert page.card("INT8") == ("0.00%", "INT8 agrees with Keras - fail", {"fail"})
    assert (page.badge.text, page.badge.kinds) == ("verdict: fail", {"badge", "fail"})


@pytest.mark.parametrize("verdict", ["pass", "inconclusive", "fail"])
def test_a_card_says_its_verdict_in_words_and_colour(artifacts: Artifacts, verdict: str) -> None:
    artifacts.hops[2] = hop(ONNX[2], "int8", verdict, top1_agreement=0.612)
    page = artifacts.write().page()
    assert page.card("INT8") == ("61.20%", f"INT8 agrees with Keras - {verdict}", {verdict})
    assert (page.badge.text, verdict in page.badge.kinds) == (f"verdict: {verdict}", True)
    assert page.rows("Parity")[2]["verdict"] == verdict
    assert page.section("Parity").all("span", "badge")[2].kinds == {"badge", verdict}
    css = page.root.all("style")[0].children[0]
    assert isinstance(css, str)
    assert f".card.{verdict} " in css
    assert f".badge.{verdict} " in css


@pytest.mark.parametrize(
    ("bad", "expected"),
    [
        (not_compared(ONNX[2], "int8", "fail", "it died"), ("not compared", "INT8 failed to run - fail", {"fail"})),
        (hop(ONNX[2], "int8", "not run"), ("not run", "INT8: none of its 1 file", {"notrun"})),
    ],
)
def test_a_precision_that_was_not_compared_says_so(artifacts: Artifacts, bad, expected) -> None:
    artifacts.hops[2] = bad
    page = artifacts.write().page()
    assert page.card("INT8") == expected
    assert page.rows("Parity")[2]["top-1"] == page.rows("Parity")[2]["SQNR dB"] == ""


def test_what_has_no_number_says_why(artifacts: Artifacts) -> None:
    artifacts.hops[0] = hop(ONNX[0], "fp32", sqnr_db=None, max_abs=0.0, relative_error=0.0)
    artifacts.hops[1] = hop(ONNX[1], "fp16", "fail", finite=False, sqnr_db=None, max_abs=None, relative_error=None)
    rows = artifacts.write().page().rows("Parity")
    assert [(cells["rel. error"], cells["SQNR dB"]) for cells in rows[:2]] == [
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
    assert page.card("INT8") == ("98.00%", f"INT8 agrees with Keras ({of}) - fail", {"fail"})
    of = "build/rtx/fp16.plan, the worst of 2 files"
    assert page.card("FP16") == ("99.00%", f"FP16 agrees with Keras ({of}) - pass", {"pass"})


def test_a_file_that_died_is_worse_than_one_that_disagrees(artifacts: Artifacts) -> None:
    artifacts.hops[2] = hop(ONNX[2], "int8", "fail", top1_agreement=0.0)
    artifacts.hops.append(not_compared(PLAN, "int8", "fail", "it died"))
    words = f"INT8 failed to run ({PLAN}, the worst of 2 files) - fail"
    assert artifacts.write().page().card("INT8") == ("not compared", words, {"fail"})


def test_a_card_fails_with_any_comparison_of_its_file(artifacts: Artifacts) -> None:
    artifacts.hops.append(hop(ONNX[2], "int8", "fail", kind="step", reference=ONNX[1], top1_agreement=0.5))
    words = f"INT8 agrees with Keras - fail, against {ONNX[1]}"
    assert artifacts.write().page().card("INT8") == ("97.50%", words, {"fail"})


def test_a_share_is_never_rounded_up_to_all(artifacts: Artifacts) -> None:
    artifacts.hops[2] = hop(ONNX[2], "int8", top1_agreement=0.999996)
    page = artifacts.write().page()
    assert page.card("INT8")[0] == page.rows("Parity")[2]["top-1"] == "99.99%"


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
    from pipeline.parity_report import ParityReport, overall_verdict
    from pipeline.report_cards import speed_card

    hops = (*artifacts.hops, hop(PLAN, "int8", str(more.get("verdict", "pass"))))
    card = speed_card(rows, ParityReport(overall_verdict(hops), {}, {}, hops))
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


# --- what of the verdict still holds ---


def test_warnings_of_the_verdict_stand_under_the_header(artifacts: Artifacts) -> None:
    doubt = "Keras itself names 31.0% of the test images right, about what guessing among 3 classes gives."
    artifacts.warnings = (doubt,)
    page = artifacts.write().page()
    assert page.alerts == [doubt]
    main = page.root.all("main")[0]
    assert [node.tag for node in main.children if not isinstance(node, str)][:2] == ["p", "div"]


@pytest.mark.parametrize("name", ["train/model.keras", "verify/reference.npz", *ONNX[:3], PLAN, "build/rtx/int8.json"])
def test_a_file_that_was_altered_since_it_was_judged(artifacts: Artifacts, name: str) -> None:
    artifacts.plans = [PLAN]
    path = artifacts.write().root / name
    path.write_bytes(path.read_bytes() + b"\n")
    page = artifacts.page()
    assert f"{name} was altered since it was judged." in page.alerts
    assert page.badge.text == "not verified as it is now (verdict pass, but files were altered since)"
    assert page.badge.kinds == {"badge", "notverified"}
    if name != "verify/reference.npz":
        path.unlink()
        page = artifacts.page()
        assert f"{name} is missing; it was judged by the verify stage." in page.alerts
        assert "pass" not in page.badge.kinds


def test_a_card_that_was_altered_since(artifacts: Artifacts) -> None:
    path = artifacts.write().root / "train/model.json"
    path.write_text(path.read_text().replace('"owl"', '"emu"'))
    with pytest.raises(PipelineError, match=r"class of train/model\.json as 'class' in row 3 of .*predictions\.csv"):
        artifacts.page()
    (artifacts.root / "infer/predictions.csv").unlink()
    page = artifacts.page()
    assert "train/model.json was altered since it was judged." in page.alerts
    assert page.badge.text.startswith("not verified")


def test_a_verdict_that_somebody_rewrote(artifacts: Artifacts) -> None:
    artifacts.hops[2] = hop(ONNX[2], "int8", "fail", top1_agreement=0.612)
    path = artifacts.write().root / "verify/parity.json"
    path.write_text(path.read_text().replace('"fail"', '"pass"'))
    page = artifacts.page()
    assert "verify/parity.json was altered since the verify stage wrote it." in page.alerts
    assert page.badge.text.startswith("not verified")
    (artifacts.root / "verify/manifest.json").unlink()
    page = artifacts.page()
    assert "verify/parity.json is in no record of the verify stage, so nothing vouches for it." in page.alerts
    assert page.badge.text.startswith("not verified")
    assert "verify its record is missing or damaged" in page.section("Stages").text


def test_an_engine_that_came_later_and_a_record_that_was_altered(artifacts: Artifacts) -> None:
    path = artifacts.write().root / "benchmark/benchmark.json"
    path.write_text(path.read_text() + "\n")
    plan = artifacts.root / PLAN
    plan.parent.mkdir()
    plan.write_bytes(b"new")
    page = artifacts.page()
    assert page.alerts == [
        "build/rtx/int8.plan was never verified.",
        "benchmark/benchmark.json was altered since the benchmark stage wrote it.",
    ]
    assert page.badge.text == "verdict: pass"
    assert page.card("engine")[1] == "TensorRT engine: 1 not verified"
    assert page.rows("Engines")[0]["engine"] == "rtx/int8.plan"
    assert "int8.json" in page.section("Engines").text


def test_numbers_that_are_of_other_bytes_say_so(artifacts: Artifacts) -> None:
    (artifacts.write().root / ONNX[0]).write_bytes(b"another model")
    page = artifacts.page()
    assert "Measured with other bytes than are here now: export/model.onnx." in page.section("Speed").text
    assert "export/model.onnx before export/model.onnx changed" in page.section("Predictions").text
    assert "other bytes" not in Artifacts(artifacts.folder / "same").write().page().section("Speed").text


def test_a_stage_that_worked_on_another_file_says_so(artifacts: Artifacts) -> None:
    artifacts.write().manifest("quantize", {}, {"export/model.onnx": "0" * 64, "train/model.json": "1" * 64})
    artifacts.manifest("build", {}, artifacts.digests(*ONNX) | {"data/test": "2" * 64})
    page = artifacts.page()
    assert page.alerts == [
        f"The quantize stage worked on another {name} than is here now." for name in (ONNX[0], "train/model.json")
    ]
    assert page.badge.text == "verdict: pass"


def test_a_candidate_without_bytes_is_no_pass(artifacts: Artifacts) -> None:
    artifacts.hops.append(hop(PLAN, "int8"))
    page = artifacts.write().page()
    assert page.alerts == [f"{PLAN} was judged, but the verdict is bound to no bytes of it."]
    assert page.badge.kinds == {"badge", "notverified"}


def test_a_verdict_holds_for_no_file_outside_the_artifacts(artifacts: Artifacts) -> None:
    outside = artifacts.folder / "secret"
    outside.write_bytes(b"x")
    path = artifacts.write().root / "verify/parity.json"
    tree = json.loads(path.read_text())
    digest = "2d711642b726b04401627ca9fbac32f5c8530fb1903cc4db02258717921a4881"
    tree["subjects"] |= {"../../secret": digest, str(outside): digest}
    path.write_text(json.dumps(tree))
    missing = [line for line in artifacts.page().alerts if "secret is missing" in line]
    assert len(missing) == 2


# --- what the stage reads ---


def declared(artifacts: Artifacts) -> dict[str, str]:
    return REPORT.inputs(artifacts.context, {})


def test_the_page_is_out_of_date_when_any_file_that_it_shows_changed(artifacts: Artifacts) -> None:
    artifacts.plans, artifacts.sensitivity = [PLAN], LAYERS
    context = artifacts.write().context
    execute(REPORT, context)
    assert reasons_to_run(REPORT, context) == []
    files = sorted(p for p in artifacts.root.rglob("*") if p.is_file() and "report" not in p.parts)
    unread = {"export/summary.json", *(f"infer/images/{n}.png" for n in (3, 4, 5))}
    for path in files:
        name = path.relative_to(artifacts.root).as_posix()
        before = path.read_bytes()
        path.write_bytes(before + b" ")
        assert bool(reasons_to_run(REPORT, context)) == (name not in unread), name
        path.write_bytes(before)
    manifests = [p for p in files if p.name == "manifest.json"]
    assert len(manifests) == 7
    for path in manifests:
        path.rename(path.with_suffix(".gone"))
        assert reasons_to_run(REPORT, context), path
        path.with_suffix(".gone").rename(path)
    new = artifacts.root / "build/rtx/fp16.plan"
    new.write_bytes(b"new")
    assert reasons_to_run(REPORT, context) == [f"input build/rtx/fp16.plan: is new ({_short(new)})"]


def _short(path: Path) -> str:
    import hashlib

    return hashlib.sha256(path.read_bytes()).hexdigest()[:12]


class Opened:
    """The files that are opened while it is on: an audit hook, which Python keeps for good."""

    def __init__(self) -> None:
        self.on = False
        self.paths: set[Path] = set()
        sys.addaudithook(self)

    def __call__(self, event: str, arguments: tuple[object, ...]) -> None:
        if self.on and event == "open" and isinstance(arguments[0], (str, os.PathLike)):
            self.paths.add(Path(arguments[0]))


def test_the_stage_opens_nothing_that_is_not_among_its_inputs(artifacts: Artifacts, monkeypatch) -> None:
    from pipeline import files

    artifacts.plans, artifacts.sensitivity = [PLAN], LAYERS
    outside = artifacts.folder / "photo.png"
    Image.fromarray(artifacts.image(3)).save(outside)
    artifacts.predictions = [("images/0.png", "ok", "cat", 0.5, ""), (outside, "ok", "cat", 0.5, "")]
    artifacts.write()
    artifacts.page()  # everything is imported now
    names = declared(artifacts)
    images = {artifacts.root / "infer/images/0.png", outside}
    assert {name for name in names if "image " in name} == {"infer/image 0", "infer/image 1"}
    monkeypatch.setattr(files, "_hashes", {})
    opened = Opened()
    opened.on = True
    artifacts.page()
    opened.on = False
    read = {path for path in opened.paths if path.is_relative_to(artifacts.folder)}
    allowed = {artifacts.root / name for name in names} | images
    assert read - allowed - {artifacts.folder / "hand.yaml", artifacts.folder / "out/report.html"} == set()
    assert artifacts.root / "benchmark/manifest.json" in read
    assert images <= read


def test_an_image_that_is_not_on_this_machine_keeps_its_recorded_digest(artifacts: Artifacts) -> None:
    outside = artifacts.folder / "photo.png"
    Image.fromarray(artifacts.image(3)).save(outside)
    artifacts.predictions = [(outside, "ok", "cat", 0.5, "")]
    context = artifacts.write().context
    execute(REPORT, context)
    data = outside.read_bytes()
    outside.write_bytes(b"another")
    assert reasons_to_run(REPORT, context)
    outside.write_bytes(data)
    outside.unlink()
    assert reasons_to_run(REPORT, context) == []


# --- predictions ---


def figures(page: Page) -> list[tuple[str, set[str]]]:
    return [(node.text, node.kinds) for node in page.section("Predictions").all("figure")]


def test_predictions_and_what_is_wrong_with_them(artifacts: Artifacts) -> None:
    long = f"{'n' * 150}.png"
    artifacts.predictions = [
        ("images/0.png", "ok", "cat", 0.875, ""),
        ("images/1.png", "ok", "owl", 0.515, ""),
        ("images/broken.png", "error", "", "", "not an image <b>"),
        ("images/gone.png", "ok", "cat", 0.25, ""),
        ("images/odd\udcff<i>.png", "ok", "dog", 0.25, ""),
        (f"images/{long}", "ok", "dog", 0.25, ""),
        ("images/text.png", "ok", "dog", 0.25, ""),
        ("images/other.png", "ok", "dog", 0.25, ""),
    ]
    images = artifacts.root / "infer/images"
    images.mkdir(parents=True)
    (images / "text.png").write_text("no image")
    Image.fromarray(np.full((SIZE, SIZE, 3), 251, np.uint8)).save(images / "other.png")
    page = artifacts.write().page()
    shown = figures(page)
    assert shown[0] == ("cat 88%", {"right"})
    assert shown[1] == ("owl 52% is dog", {"wrong"})
    assert shown[2] == ("broken.png: not an image <b>", {"missing"})
    assert shown[3] == ("gone.png: cat 25%; there is no such file here", {"missing"})
    assert shown[4][0].startswith("odd\\udcff<i>.png: dog")
    assert shown[5][0].startswith("n" * 59 + "…: dog")
    assert shown[6] == ("text.png: dog 25%; not an image that Pillow can read", {"missing"})
    assert shown[7][0] == "other.png: dog 25%; the file is no longer a test image that was verified"
    assert len(page.section("Predictions").all("img")) == 2
    assert page.section("Predictions").all("code")[0].text == "export/model.onnx"


def test_at_most_24_predictions(artifacts: Artifacts) -> None:
    artifacts.predictions = [(f"images/{n % 3}.png", "ok", CLASSES[n % 3], 0.5, "") for n in range(30)]
    assert len(figures(artifacts.write().page())) == 24


def test_thumbnails_are_decoded_as_the_card_says(artifacts: Artifacts) -> None:
    artifacts.card = replace(artifacts.card, decode=DecodeSpec((SIZE, SIZE), "pad"))
    artifacts.predictions = [("images/0.png", "ok", "cat", 0.5, "")]
    wide = np.random.default_rng(1).integers(0, 255, (SIZE, 2 * SIZE, 3), dtype=np.uint8)
    expected = artifacts.card.decode.pixels(wide)
    artifacts.image = lambda number: expected  # type: ignore[method-assign]
    artifacts.write()
    Image.fromarray(wide).save(artifacts.root / "infer/images/0.png")
    (image,) = artifacts.page().section("Predictions").all("img")
    data = base64.b64decode(image.attrs["src"].partition("base64,")[2])
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(data))), expected)


def test_equal_pixels_of_two_classes_are_neither_right_nor_wrong(artifacts: Artifacts) -> None:
    artifacts.image = lambda number: np.zeros((SIZE, SIZE, 3), np.uint8)  # type: ignore[method-assign]
    assert {str(kinds) for _, kinds in figures(artifacts.write().page())} == {"set()"}


def test_predictions_of_an_older_verdict_are_not_shown(artifacts: Artifacts) -> None:
    path = artifacts.write().root / "verify/parity.json"
    path.write_text(path.read_text() + "\n")
    assert "does not serve" in artifacts.page().section("Predictions").text


def test_predictions_of_a_file_that_is_inconclusive(artifacts: Artifacts) -> None:
    artifacts.hops[0] = hop(ONNX[0], "fp32", "inconclusive")
    assert "export/model.onnx (verdict: inconclusive)" in artifacts.write().page().section("Predictions").text


# --- damage ---

GOOD = ("images/0.png", "ok", "cat", "0.5", "")


@pytest.mark.parametrize(
    ("head", "bad", "said"),
    [
        (None, ("images/0.png", "ok", "cat", "high", ""), "number from 0 to 1 as 'probability' in row 2"),
        (None, ("images/0.png", "ok", "cat", "nan", ""), "'probability' in row 2"),
        (None, ("images/0.png", "ok", "cat", "1.5", ""), "'probability' in row 2"),
        (None, ("images/0.png", "ok", "cat", "", ""), "'probability' in row 2"),
        (None, ("images/0.png", "ok", "emu", "0.5", ""), "'class' in row 2"),
        (None, ("images/0.png", "fine", "cat", "0.5", ""), "ok or error as 'status' in row 2"),
        (None, ("images/0.png", "ok"), "Expected 5 cells in row 2"),
        (None, (*GOOD, "more"), "Expected 5 cells in row 2"),
        (("path", "status", "class", "error"), GOOD[:4], "Expected the column 'probability' once"),
        (("path", "path", "status", "class", "probability", "error"), GOOD, "Expected the column 'path' once"),
        ((), (), "Expected the column 'path' once"),
    ],
)
def test_damaged_predictions(artifacts: Artifacts, head, bad, said: str) -> None:
    path = artifacts.write().root / "infer/predictions.csv"
    columns = ("path", "status", "class", "probability", "error") if head is None else head
    write_csv(path, columns, [GOOD, bad] if head is None else [bad])
    with pytest.raises(PipelineError, match=said) as caught:
        artifacts.page()
    assert str(path) in str(caught.value)
    assert str(caught.value).endswith("Run the infer stage again.")
    assert declared(artifacts)["infer/predictions.csv"]


@pytest.mark.parametrize("data", [b"\xff\xfe\x00", b'path,"status', b"\0" * 10, b"x" * 400_000])
def test_predictions_that_are_no_csv(artifacts: Artifacts, data: bytes) -> None:
    path = artifacts.write().root / "infer/predictions.csv"
    path.write_bytes(data)
    with pytest.raises(PipelineError, match=r"predictions\.csv") as caught:
        artifacts.page()
    assert len(str(caught.value)) < 600
    assert not [name for name in declared(artifacts) if "image " in name]


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("noise", "-1"),
        ("noise", "much"),
        ("sqnr_db", "?"),
        ("top1_agreement", "2"),
        ("accuracy_drop", "x"),
        ("kept", ""),
    ],
)
def test_damaged_sensitivity(artifacts: Artifacts, column: str, value: str) -> None:
    columns = ("keras_layer", "node", "op", "sqnr_db", "noise", "top1_agreement", "accuracy_drop", "kept")
    bad = list(LAYERS[1])
    bad[columns.index(column)] = value
    artifacts.sensitivity = [LAYERS[0], tuple(bad)]
    with pytest.raises(PipelineError, match=rf"'{column}' in row 2 of .*sensitivity\.csv.*quantize stage again\."):
        artifacts.write().page()


def test_a_layer_that_overflows_is_shown(artifacts: Artifacts) -> None:
    artifacts.sensitivity = [("conv_3", "n3", "Conv", "-inf", "inf", "0.1000", "0.5000", "fp16"), *LAYERS]
    assert artifacts.write().page().rows("Layers")[0]["SQNR alone, dB"] == "-inf"


@pytest.mark.parametrize(
    "name",
    [
        *("train/model.json", "train/history.json", "quantize/calibration.json", "quantize/placement.json"),
        *("verify/parity.json", "verify/reference.npz", "benchmark/benchmark.json"),
    ],
)
@pytest.mark.parametrize("damage", [lambda data: b"", lambda data: data[: len(data) // 2], lambda data: b"[[]]"])
def test_a_damaged_record_is_one_error_that_names_it(artifacts: Artifacts, name: str, damage: Callable) -> None:
    path = artifacts.write().root / name
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(PipelineError) as caught:
        artifacts.page()
    assert str(path) in str(caught.value)
    assert "again" in str(caught.value)


@pytest.mark.parametrize(
    ("arrays", "said"),
    [
        ({"labels": np.array([0, 1, 2, 3, 4, 5])}, "labels from 0 to 5 for 3 classes"),
        ({"labels": np.array([0, 1, -1, 0, 1, 2])}, "labels from -1 to 2"),
        ({"labels": np.zeros(5, int)}, r"labels int64 \(5,\)"),
        ({"labels": np.zeros(6)}, "labels float64"),
        ({"pixels": np.zeros((6, 4, 4, 3), np.uint8)}, r"pixels uint8 \(6, 4, 4, 3\)"),
        ({"pixels": np.zeros((6, SIZE, SIZE, 3))}, "pixels float64"),
        ({"pixels": None}, "pixels"),
    ],
)
def test_a_reference_of_another_model(artifacts: Artifacts, arrays: dict, said: str) -> None:
    path = artifacts.write().root / "verify/reference.npz"
    with np.load(path) as file:
        kept = {name: file[name] for name in file.files} | arrays
    np.savez(path, **{name: value for name, value in kept.items() if value is not None})
    with pytest.raises(PipelineError, match=said) as caught:
        artifacts.page()
    assert str(path) in str(caught.value)


def test_damaged_manifests_and_sidecars_leave_a_page(artifacts: Artifacts) -> None:
    artifacts.plans = [PLAN]
    artifacts.hops.append(hop(PLAN, "int8"))
    root = artifacts.write().root
    for path in root.glob("*/manifest.json"):
        path.write_text("{}")
    (root / "build/rtx/int8.json").write_text('{"schema": 2}')
    page = artifacts.page()
    assert page.section("Stages").text.count("its record is missing or damaged") == 7
    assert "rtx/int8.plan: Expected 'flavour' of type text in" in page.section("Engines").text
    assert page.rows("Engines")[0]["verdict"] == "not verified"
    assert "None:" in page.section("Predictions").text


# --- what comes from outside ---

EVIL = "<script>alert('&')</script>\x00"


def test_nothing_from_outside_becomes_part_of_the_page(artifacts: Artifacts, real_plots: None) -> None:
    shown = "<script>alert('&')</script>\\x00"
    artifacts.description = "<script>alert('&')</script>"
    artifacts.card = replace(artifacts.card, classes=(EVIL, "dog", "owl"), backbone=EVIL)
    artifacts.warnings = (f"doubt {EVIL}",)
    artifacts.history = (Epoch(EVIL, 1, 1.0, 0.5),)
    artifacts.hops[0] = hop(ONNX[0], "fp32", certainty=f"sure {EVIL}", note=f"note {EVIL}", reference=EVIL)
    artifacts.hops.append(not_compared(f"build/rtx/{EVIL}.plan", "fp16", "fail", f"died {EVIL}"))
    artifacts.rows = [
        row("keras", "fp32", 1, None, error=EVIL, includes=EVIL),
        row("onnxruntime", "fp32", 1, 1.0, caveat=EVIL, variant=f"$a{EVIL}$"),
    ]
    artifacts.predictions = [(f"images/{EVIL.replace('/', '')}", "ok", EVIL, 0.5, ""), ("x", "error", "", "", EVIL)]
    artifacts.sensitivity = [(EVIL, "n", EVIL, "1.0", "1.0", "0.5", "0.5", "int8")]
    artifacts.plans = ["build/rtx/fp16-<i>.plan"]
    root = artifacts.write().root
    _replace(root / "build/rtx/fp16-<i>.json", "a convolution is FP32", "SM86", "1.7.1")
    _replace(root / "benchmark/benchmark.json", "Fast CPU", "Big GPU")
    _replace(root / "quantize/calibration.json", "conv_9", "overflows", "SQNR of at least 20.0 dB", "minmax")
    _replace(root / "quantize/placement.json", "dense", "MatMul", "the classifier stays in float")
    _replace(root / "train/manifest.json", np.__version__)
    page = artifacts.page()
    assert not page.root.all("script")
    assert not page.root.all("i")
    source = (artifacts.folder / "out/report.html").read_text(encoding="utf-8")
    assert "\0" not in source
    for title in ("Training", "Parity", "Speed", "Predictions", "Layers", "Quantization", "INT8 placement", "Engines"):
        assert shown in page.section(title).text, title
    assert f"doubt {shown}" in page.alerts
    assert shown in page.section("What was judged").text


def _replace(path: Path, *texts: str) -> None:
    content = path.read_text()
    for text in texts:
        assert json.dumps(text)[1:-1] in content
        content = content.replace(json.dumps(text), json.dumps(EVIL))
    path.write_text(content)


def test_a_page_with_a_lone_surrogate_is_written(artifacts: Artifacts, tmp_path: Path, monkeypatch) -> None:
    from pipeline.report import write_report

    monkeypatch.setattr(charts, "speed", lambda results: "<svg>plot \udcff</svg>")
    context = artifacts.write().context
    write_report(replace_description(context, "odd \udcff"), tmp_path)
    source = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "odd \\udcff" in source
    assert "plot \\udcff" in source


def replace_description(context, description: str):
    return replace(context, recipe=replace(context.recipe, description=description))
