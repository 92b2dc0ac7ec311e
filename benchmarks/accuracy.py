"""Compare all ways to lower precision on a recipe's test images: ``python -m benchmarks.accuracy``.

The candidates are FP32, FP16, INT8 as the recipe ships it, INT8 with each step of the search alone and with all of
them, INT8 files that other quantizers made from the same model and images, and with ``--methods`` INT8 by each
calibration method. The test images only judge; nothing is selected by them.

ONNX Runtime's CPU computes FP16 nodes in float32, so a file with FP16 parts shows the rounding of its constants alone.
An FP16 trunk rounds its activations, too: ``half`` has the same file with every FP16 value rounded, see
`export.int8.fp16_search.emulate_half`. A GPU that fuses the trunk into INT8 kernels lies between the two.
"""

import argparse
import logging
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TypeVar

import numpy as np

from benchmarks.accuracy_row import AccuracyReport, judge_file
from benchmarks.int8_steps import Made, forget_peak, make_steps
from benchmarks.telemetry import commit, machine
from export.calibration import collect_statistics
from export.errors import ProjectError
from export.files import replacing_file
from export.int8.calibrated import calibrate
from export.int8.equalization import STRENGTHS
from export.int8.placement import measured_tensors
from export.int8.qdq import quantize
from export.int8.report import CalibrationReport
from export.int8.scales import METHODS, Scales
from export.int8.simulate import HeldOut
from export.onnx_passes.file import load_model, save_model
from export.records import to_json
from export.words import count
from pipeline.artifacts.archives import read_arrays
from pipeline.artifacts.files import read_json, sha256_file, write_json
from pipeline.artifacts.machine import peak_memory_mib
from pipeline.artifacts.manifest import read_manifest
from pipeline.artifacts.output import check_output
from pipeline.artifacts.paths import ONNX, REFERENCE, TENSORRT8
from pipeline.artifacts.stage_files import read_calibration
from pipeline.cli import options
from pipeline.quantization.quantize import CalibrationImages, search_options
from pipeline.runners.onnxruntime import OnnxRunner
from pipeline.terminal.command_line import Parser
from pipeline.terminal.console import progress_bar
from pipeline.workflow.context import Context

log = logging.getLogger("benchmarks.accuracy")
T = TypeVar("T")

_PEER = "peer: "
_NOT_EQUALIZED = ("minmax", "mse")  # the simplest and the usual choice for ResNets: enough to show the gain
EXAMPLES = """examples:
  python -m benchmarks.accuracy -c configs/digits.yaml
  python -m benchmarks.accuracy -c configs/imagenet.yaml --set data.path=/data/imagenet \\
      --peer "modelopt max=peers/modelopt-max.onnx" --output benchmarks/results/int8-imagenet.json
"""


def measure_accuracy(context: Context, peers: Mapping[str, Path], methods: bool = False) -> AccuracyReport:
    """Compare every candidate with Keras.

    Args:
        context: of the recipe, which was run up to ``verify``.
        peers: name to INT8 ONNX file of another quantizer.
        methods: whether each method of scales has a row of its own, too. Defaults to False.

    Raises:
        ProjectError: the recipe was not run up to ``verify``, or a peer's file is missing.
        ProjectError: the scales in the artifacts belong to another model, other images or another recipe.
    """
    root = context.root
    for name in (*ONNX.values(), REFERENCE):
        if not (root / name).is_file():
            raise ProjectError(f"Expected {root / name}. Received: no such file. Run `{context.command('run')}` first.")
    for name, path in peers.items():
        if not path.is_file():
            raise ProjectError(f"--peer {name}: expected an ONNX file. Received: {path}, which does not exist.")
    recipe = context.recipe
    images = CalibrationImages(context.images, context.card(), recipe.quantize, recipe.data.max_bad_images)
    # It refuses the scales of another model or of other images.
    Scales.read(root / "quantize/scales.json", images.key(root / ONNX["fp32"]))
    arrays = read_arrays(root / REFERENCE, ("pixels", "labels", "logits"))
    judges = arrays["pixels"], arrays["labels"], arrays["logits"]
    calibration = read_calibration(root / "quantize/calibration.json")
    with tempfile.TemporaryDirectory() as temporary:
        candidates = _shipped(root, calibration) + [(f"{_PEER}{name}", path) for name, path in peers.items()]
        by_method: list[tuple[str, Path]] = []
        seconds: dict[str, float] = {}
        peak = None
        if methods:
            forget_peak()
            by_method, seconds = _by_method(root / ONNX["fp32"], images, Path(temporary))
            peak = peak_memory_mib()  # of decoding, all passes and quantisation, before the candidates run
        if (manifest := read_manifest(root / "quantize")) is not None:
            seconds["quantize stage"] = round(manifest.seconds, 1)
        rows = []
        for name, path in progress_bar(candidates + by_method, desc="  candidates", unit="model"):
            # The engines of the methods differ only in the values of the scales, so their sizes are not measured.
            whole = (name, path) not in by_method
            rows.append(judge_file(name, path, *judges, whole=whole, half=whole and not name.startswith(_PEER)))
            log.info("  %s", rows[-1])
        for made in _steps(context, images, Path(temporary), mixed=bool(calibration.kept)):
            rows.append(replace(judge_file(made.name, made.path, *judges, whole=False, half=made.complete), made=made))
            log.info("  %s", rows[-1])
    return AccuracyReport(
        recipe=context.recipe.name,
        machine=machine(),
        commit=commit(),
        model_sha256=sha256_file(root / ONNX["fp32"]),
        test_images=len(arrays["labels"]),
        classes=int(arrays["logits"].shape[1]),
        calibration=calibration,
        seconds=seconds,
        peak_memory_mib=peak,
        peers={
            name: read_json(sidecar) for name, path in peers.items() if (sidecar := path.with_suffix(".json")).is_file()
        },
        rows=tuple(rows),
    )


