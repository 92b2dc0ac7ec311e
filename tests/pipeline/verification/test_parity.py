from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from export.errors import DeviceUnavailableError, ProjectError, RunnerError
from export.metrics.distances import compare
from export.onnx_passes.signature import append_top_k
from export.records import from_json, to_json
from pipeline.artifacts.parity_report import CONSISTENCY, FAIL, INCONCLUSIVE, NOT_RUN, PASS, SCHEMA, STEP, ParityReport
from pipeline.recipe.schema import Thresholds, VerifyThresholds
from pipeline.runners.base import Outputs, Top, softmax, top_k_of
from pipeline.runners.onnxruntime import OnnxRunner
from pipeline.verification.checks.thresholds import check_thresholds
from pipeline.verification.culprits import culprits
from pipeline.verification.parity import Answer, Candidate, Reference, judge
from pipeline.verification.table import parity_table
from pipeline.verification.verify import run_all
from tests import tiny_onnx
from tests.made_records import make_hop

COUNT, CLASSES = 50, 4
CONTRACT = {
    "kind", "reference", "candidate", "backend", "images", "max_abs", "cosine", "sqnr_db", "top1_agreement",
    "accuracy_reference", "accuracy_candidate", "verdict", "why", "agreement_interval", "accuracy_drop",
    "accuracy_drop_interval", "mcnemar", "certainty", "images_to_decide",
}  # fmt: skip

random = np.random.default_rng(0)
LOGITS = random.normal(size=(COUNT, CLASSES)).astype(np.float32)
LABELS = LOGITS.argmax(axis=1)
LABELS[:5] = (LABELS[:5] + 1) % CLASSES  # Keras is right on 90 %
PIXELS = np.arange(COUNT, dtype=np.uint8)[:, None, None, None].repeat(3, axis=3)
REFERENCE = Reference("train/model.keras", "k" * 64, PIXELS, LABELS, LOGITS)


class FakeRunner:
    """Gives prepared logits; the pixels of an image say which row it asks for."""

    backend, precision, max_batch, graph_top_k = "onnxruntime", "fp32", 64, 0

    def __init__(self, logits: np.ndarray, error: Exception | None = None) -> None:
        self.logits, self.error = logits, error
        self.batches: list[int] = []
        self.open = False

    def __enter__(self) -> FakeRunner:
        self.open = True
        return self

    def __exit__(self, *exc: object) -> None:
        self.open = False

    def infer(self, pixels: np.ndarray) -> Outputs:
        assert self.open
        self.batches.append(len(pixels))
        if self.error and len(self.batches) == 2:
            raise self.error
        logits = self.logits[pixels[:, 0, 0, 0]]
        with np.errstate(invalid="ignore"):
            return Outputs(logits, softmax(logits))


def raising(error: Exception) -> Callable[[], FakeRunner]:
    def opened() -> FakeRunner:
        raise error

    return opened


def candidate(name: str, precision: str, source: object, step: str | None = None, **options: str) -> Candidate:
    opened = source if callable(source) else lambda: FakeRunner(source)
    return Candidate(name, options.pop("backend", "onnxruntime"), precision, name[:1] * 64, step, opened, **options)


def parity_of(*candidates: Candidate, limits: VerifyThresholds | None = None, reference: Reference = REFERENCE) -> dict:
    answers = run_all(candidates, reference, batch_size=16)
    parity = to_json(judge(candidates, answers, reference, limits or VerifyThresholds()))

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is no JSON")

    text = json.dumps(parity, allow_nan=False)
    assert json.loads(text, parse_constant=refuse) == parity
    assert parity["schema"] == SCHEMA
    assert all(hop.keys() >= CONTRACT for hop in parity["hops"])  # type: ignore[attr-defined]
    assert {hop["verdict"] for hop in parity["hops"]} <= {"pass", "inconclusive", "fail", "not run"}  # type: ignore[attr-defined]
    assert all(bool(hop["why"]) == (hop["verdict"] != PASS) for hop in parity["hops"])  # type: ignore[attr-defined]
    assert all(hop["certainty"] == "" for hop in parity["hops"] if hop["verdict"] != PASS)  # type: ignore[attr-defined]
    assert all((hop["images_to_decide"] is not None) == (hop["verdict"] == INCONCLUSIVE) for hop in parity["hops"])  # type: ignore[attr-defined]
    # What a run does to itself is tested in test_consistency.py; here it is right wherever there are logits.
    checked = [hop for hop in parity["hops"] if hop["kind"] == CONSISTENCY]  # type: ignore[attr-defined]
    parity["hops"] = [hop for hop in parity["hops"] if hop["kind"] != CONSISTENCY]  # type: ignore[attr-defined]
    assert all(hop["images"] == min(16, len(reference.labels)) for hop in checked)
    assert all(hop["images"] == len(reference.labels) for hop in parity["hops"])  # type: ignore[attr-defined]
    return parity


