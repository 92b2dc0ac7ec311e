"""Compare logits hop by hop and give the verdict.

``from_keras`` hops compare a candidate with Keras, ``step`` hops with the file it was made from, so that a report shows
which step lost what. A ``top_k`` hop compares the best classes that a graph itself picks with its own probabilities, a
``consistency`` hop a run with itself. `pipeline.verification.evaluate` produces the answers,
`pipeline.verification.checks.thresholds` holds their distances against the recipe.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import cast

import numpy as np

from export.errors import DataError
from export.metrics.distances import AUTO, FloatNoise, compare
from export.tensorrt.sidecar import Precision
from export.words import count
from pipeline.artifacts.parity_report import (
    CONSISTENCY,
    FAIL,
    FROM_KERAS,
    INCONCLUSIVE,
    NO_LOGITS,
    NOT_RUN,
    PASS,
    STEP,
    TOP_K,
    VALUES_OF,
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
from pipeline.verification.checks.consistency import IMAGES
from pipeline.verification.checks.measure import check_probabilities, measured, near_ties
from pipeline.verification.checks.overflow import Extreme
from pipeline.verification.checks.rounded import Rounded
from pipeline.verification.checks.thresholds import Finding, check_thresholds, relative_limit

# Two graphs of one INT8 file that are equal in algebra but not in the order of their float operations were 32 to 36 dB
# apart, because a rounding that flips in one block makes further ones flip in the next.
INT8_BACKENDS_DB = 28.0
INT8_BACKENDS_NOTE = (
    "two backends round some INT8 values of one file to neighbours, which goes on from block to block: at most "
    f"{INT8_BACKENDS_DB:g} dB are asked for, and answers that change between classes of nearly equal probability are "
    "no fault"
)


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
        batch_sizes: batch sizes that matter to it, such as those of an engine's profile. Defaults to (): none.
        extreme: finds the values of its file that exceed FP16 for some test images, where the backend computes FP16 in
            FP32 and its answers do not show it. Defaults to None: they do.
        rounded: holds its file's weights and scales against the file that it was made from, on some test images.
            Defaults to None: not known which.
        why_not: why it fails without being run, as a sentence. Defaults to "".
    """

    name: str
    backend: str
    precision: str
    sha256: str
    step_from: str | None
    open: Callable[[], Runner]
    note: str = ""
    with_it: Mapping[str, str] = field(default_factory=dict)
    batch_sizes: tuple[int, ...] = ()
    why_not: str = ""
    extreme: Callable[[np.ndarray], Extreme | None] | None = None
    rounded: Callable[[np.ndarray], Rounded | None] | None = None

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
        labels: int64 (N,); -1 where an image has none.
        logits: float32 (N, C).
        noise: how far rounding alone moves the logits. Defaults to None: unknown.
        with_it: further files that the verdict holds for, and their sha256.
        names: of the images. Defaults to (): unknown.
    """

    name: str
    sha256: str
    pixels: np.ndarray
    labels: np.ndarray
    logits: np.ndarray
    noise: FloatNoise | None = None
    with_it: Mapping[str, str] = field(default_factory=dict)
    names: tuple[str, ...] = ()


@dataclass(frozen=True)
class Answer:
    """A candidate's logits, or why there are none.

    Attributes:
        logits: float32 (N, C); None where there are none.
        verdict: PASS: it ran; FAIL: it is present and failed; NOT_RUN: there is no such device.
        why: the reason for FAIL or NOT_RUN; "" for PASS.
        top: the finding on the best classes, where the graph itself picks them. Defaults to None.
        probabilities: float32 (N, C), its own; None where there are none.
        checks: findings on the run itself: repetitions, batches, rows. Defaults to (): not checked.
        extreme: values of the file that exceed FP16 or come near, which the logits do not show. Defaults to None: none.
        rounded: what its file's weights and scales are against those it was made from. Defaults to None: not compared.
    """

    logits: np.ndarray | None
    verdict: Verdict
    why: str = ""
    top: Finding | None = None
    probabilities: np.ndarray | None = None
    checks: tuple[Finding, ...] = ()
    extreme: Extreme | None = None
    rounded: Rounded | None = None


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

    Raises:
        DataError: a label is none of the model's classes.
    """
    labels = reference.labels
    _check_labels(reference)
    by_name = {candidate.run_name: candidate for candidate in candidates}
    hops: list[Hop] = []
    from_keras: dict[str, Verdict] = {}
    for candidate in candidates:
        answer = answers[candidate.run_name]
        limits: Thresholds = getattr(thresholds, candidate.precision)
        hop = _empty_hop(FROM_KERAS, reference.name, candidate, len(labels))
        hops.append(end_to_end := _judged(hop, Answer(reference.logits, PASS), answer, reference, limits))
        from_keras[candidate.run_name] = end_to_end.verdict
        if candidate.step_from is not None:
            hop = _empty_hop(STEP, candidate.step_from, candidate, len(labels))
            source = by_name[candidate.step_from]
            only_rounds = candidate.precision == source.precision == "int8" and candidate.backend != source.backend
            step = _judged(hop, answers[source.run_name], answer, reference, limits, only_rounds=only_rounds)
            hops.append(_of_source(step, from_keras[source.run_name], end_to_end.verdict))
        if answer.top is not None:
            hop = _empty_hop(TOP_K, "its own probabilities", candidate, len(labels))
            hops.append(_concluded(hop, [answer.top]))
        if answer.checks:
            hop = _empty_hop(CONSISTENCY, "itself", candidate, min(IMAGES, len(labels)))
            hops.append(_concluded(hop, answer.checks))
        # What is wrong itself is nothing to hold others against.
        wrong = {hop.run_name for hop in hops if hop.kind == FROM_KERAS and hop.verdict == FAIL}
        rounded = answer.rounded or _source_misfits(candidate, answers)
        if rounded is not None and rounded.source not in wrong:
            hop = _empty_hop(CONSISTENCY, f"{VALUES_OF}{rounded.source}", candidate, min(IMAGES, len(labels)))
            hop = replace(hop, note="; ".join(rounded.notes))
            hops.append(_concluded(hop, rounded.findings))
    subjects = {reference.name: reference.sha256, **reference.with_it}
    for candidate in candidates:
        subjects |= {candidate.name: candidate.sha256, **candidate.with_it}
    return ParityReport(
        overall_verdict(hops),
        thresholds_by_precision(thresholds),
        tuple(hops),
        subjects,
        (*warnings, *_without_labels(labels)),
        images_digest(reference.pixels, labels),
    )


