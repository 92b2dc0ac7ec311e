"""The record on disk: nothing in it names a machine or a path, and a page of it can be read."""

import json
import platform
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.gpu.markdown import as_markdown
from benchmarks.gpu.record import Record, tidy
from export.tensorrt.sidecar import BatchProfile
from pipeline.artifacts.gpu_evidence import CheckRow, Target, read_gpu_evidence
from pipeline.artifacts.machine import GpuSnapshot
from tests.pipeline.artifacts.test_gpu_evidence_record import EVIDENCE, ROW


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Expected /tmp/a-b/x/fp16.plan to stay.", "Expected fp16.plan to stay."),
        ("with '/home/somebody/imagenet'", "with 'imagenet'"),
        ("open:/root/x/y.onnx: no", "open:y.onnx: no"),
        ("[/_src/optimizer/common/tactic.cpp::timer:12]", "[tactic.cpp::timer:12]"),
        ("2,000 images/s, 3 / 4, a/b/c, 1 GB/s", "2,000 images/s, 3 / 4, a/b/c, 1 GB/s"),
        ("resnet50/conv1_conv/Conv2D and https://a.b/c/d", "resnet50/conv1_conv/Conv2D and https://a.b/c/d"),
    ],
)
def test_paths_become_names(text: str, expected: str) -> None:
    assert tidy({"why": [text]}) == {"why": [expected]}


def test_the_name_of_the_machine_goes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "node", lambda: "gpu-node-17.example.org")
    assert tidy("on gpu-node-17.example.org, gpu-node-17") == "on this machine, this machine"
    monkeypatch.setattr(platform, "node", lambda: "engine")
    assert tidy("the engine runs") == "the engine runs"
    monkeypatch.setattr(platform, "node", lambda: "m-1")
    assert tidy("m-1 of m-12") == "m-1 of m-12", "short names mean something else"


def test_what_is_written_has_neither(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "node", lambda: "node42")
    record = Record(tmp_path / "x.json", EVIDENCE)
    record.step("machine", state="error", why="no /etc/somewhere/file on node42")
    record.add("checks", CheckRow("x", "fp16-throughput", "error", f"OSError: {tmp_path}/engine.plan"))
    for path in (tmp_path / "x.json", tmp_path / "x.md"):
        assert "no file on this machine" in path.read_text()
        assert "OSError: engine.plan" in path.read_text()
        assert "node42" not in path.read_text()
        assert str(tmp_path) not in path.read_text()


def test_numbers_that_json_has_not_do_not_end_a_visit(tmp_path: Path) -> None:
    record = Record(tmp_path / "x.json", EVIDENCE)
    record.change(asked={"speed": float("nan"), "most": float("inf"), "least": float("-inf")})
    written = json.loads((tmp_path / "x.json").read_text())["asked"]
    assert written == {"speed": None, "most": None, "least": None}


def test_what_a_library_says_of_odd_clocks_and_in_odd_letters_is_written(tmp_path: Path) -> None:
    record = Record(tmp_path / "x.json", EVIDENCE)
    record.change(commit="a\udcff", snapshots={"machine": (GpuSnapshot(sm_clock_mhz=float("nan"), power_w=300.0),)})
    kept = read_gpu_evidence(record.path)
    assert (kept.commit, kept.snapshots["machine"][0].sm_clock_mhz) == ("a\\udcff", None)
    assert "| power 300 W |" in record.path.with_suffix(".md").read_text()


@pytest.mark.parametrize(
    ("size", "convolutions", "met"), [((224, 224), 53, True), ((224, 224), 54, None), ((64, 64), 53, None)]
)
def test_absolute_targets_are_for_a_resnet50_alone(
    size: tuple[int, int], convolutions: int, met: bool | None, tmp_path: Path
) -> None:
    engine = replace(EVIDENCE.engines["fp16-throughput"], network_layers={"CONVOLUTION": convolutions, "POOLING": 53})
    model = replace(EVIDENCE.model, size=size)
    record = Record(tmp_path / "x.json", replace(EVIDENCE, model=model, engines={"fp16-throughput": engine}))
    record.add("timings", replace(ROW, precision="int8", measures="stream", images_per_second=70_000))
    target = next(one for one in record.evidence.targets if one.target.startswith("int8: images a second, host to"))
    assert (target.measured, target.met) == (70_000, met)


