"""Compares what a model answers before and after a rewrite, and refuses what changed them, by the name of the step.

The reference of every later stage is the rewritten model, so a fault here would be in the reference and in what is
compared with it, and every verdict would be a pass.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from export.difference import relative_difference
from pipeline.errors import ModelError
from pipeline.words import count

EXACT = 1e-4  # of the largest value; the same operations in another order differ by 1e-6
HALF, BFLOAT16 = 3e-2, 0.2  # where one of the two computes in float16 and in bfloat16, of eight times the ulp


def refuse_other_answers(
    step: str, expected: np.ndarray, received: np.ndarray, where: Path, tolerance: float = EXACT
) -> None:
    """Refuse a rewrite that changed what the model answers.

    Args:
        step: what was done to the model, in words.
        expected: the values before, (N, ...).
        received: the values after.
        where: the model's file.
        tolerance: relative to the largest value.

    Raises:
        ModelError: with the step, and by how much.
    """
    found = relative_difference(expected, received)
    if found > tolerance:
        raise ModelError(
            f"Expected the same answers before and after this step: {step}. Received: {where}, off by "
            f"{_share(found)} of the largest on {count(len(expected), 'picture')}. The model cannot be taken over as "
            "it is; "
            "rebuild it without that part, or report the fault with the model's architecture."
        )


def refuse_batch_dependence(whole: np.ndarray, alone: np.ndarray, where: Path, tolerance: float) -> None:
    """Refuse a model whose answer for a picture depends on the others of its batch.

    Args:
        whole: values of several pictures at once.
        alone: of the same pictures, one at a time.
        where: the model's file.
        tolerance: relative to the largest value.

    Raises:
        ModelError: by how much they differ.
    """
    found = relative_difference(whole, alone)
    if found > tolerance:
        raise ModelError(
            f"Expected a model whose answer for a picture is its own. Received: {where}: answers for a picture alone "
            f"and in a batch differ by {_share(found)} of the largest. Something in it computes over the batch (a "
            "mean over axis 0, batch statistics); no engine could promise such answers."
        )


def _share(value: float) -> str:
    return f"{value:.2g}" if np.isfinite(value) else "NaN or another shape"
