"""A row of the accuracy benchmark: a file's logits on the test images, compared with Keras'."""

import math
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto

from benchmarks.int8_steps import Made
from benchmarks.peers.quantizers.tools import Share, placement
from export.fp16.convert import has_half
from export.int8.fp16_search import emulate_half
from export.int8.report import CalibrationReport
from export.int8.simulate import Judged, simulate
from export.metrics.distances import Comparison, compare
from export.records import to_json
from export.tensorrt.build import build_engine
from export.tensorrt.sidecar import BatchProfile
from pipeline.artifacts.machine import Machine
from pipeline.runners.onnxruntime import OnnxRunner
from pipeline.workflow.environment import choose_tensorrt

SCHEMA = 2
_BATCH = 16
# Of a `Comparison`; what a verdict measures beside these is not part of the published records.
_RECORDED = (
    *("images", "max_abs", "relative_error", "sqnr_db", "cosine", "top1_agreement", "agreement_interval", "finite"),
    *("reference_accuracy", "candidate_accuracy", "accuracy_drop", "accuracy_drop_interval", "mcnemar"),
)
_NOISE = ("sqnr_db", "median_db", "low_db", "worst_db")


@dataclass(frozen=True)
class AccuracyRow:
    """One candidate on the test images.

    Attributes:
        name: of the candidate.
        comparison: of its logits with Keras', computed node by node, with the spread over the images.
        fused: the same comparison, with Q/DQ pairs fused as in an INT8 engine; None for the files of methods and steps.
        convolutions: how many convolutions are in INT8, of how many.
        bytes: size of the ONNX file.
        reference_top5: share of the labels among Keras' best five classes; None with five classes or fewer.
        candidate_top5: share of the labels among the candidate's best five classes.
        half: the same comparison, with every FP16 value rounded; None where the file has none, and for the files of
            methods, of peers, and of steps that turn something off.
        made: the search that made it; None where the file is that of the artifacts, of a peer or of a method.
        plan_bytes: size of its TensorRT engine, or why there is none; None where no engine was built.
    """

    name: str
    comparison: Judged
    fused: Comparison | None
    convolutions: Share
    bytes: int
    reference_top5: float | None
    candidate_top5: float | None
    half: Judged | None = None
    made: Made | None = None
    plan_bytes: int | str | None = None

    def to_dict(self) -> dict[str, object]:
        """Return the row as JSON types, with the fields of the comparison beside the others."""
        fused = None if self.fused is None else self.fused.to_dict()
        return {
            "name": self.name,
            **{key: value for key, value in self.comparison.to_dict().items() if key in _RECORDED},
            **_noise(self.comparison),
            "int8_convolutions": self.convolutions.int8,
            "convolutions": self.convolutions.of,
            "bytes": self.bytes,
            "reference_top5": self.reference_top5,
            "candidate_top5": self.candidate_top5,
            "fused": None if fused is None else {key: fused[key] for key in ("sqnr_db", "top1_agreement")},
            "half": None if self.half is None else {**_noise(self.half), "top1_agreement": self.half.top1_agreement},
            "chosen": None if self.made is None else to_json(self.made.chosen),
            "seconds": None if self.made is None else self.made.seconds,
            "peak_memory_mib": None if self.made is None else self.made.peak_memory_mib,
            **({} if self.plan_bytes is None else {"plan_bytes": self.plan_bytes}),
        }

    def __str__(self) -> str:
        """Return the row as a line of text."""
        comparison = self.comparison
        return (
            f"{self.name}: SQNR {comparison.sqnr_db:.1f} dB (median image {comparison.median_db:.1f}, 5 % below "
            f"{comparison.low_db:.1f}, worst {comparison.worst_db:.1f}), agreement {comparison.top1_agreement:.2%}, "
            f"accuracy {comparison.candidate_accuracy:.2%} (Keras {comparison.reference_accuracy:.2%}), "
            f"{self.convolutions.int8} of {self.convolutions.of} convolutions in INT8"
        )


def _noise(judged: Judged) -> dict[str, float | None]:
    """Return the noise over all images and of single ones, dB; None where it is not finite."""
    values = ((name, float(getattr(judged, name))) for name in _NOISE)
    return {name: value if math.isfinite(value) else None for name, value in values}


@dataclass(frozen=True, kw_only=True)
class AccuracyReport:
    """The rows of all candidates, and what they were measured on.

    Attributes:
        schema: of this file.
        recipe: name of the recipe.
        machine: on which the command ran.
        commit: of this code; None outside a repository.
        model_sha256: of the FP32 ONNX file.
        test_images: number of test images.
        classes: number of classes.
        calibration: of the INT8 file as shipped.
        seconds: of the quantize stage, and with the methods of each pass over the calibration images.
        peak_memory_mib: of these passes; None where there were none, or the system does not report it.
        peers: name to the content of the JSON file beside a peer's file.
        rows: a row for each candidate.
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


def judge_file(
    name: str, path: Path, pixels: np.ndarray, labels: np.ndarray, keras: np.ndarray, *, whole: bool, half: bool
) -> AccuracyRow:
    """Compare a candidate with Keras.

    Args:
        name: of the row.
        path: of the ONNX file.
        pixels: uint8 (N, height, width, 3) RGB.
        labels: int64 (N,).
        keras: logits, float32 (N, classes).
        whole: whether it is computed with fused pairs, too, and its engine is built to measure its size.
        half: whether it is computed with every FP16 value rounded, too.
    """
    logits = _logits(path, pixels, exact=True)
    model = onnx.load(path)
    convolutions = placement(model).convolutions
    rounded = simulate(emulate_half(model), pixels, _BATCH) if half and has_half(model) else None
    return AccuracyRow(
        name=name,
        comparison=Judged.of(keras, logits, labels),
        fused=compare(keras, _logits(path, pixels, exact=False), labels) if whole else None,
        convolutions=convolutions,
        bytes=path.stat().st_size,
        reference_top5=_top5(keras, labels),
        candidate_top5=_top5(logits, labels),
        half=None if rounded is None else Judged.of(keras, rounded, labels),
        plan_bytes=_plan_bytes(path, convolutions.int8) if whole else None,
    )


def _logits(path: Path, pixels: np.ndarray, exact: bool) -> np.ndarray:
    with OnnxRunner(path, exact=exact, fuse_int8=not exact, max_batch=_BATCH) as runner:
        return runner.infer(pixels).logits


def _top5(logits: np.ndarray, labels: np.ndarray) -> float | None:
    if logits.shape[1] <= 5:
        return None
    return float((np.argpartition(-logits, 5, axis=1)[:, :5] == labels[:, None]).any(axis=1).mean())


def _plan_bytes(path: Path, int8: int) -> int | str:
    """Build the TensorRT engine and return its size in bytes, or why it cannot be built."""
    half = any(tensor.data_type == TensorProto.FLOAT16 for tensor in onnx.load(str(path)).graph.initializer)
    precision = "int8" if int8 else "fp16" if half else "fp32"
    trt, why = choose_tensorrt("auto")
    if trt is None:
        return why
    with tempfile.TemporaryDirectory() as folder:
        try:
            return build_engine(
                path, Path(folder) / "candidate.plan", precision=precision, profile=BatchProfile(1, 8, 32), trt=trt
            ).plan_bytes
        except Exception as error:  # a peer's file may hold anything; the row keeps the reason
            return f"{trt.flavour} {trt.version} does not build it: {str(error).splitlines()[0][:200]}"