def test_targets_are_judged_at_every_write(tmp_path: Path) -> None:
    record = Record(tmp_path / "x.json", replace(EVIDENCE, timings=(), targets=()))
    assert read_gpu_evidence(record.path).targets[1].measured is None
    row = replace(EVIDENCE.timings[0], measures="stream")
    record.add("timings", row, replace(row, measures="compute", images_per_second=160_000))
    assert read_gpu_evidence(record.path).targets[1].measured == 0.8


def test_the_page_of_a_visit_with_everything() -> None:
    page = as_markdown(EVIDENCE)
    for line in (
        "# imagenet on NVIDIA H200, TensorRT 8.6.0",
        "| driver | 580.95.05, CUDA 13.0 |",
        "| clocks and power, read after the steps | GPU clock 1,980 MHz |",
        "| model | imagenet, 224×224, 1,000 classes |",
        "| date | 2026-11-29 16:24 UTC |",
        "| engine | FP16 | 256 | host to host | yes | 2 | 2.1 | 2.4 | 128,000 |",
        "Over all: fail.",
        "| fp16-throughput | fail | 100.00% | 40 | 0.01 | too far |",
        "| FP16 | throughput | 1 to 256 | 61.5 | 0.0 | 53 FP16 asked for | "
        "slow; not loaded here: Expected another GPU.; the library: it loads it |",
        "| speed | 1.5 | 1.6 | met |",
        "1 failed, 1 skipped.",
        "| fp16-throughput | graphs | fail | bits differ |",
        "- PyTorch graphs, fp16, batch 256, infer: out of memory",
    ):
        assert line in page.splitlines(), line


def test_sizes_are_in_mebibytes() -> None:
    engine = replace(EVIDENCE.engines["fp16-throughput"], plan_bytes=48 * 2**20)
    page = as_markdown(replace(EVIDENCE, engines={"fp16-throughput": engine}))
    assert "| FP16 | throughput | 1 to 256 | 61.5 | 48.0 |" in page


def test_a_table_stays_a_table() -> None:
    why = "a | b\nc <script>"
    page = as_markdown(replace(EVIDENCE, checks=(CheckRow("graphs", "fp16-latency", "fail", why),)))
    assert "| fp16-latency | graphs | fail | a \\| b c &lt;script> |" in page


@pytest.mark.parametrize("state", ["running", "interrupted", "cut short"])
def test_a_page_says_how_the_visit_ended(state: str) -> None:
    page = as_markdown(replace(EVIDENCE, state=state))  # type: ignore[arg-type]
    assert ("under way" in page, "interrupted" in page, "cut short" in page) == (
        state == "running",
        state == "interrupted",
        state == "cut short",
    )


def test_numbers_on_the_page_say_what_they_are_of() -> None:
    """A streamed call holds many batches, so that its milliseconds are not those of the batch beside them."""
    row = replace(EVIDENCE.timings[0], measures="stream", batches=16)
    engine = replace(next(iter(EVIDENCE.engines.values())), profile=BatchProfile(1, 1, 1))
    targets = (Target("images a second", 60_000, 71_234.5, True),)
    page = as_markdown(replace(EVIDENCE, timings=(row,), engines={"fp16-latency": engine}, targets=targets))
    assert "| 256 | host to host, streamed, 16 batches a call |" in page
    assert "| throughput | 1 | 61.5 |" in page
    assert "| images a second | 60,000 | 71,234 | met |" in page
    assert "called by its type and what it is for" in page
    assert "p50: half of the calls took less" in page


def test_what_ran_is_said_once() -> None:
    row = EVIDENCE.timings[0]
    beside = replace(row, measures="compute", beside="graphs")
    rows = (replace(row, name="engine without graphs", graphs=False), beside, replace(beside, name="PyTorch graphs"))
    page = as_markdown(replace(EVIDENCE, timings=rows))
    assert "| engine | FP16 | 256 | host to host | no |" in page
    assert "| engine (in turns with PyTorch graphs) | FP16 |" in page
    assert "| PyTorch graphs | FP16 |" in page
    assert [line for line in page.splitlines() if line.startswith("PyTorch")] == [
        "PyTorch graphs: channels last, launched by a CUDA graph."
    ]
