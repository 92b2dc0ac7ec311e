"""Compare logits hop by hop and give the verdict.

``from_keras`` hops compare a candidate with Keras, ``step`` hops with the file it was made from, so that a report shows
which step lost what. A ``top_k`` hop compares the best classes that a graph itself picks with its own probabilities.
`pipeline.verification.evaluate` produces the logits.

A share of images (agreement, accuracy drop) fails only when its 95 % interval excludes the threshold. One that misses
it while the interval contains it is inconclusive: the images are too few to tell. Other distances fail at once.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import cast

import numpy as np

from export.metrics.confidence import images_to_decide, images_to_decide_drop
from export.metrics.distances import AUTO, FLOOR, Comparison, FloatNoise, compare
from export.tensorrt.sidecar import Precision
from export.words import count
from pipeline.artifacts.parity_report import (
    FAIL,
    FROM_KERAS,
    INCONCLUSIVE,
    NO_LOGITS,
    NOT_RUN,
    PASS,
    STEP,
    TOP_K,
    Hop,
    Kind,
    ParityReport,
    Verdict,
    overall_verdict,
    run_name,
    thresholds_by_precision,
)
from pipeline.recipe.schema import Thresholds, VerifyThresholds
from pipeline.runners.base import Runner


@dataclass(frozen=True)
class Candidate:
    """A file on a backend, to be compared with Keras.

    Attributes:
        name: the file's path below the artifacts folder.
        backend: "onnxruntime", "onnxruntime-cuda" or "tensorrt".
        precision: "fp32", "fp16" or "int8"; decides which thresholds apply.
        sha256: of the file.
        step_from: run_name of the candidate it was made from; None for the first (made from Keras).
        open: opens the runner.
        note: what this backend does and does not prove. Defaults to "".
        with_it: files that belong to it, such as an engine's sidecar, and their sha256.
    """

    name: str
    backend: str
    precision: str
    sha256: str
    step_from: str | None
    open: Callable[[], Runner]
    note: str = ""
    with_it: Mapping[str, str] = field(default_factory=dict)

    @property
    def run_name(self) -> str:
        """A name that is unique among candidates, also among the same file's on other backends."""
        return run_name(self.name, self.backend)


@dataclass(frozen=True)
class Reference:
    """Keras' logits on the test images.

    Attributes:
        name: the Keras model's path below the artifacts folder.
        sha256: of that file.
        pixels: uint8 (N, height, width, 3).
        labels: int64 (N,).
        logits: float32 (N, C).
        noise: how far rounding alone moves the logits. Defaults to None: unknown.
        with_it: further files that the verdict holds for, and their sha256.
    """

    name: str
    sha256: str
    pixels: np.ndarray
    labels: np.ndarray
    logits: np.ndarray
    noise: FloatNoise | None = None
    with_it: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Answer:
    """A candidate's logits, or why there are none.

    Attributes:
        logits: float32 (N, C); None where there are none.
        verdict: PASS: it ran; FAIL: it is present and failed; NOT_RUN: there is no such device.
        why: the reason for FAIL or NOT_RUN; "" for PASS.
        top: the finding on the best classes, where the graph itself picks them. Defaults to None.
    """

    logits: np.ndarray | None
    verdict: Verdict
    why: str = ""
    top: Finding | None = None


@dataclass(frozen=True)
class Finding:
    """The result for one threshold on the test images.

    Attributes:
        verdict: PASS, INCONCLUSIVE or FAIL.
        text: the reason, or for a PASS what these images show; "" where a PASS needs no text.
        images: how many images would decide, if INCONCLUSIVE.
    """

    verdict: Verdict
    text: str = ""
    images: int | None = None


