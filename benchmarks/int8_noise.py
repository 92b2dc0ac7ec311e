"""Tell what of an INT8 file makes the noise: ``python -m benchmarks.int8_noise``.

Activations alone and weights alone are rounded, in each of the two ways, then both, by the norms that spare the worst
image and by the mean squared error. Held-out calibration images judge; no test image is seen.
"""

import argparse
import logging
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import onnx
from onnx import numpy_helper

from benchmarks.telemetry import commit, machine
from export.calibration import collect_statistics
from export.errors import ProjectError
from export.int8.calibrated import Calibrated, calibrate
from export.int8.equalization import STRENGTHS
from export.int8.placement import measured_tensors, quantized_edges
from export.int8.qdq import insert_pair, quantize, rounded_activations
from export.int8.regions import allowed, find_regions
from export.int8.scales import Scales
from export.int8.second_order import round_second_order
from export.int8.shift import shift
from export.int8.simulate import HeldOut, Judged, simulate
from export.int8.weights import RoundedWeight
from export.onnx_passes.file import load_model
from export.onnx_passes.graph import constants, copy_model, topological_sort
from export.records import to_json
from pipeline.artifacts.files import sha256_file, write_json
from pipeline.artifacts.machine import Machine
from pipeline.artifacts.output import check_output
from pipeline.artifacts.paths import ONNX
from pipeline.cli import options
from pipeline.quantization.quantize import CalibrationImages
from pipeline.terminal.command_line import Parser
from pipeline.terminal.console import progress_bar

log = logging.getLogger("benchmarks.int8_noise")

SCHEMA = 1
METHOD = "lp_2.4"  # with which the parts are compared
METHODS = ("mse", METHOD, "lp_3")
Activations = Literal["float", "128 levels", "255 levels", "255 levels, sums of float weights"]
Weights = Literal["float", "nearest", "second_order"]
Weighted = Mapping[str, RoundedWeight]


@dataclass(frozen=True)
class NoiseRow:
    """What one way of rounding does to the logits of held-out images.

    Attributes:
        activations: how they are rounded; 255 levels only where that is exact, see `export.int8.regions`.
        weights: how they are rounded.
        method: of the scales; None where activations are float.
        sqnr_db: of the logits of all images together, dB; None if it is not finite, as the following two.
        median_db: median of the images' own SQNR, dB.
        worst_db: the smallest of them.
        noisiest: share of the energy of all errors that the noisiest image carries.
        top1_agreement: share of images with FP32's top class.
    """

    activations: Activations
    weights: Weights
    method: str | None
    sqnr_db: float | None
    median_db: float | None
    worst_db: float | None
    noisiest: float
    top1_agreement: float


@dataclass(frozen=True, kw_only=True)
class NoiseReport:
    """The JSON file.

    Attributes:
        recipe: its name.
        machine: on which the command ran.
        commit: of this code; None outside a repository.
        model_sha256: of the FP32 ONNX file.
        scale_images: number of images that gave scales.
        images: number of held-out images.
        quantized: number of quantized tensors.
        shifted: how many of them can have 255 levels.
        rows: a row for each way.
        schema: version of this file's format.
    """

    recipe: str
    machine: Machine
    commit: str | None
    model_sha256: str
    scale_images: int
    images: int
    quantized: int
    shifted: int
    rows: tuple[NoiseRow, ...]
    schema: int = SCHEMA


def measure_noise(base: Calibrated, batches: Sequence[np.ndarray], held_out: HeldOut, images: int) -> list[NoiseRow]:
    """Return a row for each way of rounding.

    Args:
        base: the float model with its histograms.
        batches: of calibration images for second-order rounding, uint8 (N, height, width, 3) RGB.
        held_out: other images, which judge.
        images: how many of the first second-order rounding looks at.
    """
    can = allowed(find_regions(base.model), "always")
    wide, plain = base.scales(METHOD, can), base.scales(METHOD)
    nearest = base.nearest()
    second = {**nearest, **round_second_order(base.model, wide, lambda _: batches, images=images).weights}
    levels_of: Mapping[Activations, Sequence[str]] = {"128 levels": (), "255 levels": can}
    rounded: Mapping[Weights, Weighted] = {"nearest": nearest, "second_order": second}
    files: list[tuple[Activations, Weights, str | None, onnx.ModelProto]] = [
        ("128 levels", "float", METHOD, rounded_activations(base.model, plain)),
        ("255 levels", "float", METHOD, rounded_activations(base.model, wide)),
        *(("float", way, None, rounded_weights(base.model, weights)) for way, weights in rounded.items()),
        *(
            (levels, "nearest", method, quantize(base.model, base.scales(method, shifted), base="fp32").model)
            for method in METHODS
            for levels, shifted in levels_of.items()
        ),
        ("255 levels", "second_order", METHOD, quantize(base.model, wide, weights=second, base="fp32").model),
        ("255 levels, sums of float weights", "nearest", METHOD, with_float_sums(base.model, wide, nearest)),
    ]
    return [
        _row(levels, way, method, held_out, model)
        for levels, way, method, model in progress_bar(files, desc="  noise", unit="model")
    ]


