"""What a failed verdict points at, and that the advice of the page does not contradict it."""

from __future__ import annotations

from dataclasses import replace

import pytest

from pipeline.artifacts.diagnosis import Decoding, Hint
from pipeline.reporting.hints import TITLE
from pipeline.verification.explain.remedies import COMPARE_LAYERS
from tests.pipeline.report_artifacts import ONNX, Artifacts, hop
from tests.pipeline.report_page import Page

SCALE = Hint(
    ONNX[2],
    ONNX[1],
    "layer scale",
    "conv_2 gives half of what it should.",
    "Its outputs are 0.500 times those of Keras.",
    "Make the INT8 file again.",
    "conv_2",
)
UNKNOWN = Hint(ONNX[2], "train/model.keras", "unknown", "Nothing that was tried explains it.", "", "See its layers.")


@pytest.fixture
def failed(artifacts: Artifacts) -> Artifacts:
    artifacts.hops[2] = hop(ONNX[2], "int8", "fail", sqnr_db=10.0)
    artifacts.calibration["budget_met"] = False
    return artifacts


def titles(page: Page) -> list[str]:
    return [node.text for node in page.root.all("h2")]


def test_a_hint_is_the_first_section_with_all_that_it_says(failed: Artifacts) -> None:
    failed.hints = (SCALE, UNKNOWN)
    page = failed.write().page()
    assert titles(page)[:3] == [TITLE, "Next step", "Parity"]
    first, second = page.section(TITLE).all("div", "hint")
    assert first.text == (
        "Layer scale model.fp16.onnx → model.int8.onnx, layer conv_2 conv_2 gives half of what it should. "
        "Evidence: Its outputs are 0.500 times those of Keras. What to do: Make the INT8 file again."
    )
    assert second.text == (
        "Cause not found Keras → model.int8.onnx Nothing that was tried explains it. What to do: See its layers."
    )


def test_commands_of_advice_are_those_of_the_recipe(failed: Artifacts) -> None:
    failed.overrides = ["quantize.sensitivity=never"]
    failed.hints = (replace(UNKNOWN, remedy=COMPARE_LAYERS),)
    (shown,) = failed.write().page().section(TITLE).all("div", "hint")
    assert "verify -c RECIPE" not in shown.text
    assert "--layers --set quantize.sensitivity=never" in shown.text


def test_a_cause_beats_the_generic_advice_which_is_not_said_again(failed: Artifacts) -> None:
    assert "quantize.sensitivity=auto" in without_hints(failed)
    failed.hints = (SCALE,)
    said = failed.write().page().section("Next step").text
    assert said.startswith(f"Next step Follow the advice of {TITLE}, then run again: python -m pipeline run -c ")
    assert "quantize.sensitivity=auto" not in said
    assert SCALE.remedy not in said


def without_hints(artifacts: Artifacts) -> str:
    artifacts.overrides = ["quantize.sensitivity=never"]
    return artifacts.write().page().section("Next step").text


def test_a_cause_that_was_not_found_leaves_the_generic_advice(failed: Artifacts) -> None:
    generic = without_hints(failed)
    failed.hints = (UNKNOWN,)
    assert failed.write().page().section("Next step").text == generic


def test_a_verdict_that_no_longer_holds_is_given_again_first(failed: Artifacts) -> None:
    failed.hints = (SCALE,)
    failed.write()
    (failed.root / ONNX[0]).write_bytes(b"another")
    page = failed.page()
    assert "Verify the files as they are now" in page.section("Next step").text
    assert TITLE not in titles(page), "its hints are about other bytes"


def test_no_hints_after_a_pass(artifacts: Artifacts) -> None:
    artifacts.hints = (SCALE,)
    assert TITLE not in titles(artifacts.write().page())


def test_hints_of_another_verdict_are_not_shown(failed: Artifacts) -> None:
    failed.hints = (SCALE,)
    path = failed.write().root / "verify/diagnosis.json"
    text = path.read_text()
    path.write_text(text.replace(failed.digests("verify/parity.json")["verify/parity.json"], "0" * 64))
    page = failed.page()
    assert TITLE not in titles(page)
    (why,) = page.section("How files are decoded").all("p")
    assert why.text.startswith(
        "verify/diagnosis.json is left out: it explains another verdict than verify/parity.json."
    )


