"""The work of the layers stage: every ONNX file against Keras, layer by layer, and the table of what was found."""

import importlib.util
import logging
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from export.errors import ProjectError
from export.fp16.convert import has_half
from export.tensorrt.sidecar import PRECISIONS, Precision
from export.words import aligned, count
from pipeline.artifacts.array_rows import array_forms, read_rows
from pipeline.artifacts.files import sha256_file
from pipeline.artifacts.layer_report import HalfArithmetic, LayerReport, LayerRow, LayerRun
from pipeline.artifacts.machine import peak_memory_mib
from pipeline.artifacts.paths import CARD, KERAS, ONNX, REFERENCE, TENSORRT8, Artifacts
from pipeline.models.model_card import read_card
from pipeline.recipe.schema import Recipe
from pipeline.terminal.console import progress_bar
from pipeline.verification.layers.compare import THRESHOLDS_DB, compare_layers
from pipeline.verification.layers.compare_engines import compare_engines, open_subject
from pipeline.verification.layers.failing import Failing
from pipeline.verification.layers.half import compute_in_half, half_note
from pipeline.verification.layers.keras_layers import KerasLayers, open_keras_layers
from pipeline.verification.layers.mapping import Mapping, map_layers
from pipeline.verification.layers.subject import Subject

log = logging.getLogger(__name__)

_MAPPED_ON = 2  # images by whose values tensors are found
LOOKED_AT = ("pixels", "logits")  # of the first test images
_WORST = 10  # rows of the table of a run with a layer below the threshold
_WORST_OF_GOOD = 3  # of another run
_LITTLE = 0.01  # of FP16's range, of which a layer usually uses next to nothing
NOTES: dict[Precision, str] = {
    "fp32": "",
    "fp16": "a CPU computes each FP16 operator in FP32 and rounds its result",
    "int8": "fake quantization, every Q/DQ pair computed as in the file",
}


def list_files(artifacts: Artifacts) -> list[tuple[str, Precision]]:
    """List the ONNX files, the FP32 file first, from which the others were made."""
    files = [(ONNX[precision], precision) for precision in PRECISIONS]
    older = [(TENSORRT8[precision], precision) for precision in PRECISIONS if precision in TENSORRT8]
    return [*files, *((name, precision) for name, precision in older if artifacts.has(name))]


def compare_files(artifacts: Artifacts, settings: Recipe, out: Path) -> LayerReport:
    """Compare every ONNX file and engine with Keras, layer by layer; shrink what fails, where the recipe asks for it.

    Args:
        artifacts: Model, card, files, engines, and the verify stage's test images and verdict.
        settings: The recipe.
        out: The stage's folder, for the smallest parts that fail.

    Raises:
        ProjectError: Keras is not here, or refuses the model.
    """
    if importlib.util.find_spec("keras") is None:
        raise ProjectError(
            "Expected Keras, whose layers are compared. Received: it is not installed here. Compare layers where the "
            "model was exported."
        )
    keras_layers = open_keras_layers(artifacts.path(KERAS), read_card(artifacts.path(CARD)), settings.model.allow)
    path = artifacts.path(REFERENCE)
    images = range(
        min(settings.verify.layer_images, *(form.shape[0] for form in array_forms(path, LOOKED_AT).values()))
    )
    pixels, logits = (read_rows(path, name, images) for name in LOOKED_AT)
    runs: list[LayerRun] = []
    half: list[HalfArithmetic] = []
    mappings: dict[str, Mapping] = {}
    for name, precision in list_files(artifacts):
        subject = open_subject(artifacts, name, name, precision)
        run, mapping = compare_file(keras_layers, subject, pixels, mappings.get(ONNX["fp32"]))
        if mapping is not None:
            mappings[name] = mapping
        if name in ONNX.values() and has_half(subject.model):
            try:
                half.append(compute_in_half(subject, pixels, logits))
                run = replace(run, note="; ".join(filter(None, (run.note, half_note(half[-1])))))
            except ProjectError as error:
                log.warning("%s", error)
        runs.append(run)
    runs += compare_engines(artifacts, keras_layers, mappings, pixels, settings.runtime, out)
    failing = Failing(artifacts, keras_layers, mappings, settings, out)
    reduced = failing.reduce(runs) if settings.verify.reduce else ()
    found = {layer.name for mapping in mappings.values() for layer in mapping.layers}
    reasons = {n: why for mapping in reversed(mappings.values()) for n, why in mapping.without_tensor.items()}
    compared = [KERAS, *(name for name, _ in list_files(artifacts)), *(run.run for run in runs if run.rows)]
    return LayerReport(
        {name: sha256_file(artifacts.path(name)) for name in dict.fromkeys(compared)},
        len(pixels),
        {name: layer.kind for name, layer in keras_layers.layers.items() if name in found},
        {name: why for name, why in reasons.items() if name not in found},
        tuple(runs),
        reduced,
        tuple(half),
        peak_mib=peak_memory_mib(),
    )


