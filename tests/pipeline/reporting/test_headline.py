"""The first words of a page, for every kind of verdict, and the step that a reader takes next."""

from __future__ import annotations

import shlex
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from export.files import ROOT
from pipeline.artifacts.manifest import Key, read_manifest, write_manifest
from pipeline.reporting.sections import make, when
from pipeline.terminal.command_line import Invocation
from tests.pipeline.report_artifacts import ONNX, PLAN, Artifacts, hop, not_compared

OTHER_PLAN = "build/rtx/fp16.plan"
SURE = "at least 97.3 % agreement with Keras, with 95 % confidence"


def sure(artifacts: Artifacts) -> Artifacts:
    """Comparisons with their intervals, of which the second is the weakest."""
    lows = (0.99, 0.97399, 0.98)
    artifacts.hops = [replace(one, agreement_interval=(low, 1.0)) for one, low in zip(artifacts.hops, lows)]
    return artifacts


def pill(artifacts: Artifacts) -> tuple[str, str, str]:
    """Words, colour and what stands beside them."""
    page = artifacts.write().page()
    (kind,) = page.badge.kinds - {"badge"}
    return page.badge.text, kind, page.certainty


# --- the pill ---


def test_onnx_files_pass_and_engines_were_not_run(artifacts: Artifacts) -> None:
    artifacts.plans = [OTHER_PLAN, PLAN]
    sure(artifacts).hops += [hop(name, Path(name).stem, "not run", why="no GPU") for name in artifacts.plans]
    assert pill(artifacts) == (
        "ONNX files pass on 200 images (at least 97.3 % agreement); engines not run",
        "pass",
        SURE,
    )


def test_engines_ran_too(artifacts: Artifacts) -> None:
    artifacts.plans = [OTHER_PLAN, PLAN]
    artifacts.hops += [hop(OTHER_PLAN, "fp16"), hop(PLAN, "int8")]
    assert pill(artifacts) == ("ONNX files and engines pass on 200 images", "pass", "")


def test_one_engine_of_two_ran(artifacts: Artifacts) -> None:
    artifacts.plans = [OTHER_PLAN, PLAN]
    artifacts.hops += [hop(OTHER_PLAN, "fp16"), hop(PLAN, "int8", "not run")]
    assert pill(artifacts)[0] == "ONNX files and 1 of 2 engines pass on 200 images; 1 engine not run"


def test_no_engine_and_one_image(artifacts: Artifacts) -> None:
    artifacts.hops = [replace(one, images=1) for one in artifacts.hops]
    assert pill(artifacts)[0] == "ONNX files pass on 1 image; no engine was built"


def test_a_failure_is_named_with_what_it_missed(artifacts: Artifacts) -> None:
    sure(artifacts).hops[2] = hop(ONNX[2], "int8", "fail")
    assert pill(artifacts) == (
        "model.int8.onnx fails on 200 images; 2 of 3 ONNX files pass (at least 97.3 % agreement); no engine was built",
        "fail",
        "model.int8.onnx: SQNR 42.5 dB, at least 60.0 dB needed",
    )


def test_many_failures_are_counted(artifacts: Artifacts) -> None:
    artifacts.plans = [PLAN]
    artifacts.hops = [hop(name, precision, "fail") for name, precision in zip(ONNX, ("fp32", "fp16", "int8"))]
    artifacts.hops.append(hop(PLAN, "int8", "inconclusive"))
    assert pill(artifacts)[0] == "ONNX files fail on 200 images; rtx/int8.plan is inconclusive"


def test_a_file_fails_by_its_worst_comparison(artifacts: Artifacts) -> None:
    artifacts.hops.append(hop(ONNX[2], "int8", "fail", kind="step", reference=ONNX[1]))
    assert pill(artifacts)[0].startswith("model.int8.onnx fails on 200 images; 2 of 3 ONNX files pass")


def test_inconclusive_says_what_would_decide(artifacts: Artifacts) -> None:
    why = "inconclusive: top-1 agreement 0.9860, 0.9900 asked; about 2,377 images would decide"
    artifacts.hops[2] = hop(ONNX[2], "int8", "inconclusive", why=why, images_to_decide=2377)
    words, kind, beside = pill(artifacts)
    assert words == "model.int8.onnx is inconclusive on 200 images; 2 of 3 ONNX files pass; no engine was built"
    assert (kind, beside) == ("inconclusive", f"model.int8.onnx: {why}")


def test_onnx_files_that_nothing_here_runs_are_named_beside_engines_that_passed(artifacts: Artifacts) -> None:
    artifacts.plans = [PLAN]
    files = [hop(name, precision, "not run") for name, precision in zip(ONNX, ("fp32", "fp16", "int8"))]
    artifacts.hops = [*files, hop(PLAN, "int8", agreement_interval=(0.98199, 1.0))]
    assert pill(artifacts)[0] == "1 engine passes on 200 images (at least 98.1 % agreement); ONNX files not run"


def test_no_agreement_is_claimed_where_one_file_that_passed_has_none(artifacts: Artifacts) -> None:
    sure(artifacts).hops[1] = replace(artifacts.hops[1], agreement_interval=None)
    assert pill(artifacts)[0] == "ONNX files pass on 200 images; no engine was built"


def test_the_agreement_of_the_pill_is_that_of_the_files_that_pass(artifacts: Artifacts) -> None:
    sure(artifacts).hops[1] = hop(ONNX[1], "fp16", "fail", agreement_interval=(0.1, 0.2))
    assert (
        "model.fp16.onnx fails on 200 images; 2 of 3 ONNX files pass (at least 98.0 % agreement)" in pill(artifacts)[0]
    )