def noisy(sigma: float) -> np.ndarray:
    return (LOGITS + np.random.default_rng(1).normal(size=LOGITS.shape) * sigma).astype(np.float32)


def mirrored(sigma: float) -> np.ndarray:
    """As far from the logits as `noisy`, on the other side of them."""
    return 2 * LOGITS - noisy(sigma)


def flipped(rows: int) -> np.ndarray:
    """Another top class in so many rows."""
    logits = LOGITS.copy()
    logits[-rows:] = -logits[-rows:]
    return logits


ABSENT = raising(DeviceUnavailableError("Expected a GPU. Received: none.", "no NVIDIA driver"))


# --- a chain that is right ---


def test_a_chain_that_passes() -> None:
    parity = parity_of(
        candidate("export/model.onnx", "fp32", LOGITS),
        candidate("quantize/fp16.onnx", "fp16", noisy(1e-5), "export/model.onnx", note="a proxy"),
        candidate("quantize/int8.onnx", "int8", noisy(1e-3), "quantize/fp16.onnx"),
    )
    assert parity["verdict"] == "pass"
    kinds = [(hop["kind"], hop["reference"], hop["candidate"]) for hop in parity["hops"]]
    assert kinds == [
        ("from_keras", "train/model.keras", "export/model.onnx"),
        ("from_keras", "train/model.keras", "quantize/fp16.onnx"),
        ("step", "export/model.onnx", "quantize/fp16.onnx"),
        ("from_keras", "train/model.keras", "quantize/int8.onnx"),
        ("step", "quantize/fp16.onnx", "quantize/int8.onnx"),
    ]
    assert all(hop["verdict"] == "pass" and hop["why"] == "" for hop in parity["hops"])
    assert parity["hops"][1]["note"] == "a proxy"


def test_the_numbers_of_a_hop() -> None:
    hop = parity_of(candidate("a", "int8", flipped(3)))["hops"][0]
    difference = np.abs(LOGITS.astype(np.float64) - flipped(3))
    assert hop["max_abs"] == pytest.approx(difference.max())
    assert hop["relative_error"] == pytest.approx(difference.max() / np.abs(LOGITS).max())
    assert hop["sqnr_db"] == pytest.approx(10 * np.log10((LOGITS.astype(float) ** 2).sum() / (difference**2).sum()))
    assert hop["cosine"] == pytest.approx((COUNT - 6) / COUNT)
    assert hop["top1_agreement"] == pytest.approx((COUNT - 3) / COUNT)
    assert hop["accuracy_reference"] == pytest.approx(0.9)
    assert hop["accuracy_candidate"] == pytest.approx(0.9 - 3 / COUNT)
    assert (hop["accuracy_drop"], hop["mcnemar"]) == (0.06, {"losses": 3, "gains": 0, "p_value": 0.25})
    assert hop["accuracy_drop_interval"] == pytest.approx([-0.0156, 0.1622], abs=1e-4)
    assert hop["verdict"] == "fail"


def test_a_step_is_measured_against_the_step_before() -> None:
    parity = parity_of(candidate("a", "fp32", noisy(0.5)), candidate("b", "fp16", noisy(0.5), "a"))
    from_keras, step = parity["hops"][1:]
    assert from_keras["verdict"] == "fail"
    assert (step["verdict"], step["max_abs"], step["sqnr_db"], step["top1_agreement"]) == ("pass", 0, None, 1)


def test_equal_logits_are_strict_json() -> None:
    hop = parity_of(candidate("a", "fp16", LOGITS.copy()))["hops"][0]
    assert hop["verdict"] == "pass"
    assert hop["sqnr_db"] is None, "infinite, which JSON does not know"


def test_every_image_is_asked_for_once_the_last_partial_batch_too() -> None:
    runner = FakeRunner(LOGITS)
    answers = run_all([candidate("a", "fp32", lambda: runner)], REFERENCE, batch_size=16)
    assert runner.batches[:4] == [16, 16, 16, 2], "what follows asks for a few images again"
    assert np.array_equal(answers["a"].logits, LOGITS)
    assert not runner.open


