"""Run candidates over the test images; a runner is known only by its protocol. Needs only NumPy."""

import logging
from collections.abc import Callable
from functools import partial

import numpy as np

from export.errors import DeviceUnavailableError, ProjectError, UnfitError
from export.metrics.distances import FloatNoise
from export.words import count, listed
from pipeline.artifacts.parity_report import FAIL, NOT_RUN, PASS
from pipeline.runners.base import Runner, Top, top_k_of
from pipeline.verification.checks.consistency import check_consistency
from pipeline.verification.checks.thresholds import Finding
from pipeline.verification.parity import Answer, Candidate

log = logging.getLogger(__name__)

# TensorRT 8.6 may compute a TopK in FP16, whatever the file says: a rounding of 2^-11, and of 2^-25 near zero.
RELATIVE, ABSOLUTE = 1e-3, 1e-7


def evaluate(
    candidate: Candidate,
    pixels: np.ndarray,
    batch_size: int,
    advance: Callable[[int], object],
    check: Callable[[Runner, str], None] | None = None,
    noise: FloatNoise | None = None,
    reference: np.ndarray | None = None,
) -> Answer:
    """Run a candidate over the test images.

    Args:
        candidate: opens the runner.
        pixels: uint8, (N, height, width, 3).
        batch_size: images per call.
        advance: called with the number of images after each call.
        check: called with the open runner and its name; raises where it runs another model. Defaults to None.
        noise: how far rounding alone moves Keras' logits. Defaults to None: unknown.
        reference: float32 (N, C), the logits that the images should have. Defaults to None: unknown.

    Returns:
        Answer: logits, probabilities, findings on the run itself; or why there are none: no such device, or an error.

    Raises:
        UnfitError: it is no classifier that could be judged.
    """
    if candidate.why_not:
        return Answer(None, FAIL, candidate.why_not)
    try:
        with candidate.open() as runner:
            if check is not None:
                check(runner, candidate.run_name)
            logits, probabilities, wrong = [], [], []
            for start in range(0, len(pixels), batch_size):
                batch = pixels[start : start + batch_size]
                outputs = runner.infer(batch)
                logits.append(outputs.logits)
                probabilities.append(outputs.probabilities)
                if runner.graph_top_k:
                    wrong.append(mismatched_images(runner.top(batch, runner.graph_top_k), outputs.probabilities))
                advance(len(batch))
            top = _top(np.concatenate(wrong), runner.graph_top_k) if wrong else None
            rows = np.concatenate(logits)
            checks: list[Finding] = []
            if rows.ndim == 2 and len(rows) == len(pixels):
                checks = check_consistency(
                    runner, pixels, rows, candidate.batch_sizes, candidate.precision, noise, reference
                )
            extreme = candidate.extreme(pixels) if candidate.extreme is not None else None
            rounded = candidate.rounded(pixels) if candidate.rounded is not None else None
            return Answer(rows, PASS, "", top, np.concatenate(probabilities), tuple(checks), extreme, rounded)
    except DeviceUnavailableError as error:
        return Answer(None, NOT_RUN, f"built, not run here: {error.reason}")
    except UnfitError:
        raise
    except ProjectError as error:
        log.error("%s failed: %s", candidate.run_name, error)
        return Answer(None, FAIL, str(error))


def _top(wrong: np.ndarray, k: int) -> Finding:
    if not wrong.any():
        return Finding(PASS, f"the best {k} that the graph picks are those of its probabilities")
    where = np.flatnonzero(wrong)
    return Finding(
        FAIL,
        f"the best {k} that the graph picks are not those of its probabilities for {len(where):,} of "
        f"{count(len(wrong), 'image')} (test image {listed(where, most=3)})",
    )


def mismatched_images(top: Top, probabilities: np.ndarray) -> np.ndarray:
    """Find the images whose best classes, or their probabilities, contradict the probabilities of all classes.

    Equal probabilities may come in any order, as TensorRT guarantees none.

    Args:
        top: the graph's k best classes of each image.
        probabilities: float32 (N, C), of the same file for the same images.

    Returns:
        np.ndarray: bool, (N,).
    """
    if top.classes.shape != top.probabilities.shape or len(top.classes) != len(probabilities):
        return np.ones(len(probabilities), bool)
    valid = (top.classes >= 0) & (top.classes < probabilities.shape[1])
    classes = np.where(valid, top.classes, 0)
    own = np.take_along_axis(probabilities, classes, axis=1)
    best = top_k_of(probabilities, classes.shape[1]).probabilities
    repeated = (np.diff(np.sort(classes, axis=1), axis=1) == 0).any(axis=1)
    close = partial(np.isclose, rtol=RELATIVE, atol=ABSOLUTE)
    return np.asarray(repeated | ~(valid & close(own, best) & close(top.probabilities, own)).all(axis=1))
