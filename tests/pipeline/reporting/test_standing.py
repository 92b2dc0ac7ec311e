"""What the page says of files that changed since they were judged, and when it is out of date."""

from __future__ import annotations

import json
import os
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from export.errors import ProjectError
from pipeline.recipe.load import load_recipe
from pipeline.stages import BY_NAME
from pipeline.workflow.stage import execute, reasons_to_run
from tests.pipeline.report_artifacts import LAYERS, ONNX, PLAN, Artifacts, hop

REPORT = BY_NAME["report"]


# --- what of the verdict still holds ---


def test_warnings_of_the_verdict_stand_under_the_header(artifacts: Artifacts) -> None:
    doubt = "Keras itself classifies 31.0% of the test images correctly, about what guessing among 3 classes gives."
    artifacts.warnings = (doubt,)
    page = artifacts.write().page()
    assert page.alerts == [doubt]
    main = page.root.all("main")[0]
    assert [node.tag for node in main.children if not isinstance(node, str)][:3] == ["p", "div", "nav"]


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
    with pytest.raises(ProjectError, match=r"class of train/model\.json as 'class' in row 3 of .*predictions\.csv"):
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
    assert "verify/parity.json is not in the record of the verify stage, so nothing confirms it." in page.alerts
    assert page.badge.text.startswith("not verified")
    assert "verify not run, or its record is gone" in page.section("Stages").text


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
    assert page.badge.text == "ONNX files pass on 200 images; 1 engine never verified"
    assert page.card("engine")[1] == "TensorRT engine: 1 not verified"
    assert page.rows("Engines")[0]["engine"] == "rtx/int8.plan"
    assert "int8.json" in page.section("Engines").text


def test_numbers_that_are_of_other_bytes_say_so(artifacts: Artifacts) -> None:
    (artifacts.write().root / ONNX[0]).write_bytes(b"another model")
    page = artifacts.page()
    assert "Measured with other bytes than those here now: export/model.onnx." in page.section("Speed").text
    assert "export/model.onnx before export/model.onnx changed" in page.section("Predictions").text
    assert "other bytes" not in Artifacts(artifacts.folder / "same").write().page().section("Speed").text


def test_a_stage_that_worked_on_another_file_says_so(artifacts: Artifacts) -> None:
    artifacts.write().manifest("quantize", {}, {"export/model.onnx": "0" * 64, "train/model.json": "1" * 64})
    artifacts.manifest("build", {}, artifacts.digests(*ONNX) | {"data/test": "2" * 64})
    page = artifacts.page()
    assert page.alerts == [
        f"The quantize stage used another {name} than the one here now." for name in (ONNX[0], "train/model.json")
    ]
    assert page.badge.text == "ONNX files pass on 200 images; no engine was built"


def test_a_candidate_without_bytes_is_no_pass(artifacts: Artifacts) -> None:
    artifacts.hops.append(hop(PLAN, "int8"))
    page = artifacts.write().page()
    assert page.alerts == [f"{PLAN} was judged, but the verdict has no hash of it."]
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


def test_the_page_is_out_of_date_when_any_file_that_it_shows_changed(artifacts: Artifacts) -> None:
    artifacts.plans, artifacts.sensitivity, artifacts.samples = [PLAN], LAYERS, (0, 1)
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
    from pipeline.artifacts import files

    artifacts.plans, artifacts.sensitivity, artifacts.samples = [PLAN], LAYERS, (0, 1)
    outside = artifacts.folder / "photo.png"
    Image.fromarray(artifacts.image(3)).save(outside)
    artifacts.predictions = [("images/0.png", "ok", "cat", 0.5, ""), (outside, "ok", "cat", 0.5, "")]
    artifacts.write()
    artifacts.page()  # everything is imported now
    names = artifacts.inputs()
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


def test_a_verdict_by_other_thresholds_than_the_recipe_has_now(artifacts: Artifacts) -> None:
    artifacts.write()
    recipe, path = artifacts.context.recipe, artifacts.context.recipe_path
    changed = replace(recipe, verify=load_recipe(path, ["verify.thresholds.int8.sqnr_db=45"]).verify)
    said = "The verdict was given by other thresholds than the recipe has now. `verify` judges by those."
    assert artifacts.page().alerts == []
    assert artifacts.page(changed).alerts == [said]
