"""Self-consistency: a file answers for an image alike, whatever is beside it in the batch. No reference is needed.

A few images are run again, alone, in another order, repeated and in odd numbers. That takes about six forward passes of
sixteen images, and those of an engine's profile. NumPy only, Python 3.10 syntax.

Kernels differ with the batch size, so answers may differ by rounding. The limit follows from the precision:

- FP32: the relative error that verification allows, because it is that of two correct kernels.
- FP16: 45 dB. A sum between two values of FP16 is rounded to either. Two graphs that are each 50 dB from Keras, which
  verification asks for, are 47 dB from each other.
- INT8: 28 dB. Rounding to either of two steps multiplies from block to block. Two graphs with the same scales and
  another order of float operations were 32 to 36 dB apart.

The answer of another image, or one that depends on the neighbours, misses these limits by far.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from export.errors import DeviceUnavailableError, RunnerError
from export.metrics.difference import clip_masked_classes
from export.metrics.distances import FLOOR, FloatNoise, relative_error, sqnr_db
from export.words import count, listed
from pipeline.artifacts.parity_report import FAIL, PASS
from pipeline.runners.base import Runner
from pipeline.verification.checks.thresholds import Finding

IMAGES = 16
COPIES = 8  # of one image, in one batch
SIZES = (2, 3, 5, 7)  # besides each image alone
LEAST_DB = {"fp16": 45.0, "int8": 28.0}
MOST_ALONE = 3  # images without a finite answer that are run alone


@dataclass(frozen=True)
class _Check:
    """Batches to run, and what is said of them.

    Attributes:
        how: How the images are run.
        failed: The sentence if an answer is not the expected one; image and numbers follow.
        batches: Indices of the images of each batch.
    """

    how: str
    failed: str
    batches: Sequence[np.ndarray]


def check_consistency(
    runner: Runner,
    pixels: np.ndarray,
    logits: np.ndarray,
    batch_sizes: Sequence[int],
    precision: str,
    noise: FloatNoise | None = None,
    reference: np.ndarray | None = None,
) -> list[Finding]:
    """Run a few images in several ways and compare the answers.

    Args:
        runner: Open.
        pixels: uint8 (N, height, width, 3), the test images. The first `IMAGES` are run, and some of those whose logits
            are not finite.
        logits: float32 (N, C), what the runner gave for them in large batches.
        batch_sizes: Further sizes to try, such as min, opt, max and max + 1 of an engine's profile; images repeat where
            there are fewer. Empty where the file has no profile.
        precision: "fp32", "fp16" or "int8"; decides how far answers may differ.
        noise: How far rounding alone moves Keras' logits. Defaults to None: unknown.
        reference: float32 (N, C), the logits that the images should have. Without them nobody knows whether different
            images should differ, so that all have one answer is a note. Defaults to None: unknown.

    Returns:
        One finding a check, PASS or FAIL, behind one that says what was run.

    Raises:
        DeviceUnavailableError: The device is gone.
    """
    few = pixels[:IMAGES]
    every, expected = np.arange(len(few)), logits[: len(few)]
    findings = [] if np.isfinite(logits).all() else [_not_finite(runner, pixels, logits)]
    should = reference[: len(few)] if reference is not None else None
    if (same := _same_row(few, expected, should, precision, noise)) is not None:
        findings.append(same)
    sizes = [size for size in dict.fromkeys((*SIZES, *batch_sizes)) if size > 1]
    checks = (
        _Check("again", "a repeated run gives other answers", [every, every]),
        _Check(
            "alone",
            "an image alone has another answer than in a batch",
            [every[index : index + 1] for index in every],
        ),
        _Check(
            "in another order",
            "another order of the images changes the answers",
            [np.random.default_rng(0).permutation(every)],
        ),
        _Check(
            f"as {COPIES} copies",
            f"{COPIES} copies of one image have different answers",
            [np.zeros(COPIES, np.int64)],
        ),
        _Check(
            "in other sizes",
            "an image has another answer in a batch of another size",
            [_drawn(size, len(few)) for size in sizes],
        ),
    )
    summary = (
        f"{count(len(few), 'image')}: the same answers alone, again, in another order, as {COPIES} copies and in "
        f"batches of {listed(sizes, most=8)}"
    )
    ran = [_run(check, runner, few, expected, precision, noise) for check in checks]
    return [Finding(PASS, summary), *findings, *ran]


def _drawn(size: int, images: int) -> np.ndarray:
    """Return indices of images for a batch, whose last row is not the first one's, so that neither stands in for it."""
    batch = np.random.default_rng(size).integers(0, images, size)
    batch[-1] = (batch[0] + 1) % images
    return batch