def rounded_weights(model: onnx.ModelProto, weights: Weighted) -> onnx.ModelProto:
    """Return a float model whose weights alone are rounded.

    Args:
        model: float32.
        weights: name of a weight to what it is rounded to.
    """
    result = copy_model(model)
    table = constants(result.graph)
    for name, weight in weights.items():
        table[name].CopyFrom(numpy_helper.from_array(weight.values, name))
    return result


def with_float_sums(model: onnx.ModelProto, scales: Scales, weights: Weighted) -> onnx.ModelProto:
    """Return an INT8 model with what must not be: its shift is made up for with the weights before they are rounded.

    Args:
        model: float32.
        scales: one for each of its quantized tensors.
        weights: name of a weight to what it is rounded to.
    """
    lowered = shift(model, {tensor: scales.shift(tensor) for tensor in scales.shifted}, lambda node: None).model
    result = rounded_weights(lowered, weights)
    pairs = {
        tensor: insert_pair(result.graph, tensor, np.asarray(scale, np.float32), axis=None)
        for tensor, scale in scales.scales.items()
    }
    nodes = {node.name: node for node in result.graph.node}
    for edge in quantized_edges(model):
        nodes[edge.node].input[edge.index] = pairs[edge.tensor]
    return topological_sort(result)


def _row(levels: Activations, way: Weights, method: str | None, held_out: HeldOut, model: onnx.ModelProto) -> NoiseRow:
    logits = simulate(model, held_out.pixels, held_out.batch_size)
    judged = Judged.of(held_out.reference, logits, held_out.labels)
    energies = ((logits.astype(np.float64) - held_out.reference) ** 2).sum(axis=1)
    values = (judged.sqnr_db, judged.median_db, judged.worst_db)
    sqnr, median, worst = (value if math.isfinite(value) else None for value in values)
    noisiest = float(energies.max() / energies.sum()) if energies.any() else 0.0
    return NoiseRow(levels, way, method, sqnr, median, worst, noisiest, judged.top1_agreement)


def build_parser() -> Parser:
    """Return the parser of the command line."""
    parser = Parser(
        prog="python -m benchmarks.int8_noise",
        description="Tell what of a recipe's INT8 file makes the noise, on held-out calibration images.",
        parents=[options.recipe_options()],
        epilog=options.EXIT_STATUS,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--images", type=int, default=64, metavar="N", help="held-out images that judge; default %(default)s"
    )
    parser.add_argument(
        "--output", type=Path, metavar="FILE", help="JSON file to write (default: int8-noise.json in the artifacts)"
    )
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return the exit status."""
    return options.run_command(build_parser(), argv, _noise)


def _noise(args: argparse.Namespace) -> dict[str, object]:
    context = options.make_context(args)
    if args.images < 1:
        raise ProjectError(f"Expected --images of at least 1. Received: {args.images}.")
    source = context.root / ONNX["fp32"]
    if not source.is_file():
        raise ProjectError(f"Expected {source}. Received: no such file. Run `{context.command('export')}` first.")
    output = args.output or context.root / "int8-noise.json"
    check_output(output, "--output" if args.output else "--artifacts", "int8-noise.json", (".json",))
    settings = context.recipe.quantize
    images = CalibrationImages(context.images, context.card(), settings, context.recipe.data.max_bad_images)
    model, batches = load_model(source), list(images.batches("decoding"))
    pixels, labels = (array[: args.images] for array in images.held_out())
    held_out = HeldOut.of(model, pixels, labels, settings.batch_size)
    seen, statistics = collect_statistics(model, batches, measured_tensors(model))
    base = calibrate(model, statistics, batches, seen, [STRENGTHS[0] if settings.equalize else None])[0]
    report = NoiseReport(
        recipe=context.recipe.name,
        machine=machine(),
        commit=commit(),
        model_sha256=sha256_file(source),
        scale_images=seen,
        images=len(held_out),
        quantized=len(base.histograms),
        shifted=len(allowed(find_regions(base.model), "always")),
        rows=tuple(measure_noise(base, batches, held_out, settings.rounding_images)),
    )
    write_json(output, to_json(report))
    log.info("%s", output)
    return {"recipe": report.recipe, "output": str(output), "rows": len(report.rows)}


if __name__ == "__main__":
    sys.exit(main())