def compare_file(
    keras_layers: KerasLayers, subject: Subject, pixels: np.ndarray, source: Mapping | None
) -> tuple[LayerRun, Mapping | None]:
    """Compare one file; a file that cannot be compared is a run without rows, which says why.

    Args:
        keras_layers: The reference.
        subject: The file.
        pixels: uint8 (N, height, width, 3) RGB.
        source: Tensors of the file that this one was made from; None if it was made from none.

    Returns:
        The run, and the tensors of its layers; None if they were not found.
    """
    mapping = None
    try:
        few = pixels[: subject.batch or _MAPPED_ON]
        mapping = map_layers(keras_layers, subject, few, source)
        with progress_bar(total=len(pixels), desc=f"  layers of {subject.run}", unit="img") as bar:
            run = compare_layers(keras_layers, mapping, subject, pixels, NOTES[subject.precision], bar.update)
    except ProjectError as error:
        log.warning("the layers of %s are not compared: %s", subject.run, error)
        run = LayerRun(subject.run, subject.precision, THRESHOLDS_DB[subject.precision], (), "", 0.0, str(error))
    return run, mapping


def layer_table(report: LayerReport) -> str:
    """Return the worst own errors of each run as a table for a terminal, and the first layer below its threshold."""
    parts = run_tables(report.runs)
    if missing := [name for name, why in report.without_tensor.items() if not why.startswith(("folded", "has the"))]:
        parts.append(f"without a tensor: {', '.join(missing)}")
    return "\n".join(parts)


def run_tables(runs: Sequence[LayerRun]) -> list[str]:
    """Return a table for each run, or why there is none."""
    parts = []
    for run in runs:
        if not run.rows:
            parts.append(f"{run.run}: {run.note if run.note.startswith('not run') else f'not compared: {run.note}'}")
            continue
        worst = sorted(run.rows, key=_own_db)[: _WORST if run.first_below else _WORST_OF_GOOD]
        head_row = ("layer", "own dB", "total dB", "cosine", "cut off", "range used")
        cells = [head_row, *(_cells(row, run.precision) for row in worst)]
        below = (
            f"first layer below {run.threshold_db:g} dB of its own: {run.first_below}"
            if run.first_below
            else f"no layer below {run.threshold_db:g} dB of its own"
        )
        head = f"{run.run}: {below}; {count(len(run.rows), 'layer')} in {run.seconds:.1f} s, the worst:"
        parts.append("\n".join([head, *aligned(cells, right=range(1, 6))]))
    return parts


def _own_db(row: LayerRow) -> float:
    """Return a row's own SQNR; the largest where its values are equal, the smallest where one is not finite."""
    if row.own_sqnr_db is not None:
        return row.own_sqnr_db
    return math.inf if row.own_finite else -math.inf


def _cells(row: LayerRow, precision: Precision) -> tuple[str, ...]:
    says_nothing = row.range_used is None or (precision == "fp16" and row.range_used < _LITTLE)
    return (
        row.layer,
        _db_text(row.own_sqnr_db, row.own_finite),
        _db_text(row.sqnr_db, row.finite),
        "" if row.cosine is None else f"{row.cosine:.5f}",
        "" if row.saturated is None else f"{100 * row.saturated:.2f} %",
        "" if says_nothing else f"{100 * (row.range_used or 0.0):.1f} %",
    )


def _db_text(noise_db: float | None, finite: bool) -> str:
    if noise_db is not None:
        return f"{noise_db:.1f}"
    return "equal" if finite else "not finite"
