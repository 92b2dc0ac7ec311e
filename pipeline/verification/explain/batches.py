"""Hypotheses about the batch: the same images are run together, one by one and once more.

NumPy and the standard library only, Python 3.10 syntax; onnx is imported where a file is read.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from export.errors import DeviceUnavailableError, ProjectError
from export.words import count, listed
from pipeline.runners.base import Runner, softmax
from pipeline.verification.explain.fit import NEAR, Explanation, difference_in_words, evidence_of, explains, fit_db

if TYPE_CHECKING:
    from onnx import ModelProto, NodeProto

    from pipeline.verification.parity import Candidate

log = logging.getLogger(__name__)

SIZES = (1, 2, 4, 8, 16)  # of batches, tried where a larger one fails
LARGER = (32, 64, 128, 256)  # tried where none of these runs: a batch of more images may be baked in
# SQNR in dB between a batch and its images alone. Kernels for another batch size round otherwise: FP32 then differs by
# 1e-6, and each INT8 value near a boundary by a step.
ALIKE = {"fp32": 80.0, "fp16": 45.0, "int8": 25.0}


@dataclass(frozen=True, eq=False)
class Runs:
    """What a candidate gives for the same images in batches and alone.

    Attributes:
        together: Logits of all images in one batch; None where that failed.
        probabilities: Probabilities of that batch.
        alone: Logits of each image alone, in the same order; None where that failed.
        works: Sizes of batches that ran, of `SIZES`, or the first of `LARGER` if none did; empty where all ran.
        why: Error of the whole batch; "" where it ran.
    """

    together: np.ndarray | None
    probabilities: np.ndarray | None
    alone: np.ndarray | None
    works: tuple[int, ...] = ()
    why: str = ""


def run_in_batches(candidate: Candidate, pixels: np.ndarray) -> Runs | None:
    """Run images together and alone; None where the candidate does not open here."""
    try:
        with candidate.open() as runner:
            try:
                outputs = runner.infer(pixels)
                together, probabilities, why = outputs.logits, outputs.probabilities, ""
            except DeviceUnavailableError:
                raise
            except ProjectError as error:
                together, probabilities, why = None, None, " ".join(str(error).split())
            works = tuple(n for n in SIZES if n <= len(pixels) and _runs(runner, pixels[:n])) if why else ()
            if why and not works:
                repeated = (np.resize(pixels, (n, *pixels.shape[1:])) for n in LARGER)
                works = next(((len(batch),) for batch in repeated if _runs(runner, batch)), ())
            alone = None
            if not why or 1 in works:
                alone = np.concatenate([runner.infer(pixels[i : i + 1]).logits for i in range(len(pixels))])
            return Runs(together, probabilities, alone, works, why)
    except ProjectError as error:
        log.debug("%s is not run again: %s", candidate.run_name, error)
        return None


def _runs(runner: Runner, pixels: np.ndarray) -> bool:
    try:
        return len(runner.infer(pixels).logits) == len(pixels)
    except ProjectError:
        return False


def explain_batches(
    expected: np.ndarray,
    runs: Runs,
    precision: str,
    path: Path | None,
    answered: np.ndarray | None,
    read: Callable[[], ModelProto] | None,
) -> list[Explanation]:
    """Explain logits by what the batch does to them.

    Args:
        expected: Logits of the reference for the images that were run, (n, C).
        runs: Of the candidate.
        precision: Of the candidate.
        path: Its file if it is an ONNX file.
        answered: Logits of all test images that were judged, (N, C); None where there are none.
        read: Reads the file's graph, see `Case.graph`; None if it is no ONNX file.
    """
    if runs.together is None:
        return _fixed(expected, runs, precision, path)
    if found := _not_finite(runs, answered):
        return found
    together = fit_db(expected, runs.together)
    alone = fit_db(expected, runs.alone) if runs.alone is not None else -np.inf
    alike = fit_db(runs.alone, runs.together) if runs.alone is not None else -np.inf
    if runs.alone is not None and alike < ALIKE[precision] and np.isfinite(runs.alone).all():
        if found := _batch_statistics(expected, runs, read):
            return found
        if explains(precision, alone, together):
            return [
                Explanation(
                    "batch dependence",
                    "An image gets another answer in a batch than alone. Alone each answer is right, so the images of "
                    "a batch influence each other.",
                    evidence_of("each image alone", alone, together),
                    "Look for a layer that computes over the first dimension: a mean or a normalization over the "
                    "batch, a reshape that mixes images, a fixed batch size. See that the model is exported for "
                    "inference (training=False).",
                )
            ]
    if runs.probabilities is not None and together >= NEAR[precision] and len(expected) > 1:
        over_batch = np.ascontiguousarray(softmax(np.ascontiguousarray(runs.together.T)).T)
        if fit_db(over_batch, runs.probabilities) >= NEAR["fp16"] > fit_db(softmax(runs.together), runs.probabilities):
            return [
                Explanation(
                    "activation",
                    "The softmax runs over the images of a batch instead of over the classes, so the probabilities of "
                    "an image do not sum to 1.",
                    "The probabilities are those of a softmax over the first dimension, up to "
                    f"{difference_in_words(fit_db(over_batch, runs.probabilities))}.",
                    "Export the file again with the softmax over the last axis.",
                )
            ]
    return []


def _fixed(expected: np.ndarray, runs: Runs, precision: str, path: Path | None) -> list[Explanation]:
    """Explain a batch that fails while smaller ones run."""
    if not runs.works:
        return []
    size = max(runs.works)
    fits = runs.alone is not None and fit_db(expected, runs.alone) >= NEAR[precision]
    declared = f" Its input declares {listed(input_shape(path), separator=' x ')}." if path is not None else ""
    right = " Alone each answer is right." if fits else ""
    return [
        Explanation(
            "fixed batch",
            f"The file takes {'one image' if size == 1 else f'batches of {listed(runs.works)}'} at a time and fails "
            f"with {'more' if size < len(expected) else 'fewer'}: its batch size is baked in.{right}",
            f"Of {count(len(expected), 'image')} at once it says: {runs.why:.200}{declared}",
            "Export with a symbolic first dimension (batch_size=None in Keras), and look for Reshapes with a fixed "
            "first dimension; for an engine, set build.profile.",
        )
    ]


def _not_finite(runs: Runs, answered: np.ndarray | None) -> list[Explanation]:
    """Explain rows that are not finite while others are."""
    logits = answered if answered is not None else runs.together
    if logits is None:
        return []
    broken = np.flatnonzero(~np.isfinite(logits).all(axis=1))
    if not len(broken) or len(broken) == len(logits):
        return []
    again = [int(row) for row in broken if runs.alone is not None and row < len(runs.alone)]
    finite = [row for row in again if runs.alone is not None and np.isfinite(runs.alone[row]).all()]
    alone = ""
    if again:
        alone = (
            " Alone these images get finite answers, so it comes from the batch." if len(finite) == len(again)
            else " Alone they do too, so it comes from what these images hold."
        )  # fmt: skip
    return [
        Explanation(
            "not finite",
            f"The answer to {count(len(broken), 'image')} of {len(logits):,} is not a number (NaN or infinity), all "
            f"others are.{alone}",
            f"Test image {listed(broken, most=5)}: {_kinds(logits[broken])} among its logits.",
            "Look at these images in the report, and for a division by zero, a logarithm, or a value beyond the range "
            "of the file's type.",
        )
    ]


def _kinds(rows: np.ndarray) -> str:
    counts = {"NaN": int(np.isnan(rows).sum()), "infinity": int(np.isinf(rows).sum())}
    return " and ".join(f"{number:,} x {kind}" for kind, number in counts.items() if number)


def input_shape(path: Path) -> list[object]:
    """Return the dimensions that an ONNX file's first input declares; "?" for an unknown one."""
    import onnx

    dims = onnx.load(str(path), load_external_data=False).graph.input[0].type.tensor_type.shape.dim
    return [dim.dim_value if dim.HasField("dim_value") else dim.dim_param or "?" for dim in dims]