def test_a_file_that_gave_no_answers_failed_on_no_image(artifacts: Artifacts) -> None:
    artifacts.plans = [PLAN]
    sure(artifacts).hops.append(not_compared(PLAN, "int8", "fail", "it is stale"))
    words = "rtx/int8.plan fails; ONNX files pass on 200 images (at least 97.3 % agreement)"
    assert pill(artifacts)[:2] == (words, "fail")


def test_nothing_could_be_run(artifacts: Artifacts) -> None:
    artifacts.hops = [hop(name, precision, "not run", why="no GPU") for name, precision in zip(ONNX, ("fp32", "fp16"))]
    assert pill(artifacts) == ("nothing is verified: no file could be run here", "fail", "")
    assert "Use a machine that can run the files" in artifacts.page().section("Next step").text


def test_files_that_were_altered_since(artifacts: Artifacts) -> None:
    sure(artifacts).write()
    (artifacts.root / ONNX[0]).write_bytes(b"another")
    page = artifacts.page()
    assert page.badge.text == "not verified as it is now (verdict pass, but files were altered since)"
    assert page.badge.kinds == {"badge", "notverified"}
    assert page.certainty == ""
    judged = {cells["file"]: cells["now"] for cells in page.rows("What was judged")}
    assert judged[ONNX[0]] == "altered"
    assert judged[ONNX[1]] == "as judged"
    (artifacts.root / ONNX[1]).unlink()
    judged = {cells["file"]: cells["now"] for cells in artifacts.page().rows("What was judged")}
    assert judged[ONNX[1]] == "missing"


# --- the date ---


def test_the_date_is_that_of_the_verdict(artifacts: Artifacts) -> None:
    root = artifacts.write().root
    (moment,) = artifacts.page().root.all("p", "when")
    assert moment.text == f"Verified on {when(read_manifest(root / 'verify'))}"
    before = (artifacts.folder / "out/report.html").read_text()
    artifacts.page()
    assert (artifacts.folder / "out/report.html").read_text() == before, "it is not the time of rendering"


@pytest.mark.parametrize(
    ("finished", "shown"),
    [
        ("2026-11-29T12:05:09+00:00", "29 November 2026, 12:05 UTC"),
        ("2026-11-29T01:05:09+02:00", "28 November 2026, 23:05 UTC"),
        ("", ""),
        ("<script>", ""),
        ("0001-01-01T00:00:00+14:00", ""),
    ],
)
def test_a_date_for_people(tmp_path: Path, finished: str, shown: str) -> None:
    write_manifest(tmp_path, stage="verify", recipe="r", key=Key({}, {}, ""), seconds=0, result={})
    manifest = read_manifest(tmp_path)
    assert manifest is not None
    assert when(manifest).endswith("UTC")
    assert when(replace(manifest, finished=finished)) == shown
    assert when(None) == ""


# --- the command ---


def test_the_command_is_the_one_that_the_readme_uses() -> None:
    assert make(Invocation(Path("configs/digits.yaml")), "run") == "make run"
    assert make(Invocation(Path("configs/mine.yaml")), "bundle") == "RECIPE=mine make bundle"
    elsewhere = make(Invocation(Path("my recipes/mine.yaml"), Path("out"), ["a.b=c d"]), "run")
    assert shlex.split(elsewhere) == [
        *("python", "-m", "pipeline", "run", "-c", "my recipes/mine.yaml", "--set", "a.b=c d", "--artifacts", "out")
    ]


@pytest.mark.skipif(shutil.which("make") is None, reason="there is no make")
@pytest.mark.parametrize("value", ["a b", "it's", '"x"', "$HOME", "$(shell id)", "`id`", "a\\b", "#1", "[1, 8]", ";ls"])
def test_make_and_the_shell_hand_every_override_on_as_it_was_given(value: str) -> None:
    overrides = [f"data.path={value}", "train.seed=2"]
    line = make(Invocation(Path("configs/mnist.yaml"), overrides=overrides), "run")
    assert line.startswith("RECIPE=mnist ARGS=")
    dry = f"{line.removesuffix(' run')} -n PY=python INSTALLED=/dev/null run"
    said = subprocess.run(["sh", "-c", dry], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    (ran,) = [row for row in said.splitlines() if "-m pipeline run" in row]
    told = subprocess.run(["sh", "-c", f"printf '%s\\0' {ran}"], capture_output=True, text=True, check=True).stdout
    assert told.split("\0")[4:-1] == [*("-c", "mnist", "--set", f"data.path={value}", "--set", "train.seed=2")]


def test_the_page_says_the_recipe_and_what_differs(artifacts: Artifacts) -> None:
    page = artifacts.write().page()
    changed = {cells["key"]: (cells["here"], cells["default"]) for cells in page.rows("Recipe")}
    assert changed["data.source"] == ("digits", "folder")
    assert changed["verify.thresholds.fp32.relative_error"] == ("null", "auto")
    assert not changed.keys() & {"data.path", "data.resize"}, "a path decides nothing, and this one is as it was"
    assert f"{len(changed)} keys differ from the defaults" in page.section("Recipe").text
    (command,) = [node.text for node in page.section("Recipe").all("code") if "pipeline run" in node.text]
    assert shlex.split(command)[:5] == ["python", "-m", "pipeline", "run", "-c"]