# --- thresholds ---


@pytest.mark.parametrize(
    ("limits", "verdict", "why"),
    [
        (Thresholds(), "pass", ""),
        (Thresholds(top1_agreement=0.94), "pass", ""),
        (Thresholds(top1_agreement=0.95), "inconclusive", "inconclusive: top-1 agreement 94.00 % (95 %: 83."),
        (Thresholds(top1_agreement=0.98), "fail", "94.00 % (95 %: 83.78 % to 97.94 %) of 50 images, 98 %"),
        (Thresholds(sqnr_db=1), "pass", ""),
        (Thresholds(sqnr_db=60), "fail", "SQNR"),
        (Thresholds(relative_error=10), "pass", ""),
        (Thresholds(relative_error=1e-3), "fail", "relative error"),
        (Thresholds(accuracy_drop=0.06), "pass", ""),
        (
            Thresholds(accuracy_drop=0.05),
            "inconclusive",
            "(95 %: -1.56 % to 16.22 %) of 50 images, at most 5 % allowed",
        ),
        (Thresholds(accuracy_drop=-0.02), "fail", "accuracy drop 6.00 % (95 %"),
        (Thresholds(top1_agreement=0.99, accuracy_drop=0.01), "fail", "99 % required; inconclusive: accuracy drop"),
        (Thresholds(top1_agreement=0.95, sqnr_db=60), "fail", "would decide; SQNR"),
        (Thresholds(top1_agreement=0.95, relative_error=10), "inconclusive", "top-1"),
    ],
)
def test_each_threshold(limits: Thresholds, verdict: str, why: str) -> None:
    parity = parity_of(candidate("a", "int8", flipped(3)), limits=VerifyThresholds(int8=limits))
    assert parity["verdict"] == parity["hops"][0]["verdict"] == verdict
    assert why in parity["hops"][0]["why"]


def hop_with(images: int, changed: int, limits: Thresholds, right: int | None = None) -> dict:
    """A hop on so many images, of which so many change their top class; labels as the reference says, or so many."""
    before = np.tile(np.array([[4, 1, 0]], np.float32), (images, 1))
    after = before.copy()
    after[:changed] = [1, 4, 0]
    labels = np.where(np.arange(images) < (images if right is None else right), 0, 2)
    answers = {"a": Answer(after, PASS)}
    reference = Reference("k", "k" * 64, np.zeros((images, 1, 1, 3), np.uint8), labels, before)
    report = judge([candidate("a", "int8", after)], answers, reference, VerifyThresholds(int8=limits))
    return to_json(report.hops[0])


def test_one_image_of_500_does_not_decide() -> None:
    hop = hop_with(500, 1, Thresholds(top1_agreement=0.999))
    assert hop["verdict"] == "inconclusive"
    assert hop["why"] == (
        "inconclusive: top-1 agreement 99.80 % (95 %: 98.88 % to 99.96 %) of 500 images, 99.9 % required; "
        "about 3,838 images would decide"
    )
    assert hop["images_to_decide"] == 3838


@pytest.mark.parametrize(
    ("changed", "limit", "said"),
    [(1, 1.0, "99.99 %"), (101, 0.999, "99.899 %"), (1000, 0.9999, "99.00 %"), (2, 0.99999, "99.998 %")],
)
def test_a_share_in_a_reason_is_rounded_neither_to_all_nor_to_the_threshold(
    changed: int, limit: float, said: str
) -> None:
    images = 100_000
    logits = np.eye(2, dtype=np.float32)[np.zeros(images, int)]
    other = logits.copy()
    other[:changed] = other[:changed, ::-1]
    findings = check_thresholds(compare(logits, other, np.zeros(images, int)), Thresholds(top1_agreement=limit))
    assert f"top-1 agreement {said} (95 %: " in findings[-1].text


def test_ten_images_of_100_do() -> None:
    hop = hop_with(100, 10, Thresholds(top1_agreement=0.99))
    assert hop["verdict"] == "fail"
    assert hop["why"] == "top-1 agreement 90.00 % (95 %: 82.56 % to 94.48 %) of 100 images, 99 % required"


@pytest.mark.parametrize(("high", "verdict"), [(0.999, "inconclusive"), (np.nextafter(0.999, 0), "fail")])
def test_an_interval_that_touches_the_agreement_asked_contains_it(high: float, verdict: str) -> None:
    comparison = replace(compare(LOGITS, LOGITS), top1_agreement=0.9, agreement_interval=(0.8, high))
    assert check_thresholds(comparison, Thresholds(top1_agreement=0.999))[1].verdict == verdict


