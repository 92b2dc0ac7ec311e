"""FP16 as a GPU computes it: the operators of ONNX's reference evaluator, in NumPy's float16.

ONNX Runtime's CPU kernels compute an FP16 graph in FP32 and round where the graph says so. The reference evaluator
computes each node in the types of the graph. What NumPy does inside one operator was measured: a product of matrices,
and with it Conv, Gemm and MatMul, adds in FP32 and rounds once, as tensor cores with FP32 accumulators do; a bias, a
residual and an activation are rounded to FP16 each. A kernel that adds in FP16 would be less exact than this.
"""

from __future__ import annotations

import time

import numpy as np

from export.errors import ProjectError
from export.metrics.distances import compare, sqnr_db
from export.tensorrt.sidecar import INPUT, OUTPUTS
from export.words import count
from pipeline.artifacts.layer_report import HalfArithmetic
from pipeline.terminal.console import progress_bar
from pipeline.verification.checks.measure import finite_or_none
from pipeline.verification.layers.subject import FedSession, Subject

IMAGES = 4
SECONDS = 120.0  # after which no further image is begun: about 25 s an image for a ResNet-50 at 224
HOW = (
    "each node in the types of the file; sums inside a convolution or a matrix product in FP32, as tensor cores with "
    "FP32 accumulators add, and everything else in FP16 rounded after each operation"
)


def compute_in_half(
    subject: Subject, pixels: np.ndarray, keras: np.ndarray, seconds: float = SECONDS
) -> HalfArithmetic:
    """Compute the logits of a few images in true FP16, one image at a time, with a progress bar.

    Args:
        subject: The file.
        pixels: uint8 (N, height, width, 3); the first `IMAGES` are taken.
        keras: Keras' logits of the images, float32 (N, C).
        seconds: No further image is begun after this time. Defaults to `SECONDS`.

    Raises:
        ProjectError: The reference evaluator cannot compute the file.
    """
    from onnx.reference import ReferenceEvaluator

    started = time.monotonic()
    size = subject.batch or 1
    few = pixels[: max(IMAGES, size)]
    few = few[: len(few) - len(few) % size]
    session = FedSession(subject.model, (), [OUTPUTS[0]])
    rows: list[np.ndarray] = []
    cpu_rows: list[np.ndarray] = []
    try:
        evaluator = ReferenceEvaluator(subject.model)
        with (
            progress_bar(total=len(few), desc=f"  {subject.run} in FP16", unit="img") as bar,
            np.errstate(all="ignore"),
        ):
            for first in range(0, len(few), size):
                batch = few[first : first + size]
                (logits,) = evaluator.run([OUTPUTS[0]], {INPUT: batch})
                rows.append(np.asarray(logits, np.float32))
                cpu_rows.append(session.run({INPUT: batch}, {})[OUTPUTS[0]])
                bar.update(size)
                if time.monotonic() - started > seconds:
                    break
    except (NotImplementedError, RuntimeError, TypeError, ValueError) as error:  # as the evaluator refuses an operator
        raise ProjectError(
            f"Expected {subject.run} to be computed by ONNX's reference evaluator. Received: {error}. The layers are "
            "compared without it."
        ) from error
    given, cpu = np.concatenate(rows), np.concatenate(cpu_rows)
    images = len(given)
    compared = compare(keras[:images], given)
    usable = compared.finite and bool(np.isfinite(cpu).all())
    return HalfArithmetic(
        run=subject.run,
        images=images,
        sqnr_db=finite_or_none(compared.sqnr_db),
        relative_error=finite_or_none(compared.relative_error),
        agreement=compared.top1_agreement,
        finite=compared.finite,
        cpu_sqnr_db=finite_or_none(sqnr_db(cpu, given)) if usable else None,
        seconds=time.monotonic() - started,
        how=HOW,
    )


def half_note(half: HalfArithmetic) -> str:
    """Return what true FP16 arithmetic gave, as a remark on a run."""
    if not half.finite:
        return f"in true FP16 arithmetic, logits of {count(half.images, 'image')} are not all finite"
    keras, cpu = ("equal to" if value is None else f"{value:.1f} dB from" for value in (half.sqnr_db, half.cpu_sqnr_db))
    return (
        f"in true FP16 arithmetic, the logits of {count(half.images, 'image')} are {keras} Keras' and {cpu} those "
        f"computed here, with {100 * half.agreement:.0f} % of the top classes as Keras has them"
    )