def _run(
    check: _Check, runner: Runner, few: np.ndarray, expected: np.ndarray, precision: str, noise: FloatNoise | None
) -> Finding:
    parts = []
    for batch in check.batches:
        try:
            rows = runner.infer(few[batch]).logits
        except DeviceUnavailableError:
            raise
        except RunnerError as error:
            return Finding(FAIL, f"a batch of {count(len(batch), 'image')} does not run: {error}")
        if rows.shape != (len(batch), expected.shape[1]):
            return Finding(FAIL, f"a batch of {count(len(batch), 'image')} gives logits of shape {tuple(rows.shape)}")
        parts.append(rows)
    images = np.concatenate(check.batches)
    sizes = np.concatenate([np.full(len(batch), len(batch)) for batch in check.batches])
    before, after = clip_masked_classes(expected[images]), clip_masked_classes(np.concatenate(parts))
    finite = np.isfinite(before).all(axis=1), np.isfinite(after).all(axis=1)
    if len(at := np.flatnonzero(finite[0] != finite[1])):
        place = f"image {images[at[0]]} in a batch of {sizes[at[0]]}"
        return Finding(FAIL, f"{check.failed}: {place} is finite once and not finite once")
    both = np.flatnonzero(finite[0])
    if not len(both) or (before[both] == after[both]).all():
        return Finding(PASS)
    far, numbers = _distance(before[both], after[both], precision, noise)
    if not far:
        return Finding(PASS, f"{check.how} within rounding: {numbers}")
    worst = both[np.abs(before[both] - after[both]).max(axis=1).argmax()]
    return Finding(FAIL, f"{check.failed}: {numbers}, worst image {images[worst]} in a batch of {sizes[worst]}")


def _distance(before: np.ndarray, after: np.ndarray, precision: str, noise: FloatNoise | None) -> tuple[bool, str]:
    """Return whether answers differ by more than rounding, and the numbers in words."""
    if precision in LEAST_DB:
        ratio = sqnr_db(before, after)
        return ratio < LEAST_DB[precision], f"SQNR {ratio:.1f} dB, at least {LEAST_DB[precision]:.0f} dB needed"
    error, limit = relative_error(before, after), FLOOR if noise is None else noise.limit
    return error > limit, f"relative error {error:.1e}, at most {limit:.1e} allowed"


def _not_finite(runner: Runner, pixels: np.ndarray, logits: np.ndarray) -> Finding:
    """Name the images whose logits are not finite, and say whether they are finite for the image alone."""
    images = np.flatnonzero(~np.isfinite(logits).all(axis=1))
    words = []
    for image in images[:MOST_ALONE]:
        try:
            alone = np.isfinite(runner.infer(pixels[image : image + 1]).logits).all()
            words.append(f"image {image} {'finite' if alone else 'not finite either'}")
        except DeviceUnavailableError:
            raise
        except RunnerError:
            words.append(f"image {image} does not run")
    return Finding(
        FAIL,
        f"NaN or infinite logits for {len(images):,} of {count(len(logits), 'image')} "
        f"({listed([str(image) for image in images], most=5)}); alone: {', '.join(words)}",
    )


def _same_row(
    few: np.ndarray, rows: np.ndarray, reference: np.ndarray | None, precision: str, noise: FloatNoise | None
) -> Finding | None:
    """Return a finding where all different images have the same answer; None where there are no two of them.

    It is a failure where the reference's answers to them differ by more than rounding: a model may hardly react.
    """
    other = (few != few[:1]).any(axis=(1, 2, 3))
    if not other.any() or not np.isfinite(rows).all():
        return None
    if not (rows[other] == rows[0]).all():
        return Finding(PASS)
    said = f"{count(int(other.sum()) + 1, 'different image')} have the answer of image 0, bit for bit"
    if reference is None:
        return Finding(PASS, said)
    answers = clip_masked_classes(reference)
    far, _ = _distance(np.repeat(answers[:1], len(answers), axis=0), answers, precision, noise)
    return Finding(FAIL, said) if far else Finding(PASS, f"{said}; the reference's differ by no more than rounding")
