"""What a hop holds besides its thresholds: probabilities, the noise of each image, and the hop between two backends."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from scipy.special import softmax as softmax_of_scipy
from scipy.stats import entropy

from export.errors import DataError
from export.metrics.distances import sqnr_db
from pipeline.artifacts.parity_report import (
    CONSISTENCY,
    EQUAL_DB,
    FAIL,
    FROM_KERAS,
    INCONCLUSIVE,
    NOT_RUN,
    PASS,
    STEP,
    TOP_K,
    Hop,
    Kind,
    ParityReport,
    overall_verdict,
)
from pipeline.recipe.schema import Thresholds, VerifyThresholds
from pipeline.runners.base import softmax
from pipeline.verification.checks.measure import check_probabilities, near_ties, summarize_noise
from pipeline.verification.checks.thresholds import Finding
from pipeline.verification.parity import Answer, Candidate, Reference, images_digest, judge

N, C = 200, 10
random = np.random.default_rng(5)
LOGITS = (3 * random.normal(size=(N, C))).astype(np.float32)
LABELS = LOGITS.argmax(axis=1)
REFERENCE = Reference("train/model.keras", "k" * 64, np.zeros((N, 1, 1, 3), np.uint8), LABELS, LOGITS)
LOOSE = VerifyThresholds(*(Thresholds(),) * 3)
INT8 = "quantize/model.int8.onnx"


def run_of(name: str = "a.onnx", precision: str = "fp32", step: str | None = None, **more: str) -> Candidate:
    return Candidate(
        name, more.pop("backend", "onnxruntime"), precision, "a" * 64, step, lambda: pytest.fail("opened"), **more
    )


def answered(logits: np.ndarray, probabilities: np.ndarray | None = None, *checks: Finding) -> Answer:
    return Answer(
        logits, PASS, probabilities=softmax(logits) if probabilities is None else probabilities, checks=checks
    )


def judged(answer: Answer, precision: str = "fp32", reference: Reference = REFERENCE) -> ParityReport:
    return judge([run_of(precision=precision)], {"a.onnx": answer}, reference, LOOSE)


def noisy(sigma: float) -> np.ndarray:
    return (LOGITS + sigma * np.random.default_rng(6).normal(size=LOGITS.shape)).astype(np.float32)


# --- distances ---


def test_the_distances_of_a_hop() -> None:
    own = noisy(0.5)
    (hop,) = judged(answered(own)).hops
    difference = own.astype(np.float64) - LOGITS
    assert hop.mean_abs == pytest.approx(np.abs(difference).mean())
    assert hop.relative_l2 == pytest.approx(np.linalg.norm(difference) / np.linalg.norm(LOGITS.astype(np.float64)))
    divergence = entropy(softmax_of_scipy(LOGITS, axis=1), softmax_of_scipy(own, axis=1), axis=1).mean()
    assert hop.kl == pytest.approx(divergence, rel=1e-4)
    best_five = np.argsort(-own, axis=1)[:, :5]
    assert hop.top5_agreement == (best_five == LABELS[:, None]).any(axis=1).mean()
    assert hop.changed == tuple(np.flatnonzero(own.argmax(axis=1) != LABELS).tolist()) != ()
    noise = hop.image_noise
    assert noise is not None
    by_image = [sqnr_db(LOGITS[i : i + 1], own[i : i + 1]) for i in range(N)]
    statistics = np.median(by_image), np.percentile(by_image, 5), np.mean(by_image), np.std(by_image, ddof=1)
    assert (noise.median_db, noise.p5_db, noise.mean_db, noise.std_db) == pytest.approx(statistics)
    assert noise.worst == tuple((int(i), pytest.approx(by_image[i])) for i in np.argsort(by_image)[:5])


def test_the_divergence_is_that_of_the_probabilities_that_the_file_gave() -> None:
    uniform = np.full((N, C), 1 / C, np.float32)
    (hop,) = judged(answered(LOGITS, uniform)).hops
    expected = entropy(softmax_of_scipy(LOGITS, axis=1), uniform, axis=1).mean()
    assert hop.kl == pytest.approx(expected, rel=1e-4)
    assert judged(Answer(LOGITS, PASS)).hops[0].kl is None


def test_equal_logits_have_the_noise_of_equal_ones() -> None:
    (hop,) = judged(answered(LOGITS.copy())).hops
    assert (hop.mean_abs, hop.relative_l2, hop.top5_agreement, hop.changed) == (0, 0, 1, ())
    assert hop.kl == pytest.approx(0, abs=1e-9)
    assert hop.image_noise is not None
    assert (hop.image_noise.median_db, hop.image_noise.std_db) == (EQUAL_DB, 0)


def test_a_row_that_is_not_finite_is_the_worst_and_in_no_statistic() -> None:
    own = noisy(0.1)
    own[7] = np.nan
    (hop,) = judged(answered(own)).hops
    assert (hop.mean_abs, hop.relative_l2, hop.kl) == (None, None, None)
    assert hop.image_noise is not None
    assert hop.image_noise.worst[0] == (7, None)
    assert 7 in hop.changed
    rest = np.delete(np.arange(N), 7)
    assert hop.image_noise.mean_db == pytest.approx(np.mean([sqnr_db(LOGITS[[i]], own[[i]]) for i in rest]))
    assert summarize_noise(np.full(3, -np.inf)) is None
    one = summarize_noise(np.array([30.0]))
    assert one is not None
    assert (one.std_db, one.worst) == (0.0, ((0, 30.0),))


# --- probabilities ---


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
@pytest.mark.parametrize("scale", [0.3, 1.0, 10.0])
def test_probabilities_of_the_precision_pass(precision: str, scale: float) -> None:
    logits = scale * LOGITS
    own = softmax(logits)
    if precision != "fp32":  # as TensorRT 8.6 may: everything rounded to FP16
        half = np.exp(
            (logits.astype(np.float16) - logits.max(axis=1, keepdims=True).astype(np.float16)).astype(np.float16)
        )
        own = (half / half.sum(axis=1, keepdims=True, dtype=np.float32)).astype(np.float16).astype(np.float32)
    assert check_probabilities(logits, own, precision) == Finding(PASS)


WRONG = {
    "twice": lambda logits: softmax(softmax(logits)),
    "missing": lambda logits: logits,
    "over the batch": lambda logits: softmax(logits.T).T,
    "without its sum": lambda logits: np.exp(logits - logits.max(axis=1, keepdims=True)),
    "of other classes": lambda logits: softmax(logits)[:, ::-1],
    "of the image before": lambda logits: np.roll(softmax(logits), 1, axis=0),
    "not finite": lambda logits: np.full_like(logits, np.nan),
}


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
@pytest.mark.parametrize("wrong", WRONG)
def test_a_softmax_that_is_not_that_of_the_logits_fails(wrong: str, precision: str) -> None:
    (hop,) = judged(answered(LOGITS, WRONG[wrong](LOGITS)), precision).hops
    assert hop.verdict == FAIL
    assert "of 200 images: those of test image 0" in hop.why
    assert int(hop.why.partition(" of 200")[0].split()[-1]) > 190, "nearly all of them"


def test_one_image_of_many_is_found_and_one_without_logits_is_left_out() -> None:
    own, logits = softmax(LOGITS), LOGITS.copy()
    own[3] = own[4]
    logits[9] = own[9] = np.nan
    found = check_probabilities(logits, own, "int8")
    assert found.verdict == FAIL
    assert "for 1 of 200 images: those of test image 3 sum to 1, and the largest is" in found.text
    assert check_probabilities(logits[9:10], own[9:10], "fp32") == Finding(PASS)
    assert "have the shape (200, 9), its logits (200, 10)" in check_probabilities(LOGITS, own[:, 1:], "fp32").text


# --- a run with itself ---


@pytest.mark.parametrize("verdict", [PASS, FAIL])
def test_what_a_run_does_to_itself_is_a_hop(verdict: str) -> None:
    checks = (Finding(PASS, "a repeated run is equal"), Finding(verdict, "what it does to rows"))
    parity = judged(answered(LOGITS, None, *checks))
    assert parity.verdict == verdict
    hop = parity.hops[-1]
    assert (hop.kind, hop.reference, hop.images, hop.verdict) == (CONSISTENCY, "itself", 16, verdict)
    assert hop.why == ("what it does to rows" if verdict == FAIL else "")


# --- one INT8 file on two backends ---


def two_backends(engine: np.ndarray, limits: Thresholds, backend: str = "tensorrt", precision: str = "int8") -> Hop:
    runs = [
        run_of(INT8, precision),
        run_of("build/rtx/int8.plan", precision, INT8, backend=backend, note="as it is"),
    ]
    answers = {run.run_name: answered(logits) for run, logits in zip(runs, (LOGITS, engine))}
    parity = judge(runs, answers, REFERENCE, VerifyThresholds(limits, limits, limits))
    return next(hop for hop in parity.hops if hop.kind == STEP)


def test_two_backends_of_an_int8_file_are_asked_for_28_db_at_most() -> None:
    engine = noisy(3 * 10 ** (-30 / 20))
    assert sqnr_db(LOGITS, engine) == pytest.approx(30, abs=0.5)
    asked = Thresholds(sqnr_db=45)
    hop = two_backends(engine, asked)
    assert hop.verdict == PASS
    assert hop.note.startswith("as it is; two backends round some INT8 values of one file to neighbours")
    assert "at most 28 dB are asked for" in hop.note
    assert two_backends(noisy(3 * 10 ** (-26 / 20)), asked).verdict == FAIL
    assert two_backends(noisy(3 * 10 ** (-26 / 20)), Thresholds(sqnr_db=25)).verdict == PASS, "the recipe asks for less"
    assert two_backends(engine, asked, backend="onnxruntime").verdict == FAIL, "another file on the same backend"
    other = two_backends(engine, asked, precision="fp16")
    assert (other.verdict, other.note) == (FAIL, "as it is")


def test_near_ties_between_two_backends_are_no_fault_and_real_flips_are() -> None:
    engine, order = LOGITS.copy(), np.sort(softmax(LOGITS), axis=1)
    close = order[:, -1] - order[:, -2] < 0.1
    assert 5 < close.sum() < 50
    rows = np.arange(N)
    first, second = (LOGITS.argsort(axis=1)[:, -rank] for rank in (1, 2))
    engine[rows, first], engine[rows, second] = LOGITS[rows, second], LOGITS[rows, first]
    tied = np.where(close[:, None], engine, LOGITS)
    assert near_ties(LOGITS, tied) == close.sum()
    asked = Thresholds(top1_agreement=1.0)
    hop = two_backends(tied, asked)
    assert (hop.verdict, hop.top1_agreement) == (PASS, 1 - close.sum() / N), "the number itself hides nothing"
    assert hop.certainty == "at least 98.1 % agreement besides near ties with 95 % confidence"
    assert len(hop.changed) == close.sum()
    clear = int(np.flatnonzero(~close)[0])
    tied[clear] = engine[clear]
    hop = two_backends(tied, asked)
    assert hop.verdict == FAIL
    assert "top-1 agreement besides near ties 99.50 %" in hop.why
    tied[clear] = np.nan
    assert near_ties(LOGITS, tied) == close.sum(), "no answer is no near tie"


# --- labels ---


def test_a_label_outside_the_classes_is_refused_with_its_image() -> None:
    labels = LABELS.copy()
    labels[12] = C
    names = tuple(f"photo-{i}.jpg" for i in range(N))
    with pytest.raises(DataError, match=r"0 to 9, .*Received: 10 for test image 12 \(photo-12.jpg\). Correct it"):
        judged(answered(LOGITS), reference=replace(REFERENCE, labels=labels, names=names))
    labels[12] = -2
    with pytest.raises(DataError, match=r"Received: -2 for test image 12\. "):
        judged(answered(LOGITS), reference=replace(REFERENCE, labels=labels))


def test_without_labels_agreement_alone_is_judged_and_said_so() -> None:
    reference = replace(REFERENCE, labels=np.full(N, -1))
    parity = judged(answered(LOGITS), reference=reference)
    assert parity.verdict == PASS
    assert parity.warnings == (
        "No test image has a label: answers are compared with Keras', accuracy is not measured.",
    )
    (hop,) = parity.hops
    assert (hop.accuracy_candidate, hop.accuracy_drop, hop.mcnemar, hop.top1_agreement) == (None, None, None, 1)
    asked = VerifyThresholds(Thresholds(accuracy_drop=0.5))
    (hop,) = judge([run_of()], {"a.onnx": answered(LOGITS)}, reference, asked).hops
    assert hop.verdict == FAIL
    assert "no test image has a label, so that the accuracy drop cannot be measured" in hop.why
    some = np.where(np.arange(N) < 3, -1, LABELS)
    parity = judged(answered(LOGITS), reference=replace(REFERENCE, labels=some))
    assert parity.warnings == ("3 of 200 test images have no label: accuracy is that of the others.",)
    assert parity.hops[0].accuracy_candidate == 1


def test_the_digest_of_the_images_is_of_their_pixels_labels_and_order() -> None:
    pixels = np.arange(24, dtype=np.uint8).reshape(2, 2, 2, 3)
    labels = np.array([0, 1])
    digest = images_digest(pixels, labels)
    assert digest == images_digest(pixels.copy(), labels.astype(np.int32))
    others = [
        (pixels[::-1], labels),
        (pixels, labels[::-1]),
        (pixels.reshape(2, 4, 1, 3), labels),
        (pixels[:1], labels),
    ]
    assert len({digest, *(images_digest(*other) for other in others)}) == 5
    reference = replace(REFERENCE, pixels=np.zeros((N, 1, 1, 3), np.uint8))
    assert judged(answered(LOGITS), reference=reference).images_sha256 == images_digest(reference.pixels, LABELS)


def test_a_run_is_judged_from_keras_by_all_of_it() -> None:
    (hop,) = judged(answered(noisy(0.5))).hops
    assert (hop.kind, hop.verdict) == (FROM_KERAS, PASS)


def test_a_near_tie_is_one_of_the_reference_with_an_answer() -> None:
    tie, sure = [0.0, 0.01, -9.0], [0.0, 9.0, -9.0]
    flipped_far, flipped_near = [9.0, 0.0, -9.0], [0.01, 0.0, -9.0]
    assert near_ties(np.array([tie]), np.array([flipped_far])) == 1
    assert near_ties(np.array([sure]), np.array([flipped_near])) == 0
    assert near_ties(np.array([tie]), np.array([[np.nan, 0.0, 0.0]])) == 0


@pytest.mark.parametrize("kind", [CONSISTENCY, TOP_K, STEP])
def test_no_verdict_passes_without_a_file_that_was_compared_with_keras(kind: Kind) -> None:
    beside = Hop(kind, "itself", "m.onnx", "onnxruntime", "fp32", N, PASS)
    idle = Hop(FROM_KERAS, "train/model.keras", "m.onnx", "onnxruntime", "fp32", N, NOT_RUN, why="no such device")
    assert overall_verdict([beside]) == overall_verdict([idle, beside]) == FAIL
    assert overall_verdict([replace(idle, verdict=PASS), beside]) == PASS
    assert overall_verdict([replace(idle, verdict=INCONCLUSIVE), beside]) == INCONCLUSIVE
