"""Measure one hop: the distances of two runs' logits and probabilities, and the noise image by image. NumPy only."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np

from export.metrics.distances import Comparison, top_classes
from export.metrics.per_image import kl_divergence, margins, sqnr_by_image
from export.words import count
from pipeline.artifacts.image_results import NEAR_TIE
from pipeline.artifacts.parity_report import EQUAL_DB, FAIL, MOST_CHANGED, PASS, Hop, ImageNoise
from pipeline.runners.base import softmax
from pipeline.verification.checks.thresholds import Finding

WORST = 5  # images that `ImageNoise` names
# A float32 softmax is far closer to one in float64. In the other precisions TensorRT 8.6 may compute it in FP16: its
# inputs are rounded by half of 2^-10 of themselves, which is what the exponential is wrong by, and so are its results.
FP32_RELATIVE, FP32_ABSOLUTE = 1e-4, 1e-6
FP16_UNIT, FP16_ABSOLUTE = 2.0**-10, 2.0**-20
MOST_RELATIVE = 0.25  # beyond, they are no probabilities, whatever they were computed in
DEEPEST = 16.0  # below the largest logit: what counts beside `FP16_ABSOLUTE`


def measured(
    hop: Hop, comparison: Comparison, reference: np.ndarray, logits: np.ndarray, probabilities: np.ndarray | None
) -> Hop:
    """Return the hop with its distances.

    Args:
        hop: Hop without them.
        comparison: Comparison of the logits.
        reference: Logits of the reference, (N, C), finite.
        logits: Logits of the candidate, (N, C).
        probabilities: Probabilities that the candidate itself gave, (N, C); None where unknown.
    """
    changed = np.flatnonzero(top_classes(reference) != top_classes(logits))
    fits = probabilities is not None and probabilities.shape == logits.shape
    return replace(
        hop,
        finite=comparison.finite,
        max_abs=finite_or_none(comparison.max_abs),
        mean_abs=finite_or_none(comparison.mean_abs),
        relative_error=finite_or_none(comparison.relative_error),
        relative_l2=finite_or_none(comparison.relative_l2),
        cosine=finite_or_none(comparison.cosine),
        sqnr_db=finite_or_none(comparison.sqnr_db),
        kl=finite_or_none(kl_divergence(softmax(reference), probabilities))
        if fits and probabilities is not None
        else None,
        top1_agreement=comparison.top1_agreement,
        top5_agreement=comparison.top5_agreement,
        agreement_interval=comparison.agreement_interval,
        accuracy_reference=comparison.reference_accuracy,
        accuracy_candidate=comparison.candidate_accuracy,
        accuracy_drop=comparison.accuracy_drop,
        accuracy_drop_interval=comparison.accuracy_drop_interval,
        mcnemar=comparison.mcnemar,
        changed=tuple(changed[:MOST_CHANGED].tolist()),
        image_noise=summarize_noise(sqnr_by_image(reference, logits)),
    )


def summarize_noise(noise_db: np.ndarray) -> ImageNoise | None:
    """Summarize the SQNR of each image, (N,) in dB.

    Images whose logits are not finite are among the worst and count in no statistic; None where there are no others.
    """
    known = np.minimum(noise_db[np.isfinite(noise_db) | (noise_db > 0)], EQUAL_DB)
    if not len(known):
        return None
    return ImageNoise(
        median_db=float(np.median(known)),
        p5_db=float(np.percentile(known, 5)),
        mean_db=float(known.mean()),
        std_db=float(known.std(ddof=1)) if len(known) > 1 else 0.0,
        worst=tuple(
            (int(image), None if noise_db[image] == -np.inf else float(min(noise_db[image], EQUAL_DB)))
            for image in np.argsort(noise_db, kind="stable")[:WORST]
        ),
    )


def near_ties(reference: np.ndarray, logits: np.ndarray) -> int:
    """Count the images with another top class whose best two classes are within `NEAR_TIE` in the reference.

    Args:
        reference: (N, C) logits.
        logits: (N, C) logits; images where they are not finite are no near ties.
    """
    after = top_classes(logits)
    return int(np.sum((top_classes(reference) != after) & (after >= 0) & (margins(softmax(reference)) < NEAR_TIE)))


def check_probabilities(logits: np.ndarray, probabilities: np.ndarray, precision: str) -> Finding:
    """Hold a run's probabilities against the softmax of its own logits.

    A graph whose softmax is missing, applied twice or over another axis may still give the right logits.

    Args:
        logits: (N, C); images where they are not finite are left out.
        probabilities: of the same images.
        precision: "fp32", "fp16" or "int8".
    """
    if probabilities.shape != logits.shape:
        text = f"its probabilities have the shape {probabilities.shape}, its logits {logits.shape}"
        return Finding(FAIL, text)
    rows = np.flatnonzero(np.isfinite(logits).all(axis=1))
    values, own = logits[rows].astype(np.float64), probabilities[rows].astype(np.float64)
    if not len(rows):
        return Finding(PASS)
    expected = softmax(values).astype(np.float64)
    relative, absolute = np.array(FP32_RELATIVE), FP32_ABSOLUTE
    if precision != "fp32":
        largest = np.abs(values.max(axis=1, keepdims=True)) + DEEPEST
        relative, absolute = np.minimum(FP16_UNIT * (largest + 2.0), MOST_RELATIVE), FP16_ABSOLUTE
    error = np.abs(own - expected)
    wrong = ~(error <= relative * expected + absolute).all(axis=1)  # NaN is wrong
    if not wrong.any():
        return Finding(PASS)
    first = int(np.flatnonzero(wrong)[0])
    return Finding(
        FAIL,
        f"its probabilities are not the softmax of its logits for {int(wrong.sum()):,} of "
        f"{count(len(logits), 'image')}: those of test image {int(rows[first])} sum to {own[first].sum():.4g}, and the "
        f"largest is {own[first].max():.4g}, where the softmax gives {expected[first].max():.4g}",
    )


def finite_or_none(value: float) -> float | None:
    """Return None for infinity and NaN, which JSON lacks; ``finite`` and ``max_abs`` of a hop tell which it was."""
    return value if math.isfinite(value) else None