def judge(
    candidates: Sequence[Candidate],
    answers: Mapping[str, Answer],
    reference: Reference,
    thresholds: VerifyThresholds,
    warnings: Sequence[str] = (),
) -> ParityReport:
    """Compute every hop with its distances and verdict, and the verdict over all.

    Args:
        candidates: each after the one it was made from.
        answers: the logits of each candidate, by run_name.
        reference: Keras' logits.
        thresholds: by precision.
        warnings: sentences that a reader must know besides the verdict. Defaults to none.
    """
    hops: list[Hop] = []
    for candidate in candidates:
        answer = answers[candidate.run_name]
        limits: Thresholds = getattr(thresholds, candidate.precision)
        keras, labels, noise = Answer(reference.logits, PASS), reference.labels, reference.noise
        hops.append(_hop(FROM_KERAS, reference.name, keras, candidate, answer, labels, limits, noise))
        if candidate.step_from is not None:
            source = answers[candidate.step_from]
            hops.append(_hop(STEP, candidate.step_from, source, candidate, answer, labels, limits, noise))
        if answer.top is not None:
            hop = _empty_hop(TOP_K, "its own probabilities", candidate, len(labels))
            hops.append(_concluded(hop, [answer.top]))
    subjects = {reference.name: reference.sha256, **reference.with_it}
    for candidate in candidates:
        subjects |= {candidate.name: candidate.sha256, **candidate.with_it}
    return ParityReport(
        overall_verdict(hops), thresholds_by_precision(thresholds), tuple(hops), subjects, tuple(warnings)
    )


def check_thresholds(comparison: Comparison, limits: Thresholds, noise: FloatNoise | None = None) -> list[Finding]:
    """Compare distances with every threshold that is set; NaN and infinity always fail.

    Args:
        comparison: distances of the logits.
        limits: the thresholds of the candidate's precision.
        noise: how far rounding alone moves the logits. Defaults to None: unknown.

    Returns:
        list[Finding]: one per threshold.
    """
    findings = [Finding(PASS) if comparison.finite else Finding(FAIL, "the candidate gave NaN or infinite logits")]
    limit = relative_limit(limits, noise)
    if limit is not None:
        error = comparison.relative_error
        by_noise = limits.relative_error == AUTO and noise is not None and limit > FLOOR
        text = f"relative error {error:.2e}, at most {limit:.2e} allowed" + (f", as {noise}" if by_noise else "")
        passed = Finding(PASS, text if by_noise and error > FLOOR else "")
        findings.append(passed if error <= limit else Finding(FAIL, text))
    if limits.top1_agreement is not None:
        findings.append(_agreement(comparison, limits.top1_agreement))
    if limits.sqnr_db is not None:
        text = f"SQNR {comparison.sqnr_db:.1f} dB, at least {limits.sqnr_db:.1f} dB needed"
        findings.append(Finding(PASS) if comparison.sqnr_db >= limits.sqnr_db else Finding(FAIL, text))
    if limits.accuracy_drop is not None:
        findings.append(_drop(comparison, limits.accuracy_drop))
    return findings


def relative_limit(limits: Thresholds, noise: FloatNoise | None) -> float | None:
    """Return the relative error allowed: the recipe's number, or with "auto" the one that follows from the noise."""
    if isinstance(limits.relative_error, str):  # auto
        return FLOOR if noise is None else noise.limit
    return limits.relative_error


def _agreement(comparison: Comparison, limit: float) -> Finding:
    share, (low, high) = comparison.top1_agreement, comparison.agreement_interval
    if share >= limit:
        # Rounded down, so that the sentence never says more than the interval.
        return Finding(PASS, f"at least {math.floor(1000 * low) / 10:.1f} % agreement with 95 % confidence")
    measured = _measured("top-1 agreement", share, (low, high), comparison.images)
    return _missed(f"{measured}, {limit:.4f} required", high < limit, images_to_decide(share, limit))


def _drop(comparison: Comparison, limit: float) -> Finding:
    drop, interval, changed = comparison.accuracy_drop, comparison.accuracy_drop_interval, comparison.mcnemar
    if drop is None or interval is None or changed is None:
        return Finding(FAIL, f"no labels to measure the accuracy drop with, at most {limit:.4f} allowed")
    if drop <= limit:
        most = math.ceil(1000 * max(interval[1], 0.0)) / 10
        return Finding(PASS, f"at most {most:.1f} points of accuracy lost with 95 % confidence")
    measured = _measured("accuracy drop", drop, interval, comparison.images)
    rates = changed.losses / comparison.images, changed.gains / comparison.images
    enough = images_to_decide_drop(*rates, limit)
    return _missed(f"{measured}, at most {limit:.4f} allowed", interval[0] > limit, enough)


