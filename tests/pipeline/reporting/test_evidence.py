"""The report's section on evidence from a GPU: numbers in their place, and whether they are of this page's model."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from export.tensorrt.sidecar import BatchProfile, sha256_file
from pipeline.artifacts.files import write_json
from pipeline.artifacts.gpu_evidence import CheckRow, EngineEvidence, Gpu, GpuEvidence, Model, Step, Target, TimedRow
from pipeline.artifacts.machine import GpuSnapshot, Machine
from pipeline.artifacts.parity_report import Parity, overall_verdict, thresholds_by_precision
from pipeline.artifacts.paths import KERAS, ONNX, TENSORRT8
from pipeline.recipe.schema import VerifyThresholds
from pipeline.reporting.evidence import TITLE
from tests.made_records import make_hop
from tests.pipeline.report_artifacts import Artifacts
from tests.pipeline.report_page import Page

FEW = "p99: of 40 calls, so it is about the slowest of them."


def engine(root: Path, precision: str, variant: str) -> EngineEvidence:
    """An engine of TensorRT 8.6, built from what is here."""
    source = root / TENSORRT8.get(precision, ONNX[precision])
    profile = BatchProfile(1, 1, 1) if variant == "latency" else BatchProfile(1, 256, 256)
    return EngineEvidence(
        precision, variant, profile, "tensorrt", "8.6.0", sha256_file(source), "2" * 64, 4, 61.5, {}, {}, {}, None
    )  # type: ignore[arg-type]


def timed(precision: str, variant: str, batch: int, measures: str, speed: float, **more: object) -> TimedRow:
    """A row; p50 in ms is a thousandth of the speed, so that each number is told from the others."""
    p50 = speed / 1000
    times = {"n": 500, "p50_ms": p50, "p90_ms": p50 * 2, "p99_ms": p50 * 3, "mean_ms": p50, "images_per_second": speed}
    given = {"name": "engine", "batches": 1, "includes": "", **times, "p99_is_near_max": False, **more}
    return TimedRow(precision=precision, variant=variant, batch=batch, measures=measures, **given)  # type: ignore[arg-type]


@pytest.fixture
def written(artifacts: Artifacts) -> Artifacts:
    return artifacts.write()


@pytest.fixture
def evidence(written: Artifacts) -> GpuEvidence:
    """A visit with four engines of the files that are here: what is timed, judged, checked and left out."""
    built = [(precision, variant) for precision in ("fp16", "int8") for variant in ("throughput", "latency")]
    lost = dict.fromkeys(("p50_ms", "p90_ms", "p99_ms", "mean_ms", "images_per_second"))
    none = dict.fromkeys(("finite", "max_abs", "relative_error", "cosine", "sqnr_db", "top1_agreement"))
    hops = (
        make_hop("int8-throughput", kind="top_k", reference="its own probabilities", **none),
        make_hop("fp16-throughput", top1_agreement=0.995),
        make_hop("fp16-latency", top1_agreement=0.985),
        make_hop("int8-throughput", "fail", why="SQNR 12.0 dB, at least 20.0 dB needed", top1_agreement=0.91),
    )
    return GpuEvidence(
        date="2026-11-29T16:24Z",
        commit="abc1234def0123456789",
        state="finished",
        gpu=Gpu("NVIDIA H200", "9.0", "580.95.05", "13.0"),
        flavour="tensorrt",
        tensorrt_version="8.6.0",
        machine=Machine(),
        model=Model("hand", sha256_file(written.root / KERAS), (8, 8), 3, 200, True),
        asked={},
        steps=(
            Step("machine", "done", 0.1),
            Step("build fp16-throughput", "done", 60.0),
            Step("peers", "skipped", why="90 s expected, 20 s left"),
            Step("cycles", "skipped", why="90 s expected, 20 s left"),
            Step("build fp32-latency", "error", why="out of <memory>"),
        ),
        engines={f"{one}-{variant}": engine(written.root, one, variant) for one, variant in built},
        parity=Parity(overall_verdict(hops), thresholds_by_precision(VerifyThresholds()), hops),
        timings=(
            timed("fp16", "throughput", 256, "compute", 70_000),
            timed("fp16", "throughput", 256, "infer", 50_000),
            timed("fp16", "throughput", 256, "stream", 68_000),
            timed("fp16", "throughput", 256, "compute", 69_000, beside="PyTorch graphs"),
            timed("fp16", "throughput", 256, "compute", 40_000, name="PyTorch graphs", beside="PyTorch graphs"),
            timed("int8", "throughput", 256, "infer", 90_000),
            timed("fp16", "latency", 1, "infer", 999, name="engine without graphs"),
            timed("fp16", "latency", 1, "infer", 410, n=40, p99_is_near_max=True),
            timed("int8", "latency", 1, "infer", 0, **lost, error="no graph: refused"),
        ),
        checks=(CheckRow("a", "fp16-latency", "pass", ""), CheckRow("rows", "int8-latency", "fail", "bits differ")),
        targets=(
            Target("int8 over fp16", 1.5, 1.2857, False),
            Target("images a second", 60_000, 71_234.5, True),
            Target("end to end", 0.95, 0.9714, True),
            Target("p99", 0.35, None, None, "measured on another GPU"),
        ),
        snapshots={
            "machine": (GpuSnapshot(345, 3201, power_w=76.4),),
            "time": (GpuSnapshot(1980, 3201, power_w=612.3),),
            "cycles": (),
        },
    )


def save(artifacts: Artifacts, evidence: GpuEvidence, name: str = "h200-tensorrt-8.6.0.json") -> Path:
    path = artifacts.root / "evidence" / name
    path.parent.mkdir(exist_ok=True)
    write_json(path, evidence)
    return path


def said(page: Page) -> list[str]:
    return [node.text for node in page.section(TITLE).all("p", "note")]


def test_every_number_in_its_place(written: Artifacts, evidence: GpuEvidence) -> None:
    save(written, evidence)
    page = written.page()
    section = page.section(TITLE)
    assert [node.text for node in section.all("h3")] == ["NVIDIA H200, TensorRT 8.6.0"]
    facts = "driver 580.95.05; CUDA 13.0; compute capability 9.0; "
    facts += "after the steps GPU clock 345 to 1,980 MHz, memory clock 3,201 MHz, power 76 to 612 W; "
    facts += "2026-11-29 16:24 UTC; commit abc1234def; evidence/h200-tensorrt-8.6.0.json."
    assert facts in section.text
    columns = ("verdict", "engine", "agreement", "p50, ms", "p99, ms", "images/s", "engine alone, images/s")
    assert [tuple(row.values()) for row in page.rows(TITLE)] == [
        ("pass", "fp16-throughput", "99.50%", "", "", "68,000", "70,000"),
        ("pass", "fp16-latency", "98.50%", "0.410", "1.230", "", ""),
        ("fail", "int8-throughput", "91.00%", "", "", "90,000", ""),
        ("not run", "int8-latency", "", "", "", "", ""),
        ("reference", "PyTorch graphs fp16", "", "", "", "", "40,000"),
    ]
    assert tuple(page.rows(TITLE)[0]) == columns
    assert section.all("table")[0].kinds >= {"fold", "wide"}, "on a phone each row is a block"
    assert [page.remarks(TITLE, row) for row in range(5)] == [
        ["Images/s: many batches a call, overlapped."],
        [FEW],
        ["SQNR 12.0 dB, at least 20.0 dB needed.", "Images/s: one batch a call."],
        ["Not timed: no graph: refused."],
        ["PyTorch graphs: channels last, launched by a CUDA graph."],
    ]
    heads = {cell.unmarked: page.note(cell.all("a")[0].attrs["href"]) for cell in section.all("th") if cell.all("a")}
    assert heads["images/s"] == "Host to host, in batches of 256."
    assert said(page) == ["Its engines were built from the ONNX files here."]
    assert "Checks: 1 passed, 1 failed." in section.text
    targets, left = section.all("details")
    assert targets.all("summary")[0].text == "Targets: 2 met, 1 missed, 1 open"
    assert [tuple(row.values()) for row in page.rows(TITLE, 1)] == [
        ("missed", "int8 over fp16", "1.5", "1.286"),
        ("met", "images a second", "60,000", "71,234"),
        ("met", "end to end", "0.95", "0.9714"),
        ("open", "p99 (measured on another GPU)", "0.35", ""),
    ]
    assert left.all("summary")[0].text == "2 steps were not run"
    assert [node.text for node in left.all("li")] == ["peers; cycles: 90 s expected, 20 s left"]
    failures = [node.text for node in section.all("ul")[0].all("li")]
    assert failures == list(evidence.failures)
    assert "build fp32-latency: out of <memory>" in failures


def test_a_batch_of_1_is_no_throughput(written: Artifacts, evidence: GpuEvidence) -> None:
    rows = (timed("fp16", "latency", 1, "infer", 410), timed("fp16", "latency", 1, "compute", 500))
    save(written, replace(evidence, timings=rows))
    row = next(row for row in written.page().rows(TITLE) if row["engine"] == "fp16-latency")
    assert row == {"verdict": "pass", "engine": "fp16-latency", "agreement": "98.50%", "p50, ms": "0.410",
                   "p99, ms": "1.230"}  # fmt: skip


def test_rows_without_times_and_other_ways_give_no_number(written: Artifacts, evidence: GpuEvidence) -> None:
    lost = dict.fromkeys(("p50_ms", "p90_ms", "p99_ms", "mean_ms", "images_per_second"))
    rows = (
        timed("fp16", "throughput", 256, "stream", 0, **lost, error="no memory"),
        timed("fp16", "throughput", 256, "infer", 50_000),
        timed("fp16", "throughput", 256, "infer", 30_000, name="PyTorch eager", beside="eager"),
        timed("fp16", "throughput", 256, "compute", 0, name="PyTorch compile", beside="compile", **lost, error="x"),
    )
    save(written, replace(evidence, timings=rows))
    page = written.page()
    shown = {row["engine"]: row.get("images/s") for row in page.rows(TITLE)}
    assert shown == {**dict.fromkeys(evidence.engines, ""), "fp16-throughput": "50,000"}
    assert page.remarks(TITLE, 0) == ["Not timed: no memory.", "Images/s: one batch a call."]


def test_engines_without_times_have_no_notes_on_times(written: Artifacts, evidence: GpuEvidence) -> None:
    """Each note is on a column that is there, and the way back from it leads somewhere."""
    refused = {name: replace(one, refused="Not this GPU.", library="no") for name, one in evidence.engines.items()}
    save(written, replace(evidence, engines=refused, parity=None, timings=(), steps=(), checks=()))
    section = written.page().section(TITLE)
    assert [node.text for node in section.all("ol")[0].all("li")] == [
        "Not loaded here: Not this GPU. The library: no ↑"
    ]
    names = {node.attrs["id"] for node in section.walk() if "id" in node.attrs}
    assert {node.attrs["href"].removeprefix("#") for node in section.all("a")} <= names
    failures = [node.text for node in section.all("ul")[0].all("li")]
    assert failures == [f"{', '.join(evidence.engines)} are not loaded here: Not this GPU."], "said once"


def test_of_many_steps_that_were_not_made_some_are_named(written: Artifacts, evidence: GpuEvidence) -> None:
    steps = tuple(Step(f"PyTorch eager, batch {batch}", "skipped", why="no torch") for batch in range(1, 21))
    save(written, replace(evidence, steps=steps))
    left = written.page().section(TITLE).all("details")[1]
    assert left.all("summary")[0].text == "20 steps were not run"
    named = "; ".join(step.name for step in steps[:5])
    assert [node.text for node in left.all("li")] == [f"{named} and 15 more: no torch"]


def test_without_a_file_that_can_be_read_no_visit_is_counted(written: Artifacts, evidence: GpuEvidence) -> None:
    save(written, evidence).write_bytes(b"{")
    section = written.page().section(TITLE)
    assert "0 visits" not in section.text
    assert len(said(written.page())) == 1


def test_without_evidence_there_is_no_section(written: Artifacts) -> None:
    (written.root / "evidence").mkdir()
    (written.root / "evidence" / "notes.md").write_text("nothing")
    assert TITLE not in [node.text for node in written.page().root.all("h2")]


@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_evidence_of_other_files_says_so(written: Artifacts, evidence: GpuEvidence, precision: str) -> None:
    save(written, evidence)
    (written.root / TENSORRT8[precision]).write_bytes(b"made anew")
    page = written.page()
    others = f"{precision}-throughput, {precision}-latency"
    assert said(page) == [
        f"Measured with other files than those here now: {others}. Their numbers do not apply to the model on this "
        "page."
    ]
    shown = {row["engine"]: row["verdict"] for row in page.rows(TITLE) if row["engine"] in evidence.engines}
    assert {name for name, verdict in shown.items() if verdict.endswith("of another file")} == {
        f"{precision}-throughput",
        f"{precision}-latency",
    }
    badges = page.section(TITLE).all("tr")[1 if precision == "fp16" else 3].all("span", "badge")
    assert badges[0].kinds == {"badge", "notverified"}


def test_evidence_of_another_model_says_so(written: Artifacts, evidence: GpuEvidence) -> None:
    engines = {name: replace(one, onnx_sha256="e" * 64) for name, one in evidence.engines.items()}
    save(written, replace(evidence, engines=engines, model=replace(evidence.model, keras_sha256="f" * 64)))
    assert said(written.page()) == [
        "The engines were compared with another Keras model than the one here.",
        "Measured with other files than those here now. The numbers do not apply to the model on this page.",
    ]


def test_answers_that_verify_did_not_write_are_said(written: Artifacts, evidence: GpuEvidence) -> None:
    save(written, evidence)
    before = said(written.page())
    save(written, replace(evidence, model=replace(evidence.model, as_verified=False)))
    more = "Keras' logits on 200 test images are not those that the verify stage wrote."
    assert said(written.page()) == [*before, more]


def test_what_was_altered_and_default_thresholds_are_said(written: Artifacts, evidence: GpuEvidence) -> None:
    save(written, evidence)
    before = said(written.page())
    save(written, replace(evidence, model=replace(evidence.model, altered=("a.onnx", "b.npz"), own_thresholds=False)))
    assert said(written.page()) == [
        *before,
        "Not as the bundle recorded: a.onnx, b.npz.",
        "Judged by the default thresholds, as the folder had no verdict.",
    ]


def test_an_engine_of_a_strongly_typed_library_is_of_the_usual_file(written: Artifacts, evidence: GpuEvidence) -> None:
    digest = sha256_file(written.root / ONNX["fp16"])
    engines = {"fp16-latency": replace(evidence.engines["fp16-latency"], onnx_sha256=digest)}
    save(written, replace(evidence, engines=engines))
    assert said(written.page()) == ["Its engines were built from the ONNX files here."]


@pytest.mark.parametrize("content", [b"{", b"", b"\xff\xfe", b"[]", b'{"schema": 1}', b'{"schema": NaN}'])
def test_a_damaged_file_is_one_remark(written: Artifacts, evidence: GpuEvidence, content: bytes) -> None:
    save(written, evidence)
    (written.root / "evidence" / "damaged.json").write_bytes(content)
    page = written.page()
    damaged = [line for line in said(page) if "damaged.json" in line]
    assert len(damaged) == 1
    assert damaged[0].startswith("evidence/damaged.json is left out. Expected")
    assert len(page.rows(TITLE)) == 5, "the other file is shown all the same"


def test_a_page_stays_of_a_size_whatever_the_files_say(written: Artifacts, evidence: GpuEvidence) -> None:
    long = "<b>" * 1000
    engines = {long: replace(evidence.engines["fp16-latency"], warnings=(long,) * 200, refused=long, library=long)}
    gpu = Gpu(long, long, long, long)
    peer = timed("fp16", "throughput", 256, "compute", 5, name=f"PyTorch {long}")
    targets = (Target(long, 1.0, 1e300, True, long),)
    steps = tuple(Step(long + str(number), "skipped", why=long) for number in range(9))
    told = replace(evidence, gpu=gpu, commit=long, engines=engines, timings=(peer,), targets=targets, steps=steps)
    for number in range(25):
        save(written, replace(told, date=f"2026-11-{number:02}"), f"{number}.json")
        (written.root / "evidence" / f"damaged-{number}.json").write_text("x")
    page = written.page()
    section = page.section(TITLE)
    assert len(section.text) < 20 * 20_000
    assert {row["measured"] for row in page.rows(TITLE, 1)} == {"1e+300"}
    assert [node.text.count("…") for node in section.all("h3")] == [1] * 20, "the last ones are shown"
    assert "2026-11-24" in section.text
    assert "2026-11-04" not in section.text
    assert "These are the last 20; the others are in evidence/." in section.text
    assert "5 more files are left out as damaged." in said(page)
    assert section.all("b") == []


def test_a_visit_that_was_ended_says_where(written: Artifacts, evidence: GpuEvidence) -> None:
    steps = (*evidence.steps, Step("build int8-latency", "running"), Step("checks"))
    save(written, replace(evidence, state="running", steps=steps, engines={}, parity=None, timings=(), targets=()))
    page = written.page()
    section = page.section(TITLE)
    assert said(page) == ["The visit is under way, or was ended from outside: this is what was known by then."]
    assert section.all("table") == []
    assert [node.text for node in section.all("details")[0].all("li")][1:] == [
        "build int8-latency: it is under way, or the visit was ended in it",
        "checks: its turn has not come, or the visit was ended before",
    ]


def test_the_newest_visit_comes_first_and_names_stay_apart(written: Artifacts, evidence: GpuEvidence) -> None:
    save(written, evidence, "a.json")
    later = replace(evidence, date="2026-12-01T08:00Z", gpu=replace(evidence.gpu, name="<b>RTX</b>"), flavour="rtx")
    save(written, later, "b.json")
    page = written.page()
    section = page.section(TITLE)
    assert [node.text for node in section.all("h3")] == [
        "<b>RTX</b>, TensorRT-RTX 8.6.0",
        "NVIDIA H200, TensorRT 8.6.0",
    ]
    assert "2 visits to a GPU" in section.text
    assert "These are the last" not in section.text
    names = [node.attrs["id"] for node in page.root.walk() if "id" in node.attrs]
    assert len(names) == len(set(names))
    links = {node.attrs["href"].removeprefix("#") for node in page.root.all("a")}
    assert links <= set(names)


def test_evidence_is_a_declared_input_of_the_page(written: Artifacts, evidence: GpuEvidence) -> None:
    assert not [name for name in written.inputs() if name.startswith("evidence/")]
    path = save(written, evidence)
    assert written.inputs()[f"evidence/{path.name}"] == sha256_file(path)