def _source_misfits(candidate: Candidate, answers: Mapping[str, Answer]) -> Rounded | None:
    """Return what is wrong in the file that an engine, or a run on CUDA, computes; None where nothing is."""
    if candidate.backend == "onnxruntime" or candidate.step_from is None or answers[candidate.run_name].logits is None:
        return None
    source = answers[candidate.step_from].rounded
    return source if source is not None and source.misfits else None


def images_digest(pixels: np.ndarray, labels: np.ndarray) -> str:
    """Return the sha256 of pixels (N, height, width, 3) and labels (N,), in order, with their types and shapes."""
    digest = hashlib.sha256()
    for array in (pixels, labels.astype(np.int64)):
        digest.update(f"{array.dtype.str} {array.shape}".encode())
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()


def _check_labels(reference: Reference) -> None:
    classes = reference.logits.shape[1]
    for image in np.flatnonzero((reference.labels < -1) | (reference.labels >= classes)):
        name = f" ({reference.names[image]})" if reference.names else ""
        raise DataError(
            f"Expected labels from 0 to {classes - 1:,}, the {count(classes, 'class', 'classes')} of the model, or -1 "
            f"for none. Received: {int(reference.labels[image])} for test image {image}{name}. Correct it, or verify "
            "without labels."
        )


def _without_labels(labels: np.ndarray) -> list[str]:
    """Say which accuracy there is where images have no label."""
    unknown = int((labels < 0).sum())
    if unknown == len(labels):
        return ["No test image has a label: answers are compared with Keras', accuracy is not measured."]
    if unknown:
        return [f"{unknown:,} of {count(len(labels), 'test image')} have no label: accuracy is that of the others."]
    return []


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


def _judged(
    hop: Hop, source: Answer, answer: Answer, reference: Reference, limits: Thresholds, *, only_rounds: bool = False
) -> Hop:
    """Return a hop with its distances and verdict.

    Args:
        hop: not run yet.
        source: what the candidate is compared with.
        answer: the candidate's.
        reference: for its labels and its noise.
        limits: of the candidate's precision.
        only_rounds: whether both compute one INT8 file, on two backends. Defaults to False.
    """
    hop = replace(hop, verdict=answer.verdict, why=answer.why)
    if answer.logits is None:
        return hop
    if source.verdict == NOT_RUN:
        return replace(hop, verdict=NOT_RUN, why=f"the reference was not run: {source.why}")
    if source.logits is None or not np.isfinite(source.logits).all():
        return replace(hop, verdict=FAIL, why=f"its reference {hop.reference} {NO_LOGITS}")
    if answer.logits.shape != source.logits.shape:
        why = f"expected logits of shape {source.logits.shape}, received {answer.logits.shape}"
        return replace(hop, verdict=FAIL, why=why)
    comparison = compare(source.logits, answer.logits, reference.labels)
    hop = measured(hop, comparison, source.logits, answer.logits, answer.probabilities)
    hop = replace(
        hop,
        relative_limit=relative_limit(limits, reference.noise),
        noise=reference.noise if limits.relative_error == AUTO else None,
    )
    forgiven = None
    if only_rounds:
        hop = replace(hop, note="; ".join(filter(None, [hop.note, INT8_BACKENDS_NOTE])))
        forgiven = near_ties(source.logits, answer.logits)
        limits = replace(limits, sqnr_db=None if limits.sqnr_db is None else min(limits.sqnr_db, INT8_BACKENDS_DB))
    findings = check_thresholds(comparison, limits, reference.noise, forgiven)
    if hop.kind == FROM_KERAS and answer.extreme is not None:
        if answer.extreme.changed:
            findings.append(Finding(FAIL, answer.extreme.text))
        else:
            hop = replace(hop, note="; ".join(filter(None, [hop.note, answer.extreme.text])))
    if hop.kind == FROM_KERAS and answer.probabilities is not None:
        findings.append(check_probabilities(answer.logits, answer.probabilities, hop.precision))
    return _concluded(hop, findings)


def _of_source(step: Hop, source: Verdict, candidate: Verdict) -> Hop:
    """Return a step without a verdict where it shows the fault of its source alone; its distances stay.

    Args:
        step: the hop.
        source: verdict against Keras on the file that the candidate was made from.
        candidate: the same on the candidate.
    """
    if step.verdict not in (FAIL, INCONCLUSIVE) or source != FAIL or candidate not in (PASS, INCONCLUSIVE):
        return step
    why = f"{step.reference} itself fails against Keras, and this file does not: their difference is no fault of it"
    return replace(step, verdict=NOT_RUN, why=why, images_to_decide=None)


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