def _measured(name: str, value: float, interval: tuple[float, float], images: int) -> str:
    return f"{name} {value:.4f} (95 %: {interval[0]:.4f} to {interval[1]:.4f}) of {count(images, 'image')}"


def _missed(why: str, excluded: bool, images: int | None) -> Finding:
    if excluded:
        return Finding(FAIL, why)
    enough = f"; about {count(images, 'image')} would decide" if images is not None else ""
    return Finding(INCONCLUSIVE, f"inconclusive: {why}{enough}", images)


def _empty_hop(kind: Kind, reference_name: str, candidate: Candidate, images: int) -> Hop:
    """Return a hop that is not run yet."""
    return Hop(
        kind=kind,
        reference=reference_name,
        candidate=candidate.name,
        backend=candidate.backend,
        precision=cast(Precision, candidate.precision),
        images=images,
        verdict=NOT_RUN,
        note=candidate.note,
    )


def _hop(
    kind: Kind,
    reference_name: str,
    reference: Answer,
    candidate: Candidate,
    answer: Answer,
    labels: np.ndarray,
    limits: Thresholds,
    noise: FloatNoise | None,
) -> Hop:
    hop = replace(_empty_hop(kind, reference_name, candidate, len(labels)), verdict=answer.verdict, why=answer.why)
    if answer.logits is None:
        return hop
    if reference.verdict == NOT_RUN:
        return replace(hop, verdict=NOT_RUN, why=f"the reference was not run: {reference.why}")
    if reference.logits is None or not np.isfinite(reference.logits).all():
        return replace(hop, verdict=FAIL, why=f"its reference {reference_name} {NO_LOGITS}")
    if answer.logits.shape != reference.logits.shape:
        return replace(
            hop,
            verdict=FAIL,
            why=f"expected logits of shape {reference.logits.shape}, received {answer.logits.shape}",
        )
    comparison = compare(reference.logits, answer.logits, labels)
    hop = replace(
        hop,
        finite=comparison.finite,
        max_abs=_finite(comparison.max_abs),
        relative_error=_finite(comparison.relative_error),
        relative_limit=relative_limit(limits, noise),
        noise=noise if limits.relative_error == AUTO else None,
        cosine=_finite(comparison.cosine),
        sqnr_db=_finite(comparison.sqnr_db),
        top1_agreement=comparison.top1_agreement,
        agreement_interval=comparison.agreement_interval,
        accuracy_reference=comparison.reference_accuracy,
        accuracy_candidate=comparison.candidate_accuracy,
        accuracy_drop=comparison.accuracy_drop,
        accuracy_drop_interval=comparison.accuracy_drop_interval,
        mcnemar=comparison.mcnemar,
    )
    return _concluded(hop, check_thresholds(comparison, limits, noise))


def _finite(value: float) -> float | None:
    """Return None for infinity and NaN, which JSON lacks; ``finite`` and ``max_abs`` of a hop tell which it was."""
    return value if math.isfinite(value) else None


def _concluded(hop: Hop, findings: Sequence[Finding]) -> Hop:
    """Return the hop with its verdict: ``why`` names the thresholds it misses, ``certainty`` what a pass shows."""
    verdicts = {finding.verdict for finding in findings}
    verdict: Verdict = FAIL if FAIL in verdicts else INCONCLUSIVE if INCONCLUSIVE in verdicts else PASS
    texts = [finding.text for finding in findings if (verdict == PASS or finding.verdict != PASS) and finding.text]
    images = [finding.images for finding in findings if finding.images is not None]
    return replace(
        hop,
        verdict=verdict,
        why="" if verdict == PASS else "; ".join(texts),
        certainty="; ".join(texts) if verdict == PASS else "",
        images_to_decide=max(images) if verdict == INCONCLUSIVE and images else None,
    )
