"""The command line: ``python -m benchmarks.accuracy`` judges every way to lower precision on a recipe's test images.

FP32, FP16, INT8 by each calibration method, INT8 as the recipe ships it, and INT8 files that other quantizers made of
the same model and images, side by side. The test images select nothing here; they only judge.
"""

import argparse
import logging
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar

import numpy as np
import onnx
from onnx import TensorProto

from benchmarks.peers.quantizers.tools import Share, placement
from benchmarks.telemetry import commit, machine, peak_memory_mib
from export.calibration import collect_statistics
from export.errors import ProjectError
from export.int8.placement import measured_tensors
from export.int8.qdq import quantize
from export.int8.report import CalibrationReport
from export.int8.scales import METHODS, Scales
from export.int8.search import calibrate
from export.metrics.distances import Comparison, compare
from export.onnx_passes.file import load_model, save_model
from export.records import to_json
from export.tensorrt.build import build_engine
from export.tensorrt.sidecar import BatchProfile
from pipeline.artifacts.archives import read_arrays
from pipeline.artifacts.files import read_json, sha256_file, write_json
from pipeline.artifacts.machine import Machine
from pipeline.artifacts.output import check_output
from pipeline.artifacts.paths import ONNX, REFERENCE, TENSORRT8
from pipeline.artifacts.stage_files import read_calibration
from pipeline.cli import options
from pipeline.quantization.quantize import CalibrationImages
from pipeline.runners.onnxruntime import OnnxRunner
from pipeline.terminal.command_line import Parser
from pipeline.terminal.console import progress_bar
from pipeline.workflow.context import Context
from pipeline.workflow.environment import choose_tensorrt

log = logging.getLogger("benchmarks.accuracy")
T = TypeVar("T")

SCHEMA = 1
_NOT_EQUALIZED = ("minmax", "mse")  # the simplest, and what ResNets mostly end up with: enough to show what it brings
EXAMPLES = """examples:
  python -m benchmarks.accuracy -c configs/digits.yaml
  python -m benchmarks.accuracy -c configs/imagenet.yaml --set data.path=/data/imagenet \\
      --peer "modelopt max=peers/modelopt-max.onnx" --output benchmarks/results/int8-imagenet.json
"""


@dataclass(frozen=True)
class AccuracyRow:
    """One candidate on the test images.

    Attributes:
        name: of the candidate.
        comparison: of its logits with Keras', computed node by node.
        fused: the same, with Q/DQ pairs fused as an INT8 engine does.
        convolutions: those in INT8, of all.
        bytes: size of the ONNX file.
        reference_top5: share of the labels among Keras' best five; None with five classes or fewer.
        candidate_top5: among the candidate's.
        plan_bytes: size of its TensorRT engine, or why there is none; None where none was asked for.
    """

    name: str
    comparison: Comparison
    fused: Comparison
    convolutions: Share
    bytes: int
    reference_top5: float | None
    candidate_top5: float | None
    plan_bytes: int | str | None = None

    def to_dict(self) -> dict[str, object]:
        """Return plain JSON types, the comparison's among the others."""
        fused = self.fused.to_dict()
        return {
            "name": self.name,
            **self.comparison.to_dict(),
            "int8_convolutions": self.convolutions.int8,
            "convolutions": self.convolutions.of,
            "bytes": self.bytes,
            "reference_top5": self.reference_top5,
            "candidate_top5": self.candidate_top5,
            "fused": {key: fused[key] for key in ("sqnr_db", "top1_agreement")},
            **({} if self.plan_bytes is None else {"plan_bytes": self.plan_bytes}),
        }

    def __str__(self) -> str:
        """Return the row as a line for a person."""
        found = self.comparison
        return (
            f"{self.name}: SQNR {found.sqnr_db:.1f} dB, agreement {found.top1_agreement:.2%}, "
            f"accuracy {found.candidate_accuracy:.2%} (Keras {found.reference_accuracy:.2%}), "
            f"{self.convolutions.int8} of {self.convolutions.of} convolutions in INT8"
        )


