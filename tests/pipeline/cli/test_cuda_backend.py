"""One file that ONNX Runtime runs on the CPU and on CUDA: two candidates, two verdicts, two rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import yaml

from pipeline.artifacts.files import sha256_file, write_json
from pipeline.artifacts.manifest import Key, write_manifest
from pipeline.artifacts.parity_report import (
    CUDA,
    Hop,
    ParityReport,
    overall_verdict,
    read_parity,
    thresholds_by_precision,
)
from pipeline.artifacts.paths import CARD, ONNX, PARITY, TENSORRT8
from pipeline.artifacts.paths import Artifacts as Files
from pipeline.recipe.load import load_recipe
from pipeline.recipe.schema import Recipe, VerifyThresholds
from pipeline.reporting.cards import is_proxy, precision_card, verdict_on_row
from pipeline.runners.base import Runner
from pipeline.serving.candidates import Verdict, Verdicts
from pipeline.stages import BY_NAME
from pipeline.verification.parity import Candidate, Reference, judge
from pipeline.verification.table import parity_table
from pipeline.verification.verify import CUDA_NOTES, NOTES, run_all
from pipeline.workflow import environment
from pipeline.workflow.context import Context
from tests import tiny_onnx
from tests.conftest import Chain
from tests.fakes.engine import make_plan
from tests.fakes.onnxruntime import NO_GPU, FakeOnnxRuntime, install
from tests.made_records import make_hop, write_verdict
from tests.pipeline.report_artifacts import Artifacts, hop, row
from tests.stage_parts import list_candidates

ON_CUDA = " on CUDA"
FP32, FP16, INT8 = ONNX.values()
BOTH = ("onnxruntime", CUDA)


@pytest.fixture
def context(tmp_path: Path) -> Context:
    """The three ONNX files of a model."""
    path = tmp_path / "toy.yaml"
    path.write_text(yaml.safe_dump({"data": {"source": "digits"}, "runtime": {"device": 1}}))
    context = Context(load_recipe(path), path, tmp_path / "artifacts")
    for precision, name in ONNX.items():
        (context.root / name).parent.mkdir(parents=True, exist_ok=True)
        tiny_onnx.write(context.root / name, precision)
    return context


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> FakeOnnxRuntime:
    return install(monkeypatch, FakeOnnxRuntime())


def verified(context: Context, candidates: Sequence[Candidate]) -> ParityReport:
    """The verdict on candidates; FP32 on the CPU stands for Keras."""
    pixels = tiny_onnx.pixels(60)
    with candidates[0].open() as runner:
        logits = runner.infer(pixels).logits
    reference = Reference("train/model.keras", "k" * 64, pixels, logits.argmax(axis=1), logits)
    thresholds = VerifyThresholds()
    thresholds = replace(thresholds, int8=replace(thresholds.int8, sqnr_db=5.0))
    return judge(candidates, run_all(candidates, reference, 32), reference, thresholds)


# --- verify ---


def test_every_file_runs_on_both_and_is_judged_on_both(context: Context, gpu: FakeOnnxRuntime) -> None:
    candidates = list_candidates(context)
    assert [(one.name, one.backend) for one in candidates] == [(name, on) for name in ONNX.values() for on in BOTH]
    parity = verified(context, candidates)
    hops = {(one.kind, one.candidate, one.backend): one for one in parity.hops}
    for precision, name in ONNX.items():
        for backend in BOTH:
            assert hops["from_keras", name, backend].precision == precision
        assert hops["step", name, CUDA].reference == name  # the device alone differs
        assert hops["step", name, CUDA].equal
    assert parity.verdict == "pass"
    on_cuda = [opened for opened in gpu.opened if opened.got[0] == "CUDAExecutionProvider" and opened.model]
    assert [opened.model for opened in on_cuda] == [Path(name).name for name in ONNX.values()]
    assert {dict(opened.asked)["CUDAExecutionProvider"]["device_id"] for opened in on_cuda} == {"1"}


def test_what_is_verified_on_cuda_is_what_serves_there(context: Context, gpu: FakeOnnxRuntime) -> None:
    from pipeline.runners.onnxruntime import OnnxRunner

    on_cuda = [candidate for candidate in list_candidates(context) if candidate.backend == CUDA]
    assert len(on_cuda) == len(ONNX)
    for candidate in on_cuda:
        with candidate.open():
            pass
        with OnnxRunner(context.root / candidate.name, precision=candidate.precision, device="cuda", gpu=1):
            pass
        assert gpu.opened[-1] == gpu.opened[-2]


def test_only_the_cpu_computes_a_proxy(context: Context, gpu: FakeOnnxRuntime) -> None:
    notes = {(one.precision, one.backend): one.note for one in list_candidates(context)}
    assert "a proxy" in notes["fp16", "onnxruntime"]
    assert notes["fp16", CUDA] == notes["fp32", CUDA] == ""
    assert "fake quantization" in notes["int8", CUDA]
    assert NOTES.keys() == CUDA_NOTES.keys()


def test_what_fails_on_cuda_alone_fails_there_alone(
    context: Context, gpu: FakeOnnxRuntime, caplog: pytest.LogCaptureFixture
) -> None:
    gpu.fails_in_runs = True
    parity = verified(context, list_candidates(context))
    verdicts = {(one.candidate, one.backend): one.verdict for one in parity.hops if one.kind == "from_keras"}
    assert verdicts == {(name, on): "fail" if on == CUDA else "pass" for name in ONNX.values() for on in BOTH}
    assert f"{FP16} on CUDA failed: " in caplog.text
    table = parity_table(parity)
    first, second = (line for line in table.splitlines() if f"> {FP16} on CUDA" in line)
    assert first.split()[:2] == second.split()[:2]
    number = first.split()[1]
    (why,) = (line for line in table.splitlines() if line.startswith(f"  {number} "))
    assert "CUDA failure 700" in why


@pytest.mark.parametrize(
    ("fake", "driver"), [(FakeOnnxRuntime(active=()), None), (FakeOnnxRuntime(listed=()), None), (FakeOnnxRuntime(), 0)]
)
def test_where_cuda_is_not_active_the_cpu_alone_is_asked(
    context: Context, monkeypatch: pytest.MonkeyPatch, fake: FakeOnnxRuntime, driver: int | None
) -> None:
    install(monkeypatch, fake, *([] if driver is None else [NO_GPU]))
    assert {one.backend for one in list_candidates(context)} == {"onnxruntime"}


def test_the_file_of_a_tensorrt_8_engine_runs_on_both(context: Context, gpu: FakeOnnxRuntime) -> None:
    tiny_onnx.write(context.root / TENSORRT8["int8"], "int8", channels=4)
    make_plan(
        context.root / "build/tensorrt/int8.plan",
        precision="int8",
        onnx_sha256=sha256_file(context.root / TENSORRT8["int8"]),
    )
    names = [(one.name, one.backend) for one in list_candidates(context)]
    assert names[-3:] == [
        (TENSORRT8["int8"], "onnxruntime"),
        (TENSORRT8["int8"], CUDA),
        ("build/tensorrt/int8.plan", "tensorrt"),
    ]
    assert list_candidates(context)[-1].step_from == TENSORRT8["int8"]


def test_a_runner_of_another_model_is_named_with_what_ran_it(context: Context, gpu: FakeOnnxRuntime) -> None:
    asked: list[tuple[str, str]] = []

    def check(runner: Runner, name: str) -> None:
        asked.append((name, runner.backend))

    candidates = list_candidates(context)
    pixels = tiny_onnx.pixels(1)
    run_all(candidates, Reference("k", "", pixels, np.zeros(1), np.zeros((1, 4))), 1, check)
    assert asked == [(name + end, on) for name in ONNX.values() for end, on in (("", "onnxruntime"), (ON_CUDA, CUDA))]


def test_verify_and_infer_run_again_when_cuda_appears_and_engines_are_not_built_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def now() -> dict[str, dict[str, object]]:
        return {name: BY_NAME[name].environment(Recipe("toy")) for name in ("build", "verify", "infer")}

    install(monkeypatch, FakeOnnxRuntime(active=()))
    monkeypatch.setattr(environment, "find_tensorrt", lambda flavour: None)
    before = now()
    install(monkeypatch, FakeOnnxRuntime())
    after = now()
    assert [name for name in after if after[name] != before[name]] == ["verify", "infer"]
    assert after["verify"].items() - before["verify"].items() == {(CUDA, "active")}


def test_the_verb_verifies_on_cuda_once_it_is_there(chain: Chain, monkeypatch: pytest.MonkeyPatch) -> None:
    hops = [one for one in read_parity(chain.root / PARITY).hops if one.candidate != CARD]
    assert {one.backend for one in hops} <= {"onnxruntime", "tensorrt"}
    install(monkeypatch, FakeOnnxRuntime())
    assert chain.run("verify") == 0
    hops = read_parity(chain.root / PARITY).hops
    on_cuda = {one.candidate: one.verdict for one in hops if one.backend == CUDA and one.kind == "from_keras"}
    assert dict.fromkeys(ONNX.values(), "pass").items() <= on_cuda.items()
    assert Verdicts(Files(chain.root)).on(FP16, CUDA).verdict == "pass"


# --- what may serve ---


def test_a_pass_on_the_cpu_does_not_vouch_for_cuda(context: Context) -> None:
    write_verdict(
        context.root,
        make_hop(FP32),
        *(
            make_hop(FP16, backend=on, verdict="fail" if on == CUDA else "pass", why="NaN" * (on == CUDA))
            for on in BOTH
        ),
    )
    verdicts = Verdicts(Files(context.root))
    assert verdicts.on(FP16, "onnxruntime").verdict == "pass"
    assert verdicts.on(FP16, CUDA).verdict == "fail"
    assert verdicts.on(FP16).verdict == "fail"  # whoever asks for no backend gets the worst
    assert verdicts.on(FP32, CUDA) == Verdict("not verified", f"{FP32} on CUDA was never verified")


def test_a_verdict_of_before_says_nothing_of_cuda(context: Context) -> None:
    write_verdict(context.root, *(make_hop(name) for name in ONNX.values()))
    for name in ONNX.values():
        assert Verdicts(Files(context.root)).on(name, "onnxruntime").verdict == "pass"
        assert Verdicts(Files(context.root)).on(name, CUDA).verdict == "not verified"


def test_both_verdicts_are_written_and_read(context: Context, gpu: FakeOnnxRuntime) -> None:
    gpu.shift = 1e3
    parity = verified(context, list_candidates(context))
    folder = (context.root / PARITY).parent
    folder.mkdir()
    write_json(context.root / PARITY, parity)
    write_manifest(folder, stage="verify", recipe="toy", key=Key({}, {}, ""), seconds=1.0, result={})
    assert read_parity(context.root / PARITY) == parity
    digests = {FP16: sha256_file(context.root / FP16)}
    assert [parity.verdict_of(FP16, digests, on) for on in BOTH] == ["pass", "fail"]
    assert parity.verdict_of(FP16, {FP16: "0" * 64}, CUDA) == "not verified"


# --- the report ---


def with_cuda(artifacts: Artifacts, **numbers: object) -> Artifacts:
    """Each file on CUDA as well, as good as on the CPU but for what is given of FP16."""
    artifacts.hops[1] = replace(artifacts.hops[1], note=NOTES["fp16"])
    for one in list(artifacts.hops):
        twin = replace(one, backend=CUDA, note="", sqnr_db=(one.sqnr_db or 0) + 0.5)
        artifacts.hops.append(replace(twin, **numbers) if one.precision == "fp16" else twin)  # type: ignore[arg-type]
    return artifacts


BAD = {"verdict": "fail", "why": "SQNR 12.5 dB, at least 50.0 dB needed", "sqnr_db": 12.5, "top1_agreement": 0.5}


def test_the_page_tells_which_backend_ran_a_file(artifacts: Artifacts) -> None:
    page = with_cuda(artifacts).write().page()
    rows = page.rows("Parity")
    assert [cells["candidate"] for cells in rows[:3]] == list(ONNX.values())
    assert [cells["candidate"] for cells in rows[3:]] == [name + ON_CUDA for name in ONNX.values()]
    bars = [bar.label for bar in page.chart("SQNR of the logits")]
    assert (bars[1], bars[4]) == ("FP16 model.fp16.onnx", "FP16 model.fp16.onnx on CUDA")
    assert page.remarks("Parity", 1) == [f"FP16: {NOTES['fp16']}."]
    assert page.remarks("Parity", 4) == []
    assert page.badge.text == "ONNX files and ONNX files on CUDA pass on 200 images; no engine was built"


def test_three_kinds_of_runs_are_a_list(artifacts: Artifacts) -> None:
    artifacts.plans = ["build/rtx/int8.plan"]
    with_cuda(artifacts).hops.append(hop("build/rtx/int8.plan", "int8"))
    said = artifacts.write().page().badge.text
    assert said == "ONNX files, ONNX files on CUDA and 1 engine pass on 200 images"


def test_a_file_that_fails_on_cuda_is_not_said_to_fail_on_the_cpu(artifacts: Artifacts) -> None:
    page = with_cuda(artifacts, **BAD).write().page()
    assert page.badge.text.startswith(
        "model.fp16.onnx on CUDA fails on 200 images; ONNX files and 2 of 3 ONNX files on CUDA pass"
    )
    assert page.certainty == f"model.fp16.onnx on CUDA: {BAD['why']}"
    verdicts = {cells["candidate"]: cells["verdict"] for cells in page.rows("Parity")}
    assert (verdicts[FP16], verdicts[FP16 + ON_CUDA]) == ("pass", "fail")


def test_the_card_of_a_precision_is_its_worst_run(artifacts: Artifacts) -> None:
    parity = parity_of(with_cuda(artifacts, **BAD).hops)
    card = precision_card("fp16", parity)
    assert card is not None
    assert card.verdict == "fail"
    assert f"({FP16} on CUDA, the worst of 1 file in 2 runs)" in card.words
    good = precision_card("fp32", parity)
    assert good is not None
    assert good.verdict == "pass"


def test_a_time_on_cuda_has_the_verdict_of_cuda_and_is_no_proxy(artifacts: Artifacts) -> None:
    parity = parity_of(with_cuda(artifacts, **BAD).hops)
    on_cpu, on_cuda, peer = (row(backend, "fp16", 1, 1.0, file=FP16) for backend in (*BOTH, "onnxruntime-tensorrt"))
    assert [verdict_on_row(one, parity) for one in (on_cpu, on_cuda, peer)] == ["pass", "fail", "not verified"]
    assert [is_proxy(one) for one in (on_cpu, on_cuda)] == [True, False]


def test_what_to_do_next_names_cuda(artifacts: Artifacts) -> None:
    said = with_cuda(artifacts, **BAD).write().page().section("Next step").text
    assert "FP16 on CUDA does not reach" in said
    assert "FP16 does not reach" not in said


def test_what_fails_on_both_is_the_fault_of_the_file(artifacts: Artifacts) -> None:
    with_cuda(artifacts, **BAD)
    artifacts.hops[1] = replace(artifacts.hops[1], **BAD)  # type: ignore[arg-type]
    said = artifacts.write().page().section("Next step").text
    assert "FP16 does not reach" in said
    assert "on CUDA" not in said


def test_predictions_have_the_verdict_of_what_served(artifacts: Artifacts) -> None:
    on_cuda = with_cuda(artifacts).hops[3]
    artifacts.hops[3] = replace(on_cuda, verdict="inconclusive", why="inconclusive: too few")
    artifacts.write()
    inputs = artifacts.digests(PARITY, FP32, CARD)
    said = {}
    for backend in BOTH:
        artifacts.manifest("infer", {"model": FP32, "backend": backend, "images": 3}, inputs)
        said[backend] = artifacts.page().section("Predictions").text
    assert f"classified by {FP32} ; a red" in said["onnxruntime"]
    assert f"classified by {FP32} on CUDA (verdict: inconclusive); a red" in said[CUDA]


def parity_of(hops: Sequence[Hop]) -> ParityReport:
    return ParityReport(overall_verdict(hops), thresholds_by_precision(VerifyThresholds()), tuple(hops), {})