@pytest.mark.parametrize(("low", "verdict"), [(0.01, "inconclusive"), (np.nextafter(0.01, 1), "fail")])
def test_an_interval_that_touches_the_drop_allowed_contains_it(low: float, verdict: str) -> None:
    comparison = compare(LOGITS, flipped(3), LOGITS.argmax(axis=1))
    comparison = replace(comparison, accuracy_drop_interval=(low, 0.2))
    assert check_thresholds(comparison, Thresholds(accuracy_drop=0.01))[1].verdict == verdict


def test_a_pass_says_what_its_images_show() -> None:
    hop = hop_with(360, 0, Thresholds(top1_agreement=0.999))
    assert (hop["verdict"], hop["certainty"]) == ("pass", "at least 98.9 % agreement with 95 % confidence")
    hop = hop_with(10_000, 0, Thresholds(top1_agreement=0.999, sqnr_db=10, accuracy_drop=0.0))
    assert hop["certainty"] == (
        "at least 99.9 % agreement with 95 % confidence; at most 0.1 points of accuracy lost with 95 % confidence"
    )
    assert hop_with(360, 0, Thresholds(sqnr_db=10))["certainty"] == "", "no share was asked for"


def test_a_share_that_meets_its_threshold_exactly_passes() -> None:
    """0.9 - 0.89 is more than 0.01 in floating point; one image of 100 is not."""
    assert 0.9 - 0.89 > 0.01
    hop = hop_with(100, 1, Thresholds(top1_agreement=0.99, accuracy_drop=0.01), right=90)
    assert (hop["accuracy_reference"], hop["accuracy_candidate"]) == (0.9, 0.89)
    assert hop["verdict"] == "pass"


@pytest.mark.parametrize(
    ("images", "lost", "limit", "verdict"),
    [(500, 1, 0.001, "inconclusive"), (500, 30, 0.03, "fail"), (100, 4, 0.01, "inconclusive"), (100, 9, 0.01, "fail")],
)
def test_the_accuracy_drop(images: int, lost: int, limit: float, verdict: str) -> None:
    hop = hop_with(images, lost, Thresholds(accuracy_drop=limit))
    assert hop["mcnemar"]["losses"] == lost
    assert hop["verdict"] == verdict
    assert (hop["accuracy_drop_interval"][0] > limit) == (verdict == "fail")


def test_a_drop_without_labels_is_not_taken_for_none() -> None:
    found = check_thresholds(compare(LOGITS, LOGITS), Thresholds(accuracy_drop=0.01))
    assert [finding.verdict for finding in found] == [PASS, FAIL]
    assert "no test image has a label" in found[1].text


def test_a_drop_is_of_the_images_with_a_label() -> None:
    known = np.where(np.arange(len(LOGITS)) % 2, LOGITS.argmax(axis=1), -1)
    lost = LOGITS.copy()
    lost[1] = -lost[1]
    some, limit = compare(LOGITS, lost, known), Thresholds(accuracy_drop=1.8 / len(LOGITS))
    alone = compare(LOGITS[1::2], lost[1::2], known[1::2])
    (found,), (expected,) = (
        [finding for finding in check_thresholds(each, limit) if "accuracy drop" in finding.text]
        for each in (some, alone)
    )
    assert (found.verdict, found.images) == (INCONCLUSIVE, expected.images)
    assert found.text == expected.text


def test_each_precision_has_its_own_thresholds() -> None:
    strict, lax = Thresholds(relative_error=1e-9), Thresholds()
    for precision in ("fp32", "fp16", "int8"):
        limits = VerifyThresholds(**{name: strict if name == precision else lax for name in ("fp32", "fp16", "int8")})
        parity = parity_of(*(candidate(name, name, noisy(0.1)) for name in ("fp32", "fp16", "int8")), limits=limits)
        assert [hop["candidate"] for hop in parity["hops"] if hop["verdict"] == "fail"] == [precision]