@dataclass(frozen=True, kw_only=True)
class AccuracyReport:
    """Every candidate's row, and what they were measured on.

    Attributes:
        schema: of this file.
        recipe: its name.
        machine: that it ran on.
        commit: of this code; None outside a repository.
        model_sha256: of the FP32 ONNX file.
        test_images: that judged.
        classes: how many the model tells apart.
        calibration: of the INT8 file as shipped.
        seconds: of each pass over the calibration images.
        peak_memory_mib: of all passes; None where the system does not say.
        peers: name to what the JSON beside a peer's file says.
        rows: every candidate.
    """

    schema: int = SCHEMA
    recipe: str
    machine: Machine
    commit: str | None
    model_sha256: str
    test_images: int
    classes: int
    calibration: CalibrationReport
    seconds: Mapping[str, float]
    peak_memory_mib: int | None
    peers: Mapping[str, object]
    rows: tuple[AccuracyRow, ...]


def measure_accuracy(context: Context, peers: Mapping[str, Path]) -> AccuracyReport:
    """Judge every candidate.

    Raises:
        ProjectError: the recipe was not run up to ``verify``, or a peer's file is missing.
        ProjectError: the scales in the artifacts are of another model, other images or another recipe.
    """
    root = context.root
    for name in (*ONNX.values(), REFERENCE):
        if not (root / name).is_file():
            raise ProjectError(f"Expected {root / name}, which does not exist. Run `{context.command('run')}` first.")
    for name, path in peers.items():
        if not path.is_file():
            raise ProjectError(f"--peer {name}: expected an ONNX file. Received: {path}, which does not exist.")
    recipe = context.recipe
    images = CalibrationImages(context.images, context.card(), recipe.quantize, recipe.data.max_bad_images)
    key = images.key(root / ONNX["fp32"])
    Scales.read(root / "quantize/scales.json", key)  # of these images, this model
    held = read_arrays(root / REFERENCE, ("pixels", "labels", "logits"))
    pixels, labels, keras = held["pixels"], held["labels"], held["logits"]
    calibration = read_calibration(root / "quantize/calibration.json")
    with tempfile.TemporaryDirectory() as temporary:
        candidates = _shipped(root, calibration) + [(f"peer: {name}", path) for name, path in peers.items()]
        made, seconds = _by_method(root / ONNX["fp32"], images, calibration.method, Path(temporary))
        peak = peak_memory_mib()  # before the candidates run: decoding, all passes, quantising
        rows = []
        for name, path in progress_bar(candidates + made, desc="  candidates", unit="model"):
            # Engines of all methods are alike but for the values of the scales.
            folder = None if (name, path) in made else Path(temporary)
            rows.append(_row(name, path, pixels, labels, keras, folder))
            log.info("  %s", rows[-1])
    described = {name: path.with_suffix(".json") for name, path in peers.items()}
    return AccuracyReport(
        recipe=context.recipe.name,
        machine=machine(),
        commit=commit(),
        model_sha256=sha256_file(root / ONNX["fp32"]),
        test_images=len(labels),
        classes=int(keras.shape[1]),
        calibration=calibration,
        seconds=seconds,
        peak_memory_mib=peak,
        peers={name: read_json(path) for name, path in described.items() if path.is_file()},
        rows=tuple(rows),
    )


def _shipped(root: Path, calibration: CalibrationReport) -> list[tuple[str, Path]]:
    kept = len(calibration.kept)
    shipped = f"INT8 as shipped, {kept} layers in float" if kept else "INT8 as shipped, throughout"
    titles = {"fp32": "FP32", "fp16": "FP16", "int8": shipped}
    older = [(f"{titles[precision]}, for TensorRT 8.6", root / name) for precision, name in TENSORRT8.items()]
    usual = [(titles[precision], root / name) for precision, name in ONNX.items()]
    return usual + [(title, path) for title, path in older if path.is_file()]


def _by_method(
    source: Path, images: CalibrationImages, shipped: str, folder: Path
) -> tuple[list[tuple[str, Path]], dict[str, float]]:
    """INT8 throughout by each method, equalized, and by some of them not equalized; and the seconds of each pass."""
    model = load_model(source)
    batches = list(images.batches("decoding"))  # decoded before, so that the seconds are of the passes alone
    seconds: dict[str, float] = {}

    def timed(name: str, call: Callable[[], T]) -> T:
        start = time.perf_counter()
        result = call()
        seconds[name] = round(time.perf_counter() - start, 2)
        return result

    timed("plain forward pass", lambda: _forward(source, batches))
    seen, statistics = timed("first pass: ranges", lambda: collect_statistics(model, batches, measured_tensors(model)))
    made: list[tuple[str, Path]] = []
    for title, equalized in (("", True), (", not equalized", False)):
        calibrating = partial(calibrate, model, statistics, batches, seen, equalized=equalized)
        base = timed(f"second pass: histograms{title}", calibrating)
        for method in METHODS if equalized else _NOT_EQUALIZED:
            scales = base.scales(method)
            candidates = [(f"INT8 throughout, {method}{title}", base.model)]
            if equalized and method == shipped:
                errors = timed("third pass: biases", partial(base.bias_errors, scales, batches))
                candidates.append((f"INT8 throughout, {method}, biases corrected", base.corrected(errors)))
            for name, proto in candidates:
                made.append((name, folder / f"{len(made)}.onnx"))
                save_model(quantize(proto, scales)[0], made[-1][1])
    return made, seconds