def _batch_statistics(expected: np.ndarray, runs: Runs, read: Callable[[], ModelProto] | None) -> list[Explanation]:
    """Explain answers that depend on the batch by nodes that compute statistics of the batch."""
    if read is None:
        return []
    from export.onnx_passes.layer_names import keras_layer

    model = read()
    nodes = nodes_over_batch(model)
    if not nodes:
        return []
    normalizing = [node for node in nodes if node.op_type == "BatchNormalization"] or _normalizing(model, nodes)
    if not normalizing:
        return [
            Explanation(
                "batch dependence",
                "An image gets another answer in a batch than alone: the file computes over the images of a batch.",
                f"{nodes[0].op_type} {nodes[0].name!r} computes over the first dimension. The logits of a batch differ "
                f"from those alone by {difference_in_words(fit_db(runs.alone, runs.together))}.",  # type: ignore[arg-type]
                "Look for what reduces the first dimension in the code that was exported; it is the batch.",
            )
        ]
    first = normalizing[0]
    layer = keras_layer(first.name)
    together, alone = fit_db(expected, runs.together), fit_db(expected, runs.alone)  # type: ignore[arg-type]
    return [
        Explanation(
            "training mode",
            f"BatchNorm runs in training mode: {count(len(normalizing), 'node')} in the file, the first in layer "
            f"{layer!r}, normalize with the mean and variance of the images in the batch instead of those learned.",
            f"{first.op_type} {first.name!r} computes over the first dimension. The logits differ from Keras' by "
            f"{difference_in_words(together)} in a batch of {len(expected)}, and by {difference_in_words(alone)} "
            "alone.",
            "Export for inference: call the model with training=False, and do not export in training mode.",
            layer,
        )
    ]


def _normalizing(model: ModelProto, nodes: list[NodeProto]) -> list[NodeProto]:
    """Return the nodes if the root of what one of them gives is taken, as BatchNorm in single operators does.

    A mean over the batch alone, such as one that is subtracted, is no BatchNorm.
    """
    from export.onnx_passes.graph import consumers

    readers = consumers(model.graph)
    for node in nodes:
        behind = [node]
        for _ in range(3):  # a sum with epsilon and a Cast may stand between
            behind = [reader for one in behind for reader in readers.get(one.output[0], ())]
            if any(reader.op_type in ("Sqrt", "Pow") for reader in behind):
                return nodes
    return []


def nodes_over_batch(model: ModelProto) -> list[NodeProto]:
    """Return the nodes that compute statistics over the first dimension, in the order of the file."""
    from onnx import numpy_helper

    from export.onnx_passes.graph import attribute, constants

    table = constants(model.graph)

    def axes(node: NodeProto) -> list[int]:
        if len(node.input) > 1 and node.input[1] in table:
            return [int(axis) for axis in numpy_helper.to_array(table[node.input[1]]).ravel()]
        return [int(axis) for axis in attribute(node, "axes", ())]

    return [
        node
        for node in model.graph.node
        if (node.op_type == "BatchNormalization" and attribute(node, "training_mode", 0))
        or (node.op_type.startswith("Reduce") and 0 in axes(node))
    ]