def _shipped(root: Path, calibration: CalibrationReport) -> list[tuple[str, Path]]:
    floats = f"{count(len(calibration.kept), 'layer')} in float" if calibration.kept else "throughout"
    titles = {"fp32": "FP32", "fp16": "FP16", "int8": f"INT8 as shipped, {floats}"}
    older = [(f"{titles[precision]}, for TensorRT 8.6", root / name) for precision, name in TENSORRT8.items()]
    current = [(titles[precision], root / name) for precision, name in ONNX.items()]
    return current + [(title, path) for title, path in older if path.is_file()]


def _steps(context: Context, images: CalibrationImages, folder: Path, *, mixed: bool) -> Iterator[Made]:
    """Make the INT8 files of the steps of the search, see `benchmarks.int8_steps.make_steps`."""
    model = load_model(context.root / ONNX["fp32"])
    held_out = HeldOut.of(model, *images.held_out(), context.recipe.quantize.batch_size)
    thresholds = context.recipe.verify.thresholds
    asked = search_options(context.recipe.quantize, thresholds.fp16, thresholds.int8)
    return make_steps(model, images.batches, held_out, asked, folder, mixed=mixed)


def _by_method(
    source: Path, images: CalibrationImages, folder: Path
) -> tuple[list[tuple[str, Path]], dict[str, float]]:
    """Write INT8 models by each method, equalized, and by some not equalized; return them and the passes' seconds."""
    model = load_model(source)
    batches = list(images.batches("decoding"))  # decoded before, so that the seconds cover the passes alone
    seconds: dict[str, float] = {}

    def timed(name: str, call: Callable[[], T]) -> T:
        start = time.perf_counter()
        result = call()
        seconds[name] = round(time.perf_counter() - start, 2)
        return result

    timed("plain forward pass", lambda: _forward(source, batches))
    seen, statistics = timed("first pass: ranges", lambda: collect_statistics(model, batches, measured_tensors(model)))
    files: list[tuple[str, Path]] = []
    strengths = (STRENGTHS[0], None)
    bases = timed("second pass: histograms", partial(calibrate, model, statistics, batches, seen, strengths))
    for base in bases:
        title = "" if base.strength else ", not equalized"
        for method in METHODS if base.strength else _NOT_EQUALIZED:
            files.append((f"INT8 throughout, {method}{title}", folder / f"method-{len(files)}.onnx"))
            save_model(quantize(base.model, base.scales(method)).model, files[-1][1])
    return files, seconds


def _forward(path: Path, batches: Sequence[np.ndarray]) -> None:
    with OnnxRunner(path) as runner:
        for batch in batches:
            runner.infer(batch)


def build_parser() -> Parser:
    """Return the parser of the command line."""
    parser = Parser(
        prog="python -m benchmarks.accuracy",
        description="Compare FP16, INT8 by each step of the search, and peers' INT8 files on a recipe's test images.",
        parents=[options.recipe_options()],
        epilog=f"{EXAMPLES}\n{options.EXIT_STATUS}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--peer", action="append", default=[], metavar="NAME=FILE", help="an INT8 ONNX file of another quantizer"
    )
    parser.add_argument(
        "--methods", action="store_true", help="a row for each method of scales, too: about twice the time"
    )
    parser.add_argument(
        "--pixels", type=Path, metavar="FILE", help="only write the calibration images that peers take, as .npz"
    )
    parser.add_argument(
        "--output", type=Path, metavar="FILE", help="JSON file to write (default: accuracy.json in the artifacts)"
    )
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return the exit status."""
    return options.run_command(build_parser(), argv, _accuracy)


def _accuracy(args: argparse.Namespace) -> dict[str, object]:
    context = options.make_context(args)
    if args.pixels is not None:
        return _write_pixels(context, args.pixels)
    peers = {}
    for entry in args.peer:
        name, equals, path = entry.partition("=")
        if not equals or not name or not path:
            raise ProjectError(f"Expected --peer NAME=FILE. Received: --peer {entry!r}.")
        peers[name] = Path(path)
    output = args.output or context.root / "accuracy.json"
    check_output(output, "--output" if args.output else "--artifacts", "accuracy.json", (".json",))
    report = measure_accuracy(context, peers, args.methods)
    write_json(output, to_json(report))
    log.info("%s", output)
    return {"recipe": context.recipe.name, "output": str(output), "rows": len(report.rows)}


def _write_pixels(context: Context, path: Path) -> dict[str, object]:
    """Write the images that give our scales, so that peers get the same: the array ``pixels``, uint8 NHWC."""
    check_output(path, "--pixels", "pixels.npz", (".npz",))
    recipe = context.recipe
    images = CalibrationImages(context.images, context.card(), recipe.quantize, recipe.data.max_bad_images)
    pixels = np.concatenate(list(images.batches("decoding")))
    with replacing_file(path) as temporary, temporary.open("wb") as file:
        np.savez(file, pixels=pixels)
    log.info("%s: %s", path, count(len(pixels), "calibration image"))
    return {"recipe": recipe.name, "output": str(path), "images": len(pixels)}


if __name__ == "__main__":
    sys.exit(main())