def test_the_defaults_pass_just_above_and_fail_just_below() -> None:
    def shift(relative: float) -> np.ndarray:
        changed = LOGITS.astype(np.float64)
        changed[0, 0] += relative * np.abs(LOGITS).max()
        return changed

    assert parity_of(candidate("a", "fp32", shift(0.9e-5)))["verdict"] == "pass"
    assert parity_of(candidate("a", "fp32", shift(1.2e-5)))["verdict"] == "fail"


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("limits", [VerifyThresholds(), VerifyThresholds(*[Thresholds()] * 3)])
def test_one_number_that_is_not_finite_fails_whatever_is_asked(value: float, limits: VerifyThresholds) -> None:
    logits = LOGITS.copy()
    logits[7, 2] = value
    parity = parity_of(candidate("a", "int8", logits), candidate("b", "int8", LOGITS, "a"), limits=limits)
    first, second, step = parity["hops"]
    assert (first["verdict"], second["verdict"], step["verdict"]) == ("fail", "pass", "not run")
    assert "NaN or infinite" in first["why"]
    assert "a itself fails against Keras, and this file does not" in step["why"]
    assert first["max_abs"] is None


@pytest.mark.parametrize("shape", [(COUNT, CLASSES + 1), (COUNT, 1), (COUNT, CLASSES, 1)])
def test_logits_of_another_shape(shape: tuple[int, ...]) -> None:
    hop = parity_of(candidate("a", "fp32", np.zeros(shape, np.float32)))["hops"][0]
    assert hop["verdict"] == "fail"
    assert f"expected logits of shape {(COUNT, CLASSES)}, received {shape}" in hop["why"]


def test_rows_that_are_missing() -> None:
    class Short(FakeRunner):
        def infer(self, pixels: np.ndarray) -> Outputs:
            return Outputs(*(part[:-1] for part in super().infer(pixels)))

    hop = parity_of(candidate("a", "fp32", lambda: Short(LOGITS)))["hops"][0]
    assert hop["verdict"] == "fail"
    assert f"received {(COUNT - 4, CLASSES)}" in hop["why"]


# --- not run, and fail ---


def test_a_device_that_does_not_exist_is_not_run_and_leaves_the_verdict() -> None:
    parity = parity_of(candidate("a", "fp32", LOGITS), candidate("b.plan", "fp32", ABSENT, "a", backend="tensorrt"))
    assert parity["verdict"] == "pass"
    for hop in parity["hops"][1:]:
        assert hop["verdict"] == "not run"
        assert hop["why"] == "built, not run here: no NVIDIA driver"
        assert hop["backend"] == "tensorrt"
        assert hop["max_abs"] is hop["top1_agreement"] is hop["accuracy_candidate"] is None


def test_nothing_that_ran_is_no_pass() -> None:
    assert parity_of(candidate("a", "fp32", ABSENT))["verdict"] == "fail"
    assert parity_of()["verdict"] == "fail"


def test_inconclusive_lies_between_pass_and_fail() -> None:
    limits = VerifyThresholds(fp16=Thresholds(top1_agreement=0.95), int8=Thresholds(top1_agreement=0.99))
    good, open_, bad = (
        candidate("good", "fp32", LOGITS), candidate("open", "fp16", flipped(3)), candidate("bad", "int8", flipped(9)),
    )  # fmt: skip
    assert parity_of(good, open_, limits=limits)["verdict"] == "inconclusive"
    assert parity_of(open_, limits=limits)["verdict"] == "inconclusive"
    assert parity_of(open_, candidate("c", "fp32", ABSENT), limits=limits)["verdict"] == "inconclusive"
    assert parity_of(good, open_, bad, limits=limits)["verdict"] == "fail"


def test_one_failure_fails_all() -> None:
    parity = parity_of(
        candidate("a", "fp32", LOGITS), candidate("b", "int8", flipped(9), "a"), candidate("c", "fp32", ABSENT)
    )
    assert parity["verdict"] == "fail"
    assert [hop["verdict"] for hop in parity["hops"]] == ["pass", "fail", "fail", "not run"]


@pytest.mark.parametrize("error", [RunnerError("Expected an engine of this GPU."), ProjectError("bad sidecar")])
@pytest.mark.parametrize("when", ["opening", "running"])
def test_a_backend_that_is_there_and_fails(error: Exception, when: str) -> None:
    runner = FakeRunner(LOGITS, error)
    opened = raising(error) if when == "opening" else lambda: runner
    parity = parity_of(candidate("a", "fp32", opened), candidate("b", "fp16", LOGITS, "a"))
    first, second, step = parity["hops"]
    assert (first["verdict"], first["why"]) == ("fail", str(error))
    assert second["verdict"] == "pass"
    assert step["verdict"] == "not run", "b is right, whatever a is"
    assert "a itself fails against Keras" in step["why"]
    runner.batches.clear()
    *_, step = parity_of(candidate("a", "fp32", opened), candidate("b", "fp16", flipped(9), "a"))["hops"]
    assert step["verdict"] == "fail"
    assert "its reference a did not give usable logits" in step["why"]
    assert parity["verdict"] == "fail"
    assert not runner.open


