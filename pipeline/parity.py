"""Compares runners hop by hop and gives the verdict.

``from_keras`` hops compare a candidate with Keras, ``step`` hops with the step before it, so that a report says which
step lost what. Runners are known only by their protocol.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from export.errors import ExportError
from export.metrics import Comparison, compare
from pipeline.errors import DeviceUnavailableError, PipelineError
from pipeline.progress import progress_bar
from pipeline.recipe import Thresholds, VerifyThresholds
from pipeline.runners.base import Runner

log = logging.getLogger(__name__)

SCHEMA = 1
PASS, FAIL, NOT_RUN = "pass", "fail", "not run"


@dataclass(frozen=True)
class Candidate:
    """Something that claims to give the model's answers.

    Attributes:
        name: file below the artifacts folder; it names the candidate in every report.
        backend: "onnxruntime" or "tensorrt".
        precision: "fp32", "fp16" or "int8"; decides which thresholds apply.
        sha256: of the file.
        step_from: name of the candidate it was made from; None for the first (made from Keras).
        open: makes the runner.
        note: what this backend does and does not prove.
    """

    name: str
    backend: str
    precision: str
    sha256: str
    step_from: str | None
    open: Callable[[], Runner]
    note: str = ""


@dataclass(frozen=True)
class Reference:
    """Keras' own answers on the test images."""

    name: str
    sha256: str  # of the Keras model
    pixels: np.ndarray  # (N, height, width, 3) uint8
    labels: np.ndarray  # (N,) int64
    logits: np.ndarray  # (N, C) float32
    with_it: Mapping[str, str] = field(default_factory=dict)  # further files the verdict holds for, and their sha256


@dataclass(frozen=True)
class Answer:
    """What a candidate said: logits, or why there are none."""

    logits: np.ndarray | None
    verdict: str  # PASS: it ran, FAIL: it is present and failed, NOT_RUN: no such device
    why: str = ""


def run_all(candidates: Sequence[Candidate], reference: Reference, batch_size: int) -> dict[str, Answer]:
    """Run every candidate over the test images, one after the other, with a progress bar."""
    return {candidate.name: _run(candidate, reference.pixels, batch_size) for candidate in candidates}


def judge(
    candidates: Sequence[Candidate],
    answers: Mapping[str, Answer],
    reference: Reference,
    thresholds: VerifyThresholds,
) -> dict[str, Any]:
    """The content of ``parity.json``: every hop, its distances and its verdict, and the verdict over all.

    The overall verdict is "pass" when at least one hop ran and every hop that could run passed.
    """
    hops = []
    for candidate in candidates:
        answer = answers[candidate.name]
        limits: Thresholds = getattr(thresholds, candidate.precision)
        keras = Answer(reference.logits, PASS)
        hops.append(_hop("from_keras", reference.name, keras, candidate, answer, reference.labels, limits))
        if candidate.step_from is not None:
            before = answers[candidate.step_from]
            hops.append(_hop("step", candidate.step_from, before, candidate, answer, reference.labels, limits))
    verdicts = [hop["verdict"] for hop in hops]
    passed = FAIL not in verdicts and PASS in verdicts
    subjects = {reference.name: reference.sha256, **reference.with_it} | {c.name: c.sha256 for c in candidates}
    return {"schema": SCHEMA, "verdict": PASS if passed else FAIL, "subjects": subjects, "hops": hops}


def verdict_of(parity: Mapping[str, Any], name: str, sha256: str) -> str:
    """The verdict on one file: "pass", "fail", "not run", or "not verified" if it is unknown or was changed since."""
    if parity.get("subjects", {}).get(name) != sha256:
        return "not verified"
    verdicts = {hop["verdict"] for hop in parity["hops"] if hop["candidate"] == name}
    return next((v for v in (FAIL, NOT_RUN, PASS) if v in verdicts), "not verified")


def shortfalls(comparison: Comparison, limits: Thresholds) -> list[str]:
    """Every threshold that a comparison misses, as a sentence; empty when it passes."""
    found = []
    if not comparison.finite:
        found.append("the candidate gave NaN or infinite logits")
    if limits.relative_error is not None and not comparison.relative_error <= limits.relative_error:
        found.append(f"relative error {comparison.relative_error:.2e}, at most {limits.relative_error:.2e} allowed")
    if limits.top1_agreement is not None and not comparison.top1_agreement >= limits.top1_agreement:
        found.append(f"top-1 agreement {comparison.top1_agreement:.4f}, at least {limits.top1_agreement:.4f} needed")
    if limits.sqnr_db is not None and not comparison.sqnr_db >= limits.sqnr_db:
        found.append(f"SQNR {comparison.sqnr_db:.1f} dB, at least {limits.sqnr_db:.1f} dB needed")
    if limits.accuracy_drop is not None:
        drop = (comparison.reference_accuracy or 0.0) - (comparison.candidate_accuracy or 0.0)
        if not drop <= limits.accuracy_drop:
            found.append(f"accuracy fell by {drop:.4f}, at most {limits.accuracy_drop:.4f} allowed")
    return found


def _run(candidate: Candidate, pixels: np.ndarray, batch_size: int) -> Answer:
    try:
        with candidate.open() as runner, progress_bar(total=len(pixels), desc=f"  {candidate.name}", unit="img") as bar:
            parts = []
            for batch in _batches(pixels, batch_size):
                parts.append(runner.infer(batch).logits)
                bar.update(len(batch))
            return Answer(np.concatenate(parts), PASS)
    except DeviceUnavailableError as error:
        return Answer(None, NOT_RUN, f"built, not run here: {error.reason}")
    except (PipelineError, ExportError) as error:
        log.error("%s failed: %s", candidate.name, error)
        return Answer(None, FAIL, str(error))


def _batches(pixels: np.ndarray, size: int) -> Iterator[np.ndarray]:
    for start in range(0, len(pixels), size):
        yield pixels[start : start + size]


def _hop(
    kind: str,
    reference_name: str,
    reference: Answer,
    candidate: Candidate,
    answer: Answer,
    labels: np.ndarray,
    limits: Thresholds,
) -> dict[str, Any]:
    hop: dict[str, Any] = {
        "kind": kind,
        "reference": reference_name,
        "candidate": candidate.name,
        "backend": candidate.backend,
        "precision": candidate.precision,
        "images": len(labels),
        "max_abs": None,
        "relative_error": None,
        "cosine": None,
        "sqnr_db": None,
        "top1_agreement": None,
        "agreement_interval": None,
        "accuracy_reference": None,
        "accuracy_candidate": None,
        "verdict": answer.verdict,
        "why": answer.why,
        "note": candidate.note,
    }
    if answer.logits is None:
        return hop
    if reference.verdict == NOT_RUN:
        return hop | {"verdict": NOT_RUN, "why": f"its reference {reference_name} was not run: {reference.why}"}
    if reference.logits is None or not np.isfinite(reference.logits).all():
        return hop | {"verdict": FAIL, "why": f"its reference {reference_name} did not give usable logits"}
    if answer.logits.shape != reference.logits.shape:
        why = f"expected logits of shape {reference.logits.shape}, received {answer.logits.shape}"
        return hop | {"verdict": FAIL, "why": why}
    comparison = compare(reference.logits, answer.logits, labels)
    numbers = comparison.to_dict()
    numbers["accuracy_reference"] = numbers.pop("reference_accuracy")
    numbers["accuracy_candidate"] = numbers.pop("candidate_accuracy")
    missed = shortfalls(comparison, limits)
    return hop | numbers | {"verdict": FAIL if missed else PASS, "why": "; ".join(missed)}