@pytest.mark.parametrize("damage", [b"", b"[[]]", b'{"schema": 1}'])
def test_a_damaged_diagnosis_costs_its_sections_alone(failed: Artifacts, damage: bytes) -> None:
    failed.hints = (SCALE,)
    path = failed.write().root / "verify/diagnosis.json"
    path.write_bytes(damage)
    page = failed.page()
    assert "verify/diagnosis.json is left out: " in page.section("How files are decoded").text
    assert "verify stage again" in page.section("How files are decoded").text
    assert "verify/diagnosis.json was altered since the verify stage wrote it." in page.alerts


def test_without_a_diagnosis_the_page_is_as_it_was(failed: Artifacts) -> None:
    path = failed.write().root / "verify/diagnosis.json"
    path.unlink()
    assert not {TITLE, "How files are decoded"} & set(titles(failed.page()))


def test_consistency_that_fails_has_its_own_advice(artifacts: Artifacts) -> None:
    why = "a batch of 3 gives other answers than its images alone"
    bad = hop(ONNX[0], "fp32", "fail", kind="consistency", reference="itself", why=why)
    none = dict.fromkeys(("finite", "max_abs", "relative_error", "cosine", "sqnr_db", "top1_agreement", "mcnemar"))
    artifacts.hops.append(replace(bad, **none))
    page = artifacts.write().page()
    assert "Do not serve model.onnx in batches" in page.section("Next step").text
    assert why in page.section("Next step").text
    assert page.rows("Parity")[3]["against"] == "itself"
    assert page.badge.text.startswith("model.onnx fails on 200 images; 2 of 3 ONNX files pass")


def test_how_kinds_of_files_are_decoded(artifacts: Artifacts) -> None:
    artifacts.decoding = (
        Decoding("JPEG, RGB", 20, True, 0, 0.0, 0.0),
        Decoding("PNG, palette", 2, False, 12, 0.0312, 0.0021, "Palettes come first."),
    )
    page = artifacts.write().page()
    assert page.rows("How files are decoded") == [
        {
            **{"pixels": "equal", "kind of file": "JPEG, RGB", "files": "20", "largest difference": "0 of 255"},
            **{"values that differ": "0.00%", "effect on logits": "0.0e+00", "rule here": ""},
        },
        {
            **{"pixels": "differ", "kind of file": "PNG, palette", "files": "2", "largest difference": "12 of 255"},
            **{
                "values that differ": "3.12%",
                "effect on logits": "2.1e-03",
                "rule here": "Palettes come first.",
            },
        },
    ]
    assert "Where the pixels differ, the rule says" in page.section("How files are decoded").text


def test_files_that_are_decoded_otherwise_are_no_onnx_file_that_fails(artifacts: Artifacts) -> None:
    given = {"kind": "consistency", "reference": "Keras' loader", "backend": "", "images": 24}
    none = dict.fromkeys(("finite", "max_abs", "relative_error", "cosine", "sqnr_db", "top1_agreement", "mcnemar"))
    artifacts.hops.append(hop("train/model.json", "fp32", **none, **given, certainty="equal"))
    page = artifacts.write().page()
    assert page.badge.text == "ONNX files pass on 200 images; no engine was built"
    assert "agree with themselves" not in page.section("Parity").text
    assert len(page.rows("Parity")) == 3
    artifacts.hops[-1] = hop("train/model.json", "fp32", "fail", **none, **given | {"why": "a pixel is not Keras'"})
    artifacts.decoding = (Decoding("BMP", 2, False, 12, 0.5, required=True, step="resizing"),)
    page = artifacts.write().page()
    words = "image files are not decoded as by Keras; ONNX files pass on 200 images; no engine was built"
    assert (page.badge.text, page.badge.kinds) == (words, {"badge", "fail"})
    assert "Have image files decoded as the model's own were" in page.section("Next step").text
    assert page.rows("How files are decoded")[0]["begins in"] == "resizing"
    assert page.section("How files are decoded").all("span", "fail")[0].text == "differ"


def test_values_that_do_not_follow_from_fp32_are_made_again(artifacts: Artifacts) -> None:
    why = "it does not follow from export/model.onnx: layer 'conv1': its scale is 2 times the recorded one"
    bad = hop(ONNX[2], "int8", "fail", kind="consistency", reference="the values of export/model.onnx", why=why)
    none = dict.fromkeys(("finite", "max_abs", "relative_error", "cosine", "sqnr_db", "top1_agreement", "mcnemar"))
    artifacts.hops.append(replace(bad, **none))
    step = artifacts.write().page().section("Next step").text
    assert "Quantize again" in step
    assert "--force" in step
    assert why in step