def test_a_step_from_a_reference_that_was_not_run_is_not_run() -> None:
    parity = parity_of(candidate("a.plan", "fp32", ABSENT), candidate("b", "fp32", LOGITS, "a.plan"))
    assert [hop["verdict"] for hop in parity["hops"]] == ["not run", "pass", "not run"]
    assert parity["verdict"] == "pass"


def test_an_onnx_file_that_loads_and_does_not_run(tmp_path: Path) -> None:
    """ONNX Runtime raises exceptions of its own, with no base that is public."""
    graph = helper.make_graph(
        [
            helper.make_node("Constant", [], ["far"], value_int=99),
            helper.make_node("Cast", ["images"], ["floats"], to=TensorProto.FLOAT),
            helper.make_node("Gather", ["floats", "far"], ["column"], axis=1),
            helper.make_node("Flatten", ["column"], ["logits"]),
            helper.make_node("Softmax", ["logits"], ["probabilities"]),
        ],
        "broken",
        [helper.make_tensor_value_info("images", TensorProto.UINT8, ["N", 1, 1, 3])],
        [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["N", None]) for n in ("logits", "probabilities")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, tmp_path / "x.onnx")
    parity = parity_of(candidate("a", "fp32", lambda: OnnxRunner(tmp_path / "x.onnx")))
    assert parity["hops"][0]["verdict"] == "fail"
    assert parity["verdict"] == "fail"


def test_an_onnx_file_cut_short(tmp_path: Path) -> None:
    (tmp_path / "x.onnx").write_bytes(b"\x08\x08cut")
    parity = parity_of(candidate("a", "fp32", lambda: OnnxRunner(tmp_path / "x.onnx")))
    assert parity["hops"][0]["verdict"] == "fail"
    assert "x.onnx" in parity["hops"][0]["why"]


# --- verdict_of ---


@pytest.fixture
def parity() -> dict:
    return parity_of(
        candidate("good", "fp32", LOGITS),
        candidate("bad", "int8", flipped(9), "good"),
        candidate("half", "fp16", noisy(1e-5), "bad"),
        candidate("plan", "fp32", ABSENT, "good"),
        candidate("open", "int8", flipped(1)),
        candidate("from plan", "int8", flipped(1), "plan"),
        limits=replace(VerifyThresholds(), int8=Thresholds(top1_agreement=0.99)),
    )


@pytest.mark.parametrize(
    ("name", "sha256", "verdict"),
    [
        ("good", "g" * 64, PASS),
        ("bad", "b" * 64, FAIL),
        ("half", "h" * 64, PASS),  # right against Keras; its step only shows that what it was made from is wrong
        ("plan", "p" * 64, NOT_RUN),
        ("open", "o" * 64, INCONCLUSIVE),
        ("from plan", "f" * 64, INCONCLUSIVE),  # against Keras; what its step is held against was not run here
        ("good", "x" * 64, "not verified"),
        ("good", "", "not verified"),
        ("other", "o" * 64, "not verified"),
    ],
)
def test_a_verdict_is_bound_to_the_bytes(parity: dict, name: str, sha256: str, verdict: str) -> None:
    assert as_report(parity).verdict_of(name, {name: sha256}) == verdict


def test_a_step_from_a_source_at_fault_keeps_its_distances_and_is_no_fault_of_the_candidate(parity: dict) -> None:
    """FP16 alone is broken, INT8 that was made from it is right."""
    report = as_report(parity)
    (step,) = [hop for hop in report.hops if hop.candidate == "half" and hop.kind == STEP]
    assert (step.verdict, step.compared, step.lacks_reference) == (NOT_RUN, True, True)
    assert step.sqnr_db is not None
    assert [hop.candidate for hop in culprits(report.hops)] == ["bad"]
    lines = parity_table(report).splitlines()
    assert any(line.startswith("  not judged: half against bad: bad itself fails against Keras") for line in lines)
    assert not any("not run: half" in line for line in lines)


