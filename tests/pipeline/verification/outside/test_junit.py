"""JUnit XML of a verdict: what build servers read, whatever the texts contain."""

from __future__ import annotations

from dataclasses import replace
from xml.etree import ElementTree

from pipeline.artifacts.diagnosis import Hint
from pipeline.artifacts.parity_report import Hop, Parity, overall_verdict, thresholds_by_precision
from pipeline.recipe.schema import VerifyThresholds
from pipeline.verification.outside.junit import junit_xml

HOP = Hop(
    "from_keras", "train/model.keras", "export/model.onnx", "onnxruntime", "fp32", 60, "pass",
    certainty="at least 94.0 % agreement", relative_error=1e-6, sqnr_db=120.0, top1_agreement=1.0,
)  # fmt: skip
HOPS = (
    HOP,
    replace(HOP, kind="consistency", reference="itself"),
    replace(
        HOP, candidate="quantize/model.int8.onnx", precision="int8", verdict="fail", certainty="",
        why="SQNR 3.0 dB, at least 20.0 dB needed", sqnr_db=3.0,
    ),
    replace(HOP, candidate="b.onnx", verdict="inconclusive", why="inconclusive: top-1 agreement 0.98", certainty=""),
    replace(HOP, candidate="build/rtx/fp16.plan", backend="tensorrt", verdict="not run", why="no GPU", certainty=""),
    replace(HOP, candidate="c.onnx", backend="onnxruntime-cuda"),
)  # fmt: skip
PARITY = Parity(overall_verdict(HOPS), thresholds_by_precision(VerifyThresholds()), HOPS)
# The elements of junit-10.xsd of Jenkins' xUnit that are written, their attributes and children, in order.
ATTRIBUTES = {
    "testsuites": {"name", "time", "tests", "failures", "disabled", "errors"},
    "testsuite": {"name", "tests", "failures", "errors", "time", "disabled", "skipped", "timestamp", "hostname", "id"},
    "properties": set(),
    "property": {"name", "value"},
    "testcase": {"name", "assertions", "time", "classname", "status"},
    "skipped": {"message", "type"},
    "failure": {"message", "type"},
    "system-out": set(),
}
CHILDREN = {
    "testsuites": ["testsuite"],
    "testsuite": ["properties", "testcase"],
    "properties": ["property"],
    "testcase": ["skipped", "failure", "system-out"],
}
REQUIRED = {"testsuite": {"name"}, "property": {"name", "value"}, "testcase": {"name", "classname"}}


def read(text: str) -> ElementTree.Element:
    """The tree, whose elements are those of the schema."""
    root = ElementTree.fromstring(text.encode())
    for element in root.iter():
        assert set(element.attrib) <= ATTRIBUTES[element.tag]
        assert REQUIRED.get(element.tag, set()) <= set(element.attrib)
        order = [CHILDREN.get(element.tag, []).index(child.tag) for child in element]
        assert order == sorted(order)
    return root


def test_each_comparison_is_a_case_and_the_counts_are_theirs() -> None:
    root = read(junit_xml(PARITY, "verify digits", {"version of onnx": "1.18", "sha256 of a.onnx": "ab"}))
    (suite,) = root
    assert suite.attrib == {"name": "verify digits", "tests": "6", "failures": "1", "errors": "0", "skipped": "2"}
    cases = suite.findall("testcase")
    names = [(case.get("classname"), case.get("name")) for case in cases]
    assert len(set(names)) == len(HOPS)
    assert names[0] == ("parity.export/model_onnx", "answers like train/model.keras")
    assert names[1] == ("parity.export/model_onnx", "is consistent with itself")
    assert names[5] == ("parity.c_onnx on CUDA", "answers like train/model.keras")
    properties = {one.get("name"): one.get("value") for one in suite.iter("property")}
    assert properties == {"verdict": "fail", "version of onnx": "1.18", "sha256 of a.onnx": "ab"}


def test_a_step_whose_source_is_at_fault_is_skipped_and_was_not_left_out() -> None:
    step = replace(HOP, kind="step", reference="a.onnx", verdict="not run", why="a.onnx itself fails", certainty="")
    (skipped,) = read(junit_xml(Parity("pass", {}, (HOP, step)), "s", {})).iter("skipped")
    assert skipped.get("message") == "not judged: a.onnx itself fails"


def test_a_failure_has_its_reason_numbers_and_hints() -> None:
    hint = Hint(
        "quantize/model.int8.onnx", "export/model.onnx", "channel order", "Red and blue are swapped.",
        "With them swapped back the SQNR is 40 dB.", "Export with the right order.",
    )  # fmt: skip
    other = replace(hint, run="export/model.onnx", text="Not of this run.")
    (failure,) = read(junit_xml(PARITY, "s", {}, [hint, other])).iter("failure")
    assert failure.get("message") == "SQNR 3.0 dB, at least 20.0 dB needed"
    assert failure.text is not None
    assert "60 images: relative error 1.0e-06, SQNR in dB 3.0, top-1 agreement 100.00%" in failure.text
    assert "Red and blue are swapped. With them swapped back the SQNR is 40 dB." in failure.text
    assert "Not of this run" not in failure.text


def test_what_is_no_failure_says_why_it_was_skipped() -> None:
    messages = [skipped.get("message") for skipped in read(junit_xml(PARITY, "s", {})).iter("skipped")]
    assert messages == ["inconclusive: top-1 agreement 0.98", "not run: no GPU"]


def test_texts_that_xml_cannot_hold_are_escaped() -> None:
    odd = replace(HOPS[2], candidate="a<&>\"'\x1b[31m\x00\ud800\ufffe.onnx", why="bad \x07 text ]]> \U0001f600\nnext")
    parity = replace(PARITY, hops=(odd,))
    text = junit_xml(parity, "s\x01", {"k\x02": "v\x03"})
    text.encode()  # no lone surrogate
    (suite,) = read(text)
    (case,) = suite.findall("testcase")
    assert suite.get("name") == "s\\x01"
    assert case.get("classname") == "parity.a<&>\"'\\x1b[31m\\x00\\ud800\\ufffe_onnx"
    (failure,) = case
    assert failure.text is not None
    assert failure.text.startswith("bad \\x07 text ]]> \U0001f600\nnext")


def test_equal_logits_have_no_sqnr() -> None:
    hop = replace(HOP, sqnr_db=None, relative_error=0.0)
    (case,) = read(junit_xml(replace(PARITY, verdict="pass", hops=(hop,)), "s", {})).iter("system-out")
    assert case.text == "at least 94.0 % agreement\n60 images: relative error 0.0e+00, top-1 agreement 100.00%"