def _forward(path: Path, batches: Sequence[np.ndarray]) -> None:
    with OnnxRunner(path) as runner:
        for batch in batches:
            runner.infer(batch)


def _row(
    name: str, path: Path, pixels: np.ndarray, labels: np.ndarray, keras: np.ndarray, plans: Path | None
) -> AccuracyRow:
    """Judge a candidate; in the folder ``plans`` its engine is built, None: it is not."""
    logits = _logits(path, pixels, exact=True)
    convolutions = placement(onnx.load(path)).convolutions
    return AccuracyRow(
        name=name,
        comparison=compare(keras, logits, labels),
        fused=compare(keras, _logits(path, pixels, exact=False), labels),
        convolutions=convolutions,
        bytes=path.stat().st_size,
        reference_top5=_top5(keras, labels),
        candidate_top5=_top5(logits, labels),
        plan_bytes=None if plans is None else _plan_bytes(path, convolutions.int8, plans),
    )


def _logits(path: Path, pixels: np.ndarray, exact: bool) -> np.ndarray:
    with OnnxRunner(path, exact=exact, fuse_int8=not exact, max_batch=16) as runner:
        return runner.infer(pixels).logits


def _top5(logits: np.ndarray, labels: np.ndarray) -> float | None:
    if logits.shape[1] <= 5:
        return None
    best = np.argpartition(-logits, 5, axis=1)[:, :5]
    return float((best == labels[:, None]).any(axis=1).mean())


def _plan_bytes(path: Path, int8: int, folder: Path) -> int | str:
    """Size of the TensorRT engine; why there is none otherwise."""
    halves = any(tensor.data_type == TensorProto.FLOAT16 for tensor in onnx.load(str(path)).graph.initializer)
    precision = "int8" if int8 else "fp16" if halves else "fp32"
    trt, why = choose_tensorrt("auto")
    if trt is None:
        return why
    plan = folder / "candidate.plan"
    try:
        build_engine(path, plan, precision=precision, profile=BatchProfile(1, 8, 32), trt=trt)
        return plan.stat().st_size
    except Exception as error:  # a peer's file may be anything; the row says what became of it
        return f"{trt.flavour} {trt.version} does not build it: {str(error).splitlines()[0][:200]}"
    finally:
        for made in folder.glob(f"{plan.stem}.*"):
            made.unlink()


def build_parser() -> Parser:
    """The parser."""
    parser = Parser(
        prog="python -m benchmarks.accuracy",
        description="Judge FP16 and INT8 by every method, and other quantizers' files, on a recipe's test images.",
        parents=[options.recipe_options()],
        epilog=f"{EXAMPLES}\n{options.EXIT_STATUS}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--peer", action="append", default=[], metavar="NAME=FILE", help="an INT8 ONNX file of another quantizer"
    )
    parser.add_argument(
        "--output", type=Path, metavar="FILE", help="where the JSON goes (default: beside the artifacts)"
    )
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Measure; returns the exit status."""
    return options.run_command(build_parser(), argv, _accuracy)


def _accuracy(args: argparse.Namespace) -> dict[str, object]:
    context = options.make_context(args)
    peers = {}
    for entry in args.peer:
        name, equals, path = entry.partition("=")
        if not equals or not name or not path:
            raise ProjectError(f"Expected --peer NAME=FILE. Received: --peer {entry!r}.")
        peers[name] = Path(path)
    output = args.output or context.root / "accuracy.json"
    check_output(output, "--output" if args.output else "--artifacts", "accuracy.json", (".json",))
    report = measure_accuracy(context, peers)
    write_json(output, to_json(report))
    log.info("%s", output)
    return {"recipe": context.recipe.name, "output": str(output), "rows": len(report.rows)}


if __name__ == "__main__":
    sys.exit(main())