def test_a_step_between_two_files_that_are_right_against_keras_counts() -> None:
    """Each is near enough to Keras, on another side of it, and they are too far from each other."""
    report = as_report(
        parity_of(candidate("near", "fp16", mirrored(2e-3)), candidate("twice", "fp16", noisy(2e-3), "near"))
    )
    assert [(hop.kind, hop.verdict) for hop in report.hops if hop.kind != CONSISTENCY] == [
        ("from_keras", PASS), ("from_keras", PASS), (STEP, FAIL)
    ]  # fmt: skip
    assert report.verdict_of("twice", {"twice": "t" * 64}) == FAIL


def test_what_belongs_to_a_file_is_bound_too(parity: dict) -> None:
    parity["subjects"]["good.json"] = "j" * 64
    assert as_report(parity).verdict_of("good", {"good": "g" * 64, "good.json": "j" * 64}) == "pass"
    assert as_report(parity).verdict_of("good", {"good": "g" * 64, "good.json": "x" * 64}) == "not verified"
    assert as_report(parity).verdict_of("good", {}) == "not verified"


def as_report(parity: dict) -> ParityReport:
    return from_json(ParityReport, parity, "a test", remedy="")


def test_a_verdict_at_odds_with_its_hops_is_refused(parity: dict) -> None:
    """Whoever writes "pass" over a hop that failed is told so."""
    with pytest.raises(ProjectError, match="the verdict 'pass' over hops whose verdict is 'fail'"):
        as_report(parity | {"verdict": "pass"})


def test_the_subjects_hold_the_keras_model_too(parity: dict) -> None:
    assert parity["subjects"] == {
        "train/model.keras": "k" * 64, "good": "g" * 64, "bad": "b" * 64, "half": "h" * 64, "plan": "p" * 64,
        "open": "o" * 64, "from plan": "f" * 64,
    }  # fmt: skip


# --- the best classes that a graph itself picks ---


class Picking(FakeRunner):
    """Picks the best three, after `change` had its way with them."""

    graph_top_k = 3

    def __init__(self, logits: np.ndarray, change: Callable[[np.ndarray, np.ndarray], None] | None = None) -> None:
        super().__init__(logits)
        self.change = change

    def infer(self, pixels: np.ndarray) -> Outputs:
        logits = super().infer(pixels).logits
        return Outputs(logits, softmax(logits))

    def top(self, pixels: np.ndarray, k: int) -> Top:
        top = top_k_of(self.infer(pixels).probabilities, k)
        if self.change:
            self.change(top.probabilities, top.classes)
        return top


def picked(change: Callable[[np.ndarray, np.ndarray], None] | None = None, logits: np.ndarray = LOGITS) -> dict:
    reference = replace(REFERENCE, logits=logits)
    return parity_of(candidate("a", "fp32", lambda: Picking(logits, change)), reference=reference)


def test_the_best_classes_of_a_graph_are_judged() -> None:
    parity = picked()
    assert [(hop["kind"], hop["verdict"]) for hop in parity["hops"]] == [("from_keras", "pass"), ("top_k", "pass")]
    hop = parity["hops"][1]
    assert (hop["reference"], hop["candidate"], hop["images"]) == ("its own probabilities", "a", COUNT)
    assert hop["certainty"] == "the best 3 that the graph picks are those of its probabilities"
    assert parity["verdict"] == "pass"


def test_equal_probabilities_may_swap() -> None:
    logits = LOGITS.copy()
    logits[:, :2] = logits.max(axis=1, keepdims=True)  # classes 0 and 1 share the first place

    def swap(probabilities: np.ndarray, classes: np.ndarray) -> None:
        classes[:, :2] = classes[:, 1::-1]

    assert [hop["verdict"] for hop in picked(swap, logits)["hops"]] == ["pass", "pass"]
    assert [hop["verdict"] for hop in picked(swap)["hops"]] == ["pass", "fail"]


def test_what_half_precision_rounds_is_right() -> None:
    def halve(probabilities: np.ndarray, classes: np.ndarray) -> None:
        probabilities[:] = probabilities.astype(np.float16)

    assert picked(halve)["verdict"] == "pass"


def _shift(probabilities: np.ndarray, classes: np.ndarray) -> None:
    classes[:] = (classes + 1) % CLASSES


def _reverse(probabilities: np.ndarray, classes: np.ndarray) -> None:
    probabilities[:], classes[:] = probabilities[:, ::-1].copy(), classes[:, ::-1].copy()


def _repeat(probabilities: np.ndarray, classes: np.ndarray) -> None:
    probabilities[:], classes[:] = probabilities[:, :1], classes[:, :1]


def _outside(probabilities: np.ndarray, classes: np.ndarray) -> None:
    classes[classes == 0] = CLASSES


