"""Weights and scales that do not follow from the FP32 file: finds them, and explains a failure by them.

NumPy only, Python 3.10 syntax; onnx is imported inside the functions.
"""

from __future__ import annotations

import importlib.util
import logging
from pathlib import Path

import numpy as np

from export.words import count
from pipeline.verification.checks.rounded import Origin, Rounded
from pipeline.verification.explain.fit import NEAR, Explanation, difference_in_words, fit_db

log = logging.getLogger(__name__)


def find_misfits(path: Path, origin: Origin, pixels: np.ndarray) -> Rounded | None:
    """Hold a file against the one that it was made from.

    Args:
        path: the file, FP16 or INT8.
        origin: what it was made from.
        pixels: uint8 test images, of which a few are run.

    Returns:
        Rounded | None: None where the package onnx is not here, or the files could not be compared.
    """
    if importlib.util.find_spec("onnx") is None:
        return None
    from pipeline.verification.explain.origin import compare_with_origin

    try:
        return compare_with_origin(path, origin, pixels)
    except Exception as error:  # of ONNX Runtime, which has no public base: the verdict stands on what ran
        log.warning("%s: whether its weights and scales are those of %s is unknown: %s", path, origin.name, error)
        log.debug("why:", exc_info=True)
        return None


def explain_misfits(rounded: Rounded, expected: np.ndarray, received: np.ndarray | None, precision: str) -> Explanation:
    """Explain a failure by weights or scales that do not follow from the file they were made from.

    Args:
        rounded: What was found; at least one misfit.
        expected: Logits of the reference.
        received: Those of the file; None where there are none.
        precision: Of the file.
    """
    first, others = rounded.misfits[0], len(rounded.misfits) - 1
    scales = [misfit for misfit in rounded.misfits if misfit.cause in ("layer scale", "saturation")]
    fit = -np.inf if received is None else fit_db(expected, received)
    answers = (
        f" The answers hide it: the logits differ from the reference's by {difference_in_words(fit)}."
        if fit >= NEAR[precision] else ""
    )  # fmt: skip
    more = f" So {'is' if others == 1 else 'are'} {count(others, 'more value')}." if others else ""
    evidence = f"{first.text[0].upper()}{first.text[1:]}.{more}{answers}"
    remedy = (
        "Make the file again: run quantize with --force. If that does not help, see that nothing changes the file "
        "afterwards: compare its sha256."
    )
    if len(scales) > 1 and 2 * len(scales) > rounded.scales:
        text = (
            f"{len(scales):,} of {count(rounded.scales, 'INT8 scale')} are not those that the calibration images gave, "
            "or do not fit the test images."
        )
        return Explanation("calibration", text, evidence, remedy, settles=fit >= NEAR[precision])
    what = {
        "weights": f"The weights of layer {first.layer!r} are not those of {rounded.source}",
        "layer scale": f"The INT8 scale behind layer {first.layer!r} is wrong",
        "attribute": f"Layer {first.layer!r} ends at another value than that of {rounded.source}",
        "padding": f"The border of layer {first.layer!r} is not that of {rounded.source}",
        "saturation": f"The INT8 scale behind layer {first.layer!r} is too small: larger values are cut off",
    }[first.cause]
    return Explanation(first.cause, f"{what}.", evidence, remedy, first.layer, settles=fit >= NEAR[precision])