def _negative(probabilities: np.ndarray, classes: np.ndarray) -> None:
    classes[classes == CLASSES - 1] = -1  # which numpy would take for the last class


def _scale(probabilities: np.ndarray, classes: np.ndarray) -> None:
    probabilities *= np.float32(1.01)


def _last_image(probabilities: np.ndarray, classes: np.ndarray) -> None:
    if len(classes) < 16:  # the last batch
        classes[-1] = classes[-1, ::-1].copy()


@pytest.mark.parametrize("change", [_shift, _reverse, _repeat, _outside, _negative, _scale, _last_image])
def test_other_best_classes_fail(change: Callable[[np.ndarray, np.ndarray], None]) -> None:
    parity = picked(change)
    keras, top = parity["hops"]
    assert (keras["verdict"], top["verdict"], parity["verdict"]) == ("pass", "fail", "fail")
    assert "are not those of its probabilities" in top["why"]
    assert as_report(parity).verdict_of("a", {"a": "a" * 64}) == "fail"
    if change is _last_image:
        assert f"for 1 of {COUNT} images (test image {COUNT - 1})" in top["why"]


def test_equal_scores_of_one_class_are_not_several_classes() -> None:
    logits = np.zeros_like(LOGITS)
    assert picked(_repeat, logits)["hops"][1]["verdict"] == "fail"
    assert picked(None, logits)["hops"][1]["verdict"] == "pass"


def test_rows_of_best_classes_that_are_missing() -> None:
    class Short(Picking):
        def top(self, pixels: np.ndarray, k: int) -> Top:
            return Top(*(part[1:] for part in super().top(pixels, k)))

    parity = parity_of(candidate("a", "fp32", lambda: Short(LOGITS)))
    assert [hop["verdict"] for hop in parity["hops"]] == ["pass", "fail"]


@pytest.mark.parametrize(("largest", "verdict"), [(1, "pass"), (0, "fail")])
def test_a_file_that_picks_the_worst(tmp_path: Path, largest: int, verdict: str) -> None:
    model = append_top_k(tiny_onnx.classifier(), "probabilities", 2)
    top = next(node for node in model.graph.node if node.op_type == "TopK")
    top.attribute.append(helper.make_attribute("largest", largest))
    onnx.save(model, tmp_path / "x.onnx")
    pixels = tiny_onnx.pixels(9)
    with OnnxRunner(tmp_path / "x.onnx") as runner:
        logits = runner.infer(pixels).logits
    reference = Reference("train/model.keras", "k" * 64, pixels, logits.argmax(axis=1), logits)
    parity = parity_of(candidate("x.onnx", "fp32", lambda: OnnxRunner(tmp_path / "x.onnx")), reference=reference)
    assert [hop["verdict"] for hop in parity["hops"]] == ["pass", verdict]
    assert parity["verdict"] == verdict


def test_the_terminal_says_what_stands_in_the_place_of_a_number() -> None:
    hops = (
        make_hop("export/model.onnx", sqnr_db=None, max_abs=0.0),
        make_hop("quantize/model.fp16.onnx", "fail", sqnr_db=None, max_abs=None, finite=False),
        make_hop("quantize/model.int8.onnx", sqnr_db=31.25),
        make_hop("build/rtx/int8.plan", "not run"),
    )
    table = parity_table(ParityReport("fail", {}, hops, {}))
    rows = {hop.candidate: next(line for line in table.splitlines() if hop.candidate in line) for hop in hops}
    assert " equal " in rows["export/model.onnx"]
    assert " NaN or inf " in rows["quantize/model.fp16.onnx"]
    assert " 31.2 " in rows["quantize/model.int8.onnx"]
    assert not {"equal", "inf"} & set(rows["build/rtx/int8.plan"].split())


def test_what_did_not_run_is_one_line_a_reason() -> None:
    engines = ("build/rtx/fp16.plan", "build/rtx/int8.plan")
    hops = [make_hop("export/model.onnx")]
    hops += [make_hop(name, "not run", kind=kind, why="no GPU") for name in engines for kind in ("from_keras", "step")]
    hops.append(make_hop("build/tensorrt/int8.plan", "not run", why=""))
    table = parity_table(ParityReport("pass", {}, tuple(hops), {})).splitlines()
    assert [line for line in table if "not run" in line] == [
        f"  not run: {', '.join(engines)}: no GPU",
        "  not run: build/tensorrt/int8.plan: no reason is known",
    ]
    assert len(table) == 5, "a head, a comparison, two reasons, the verdict"
