"""Proves and measures a model's engines on the GPU of this machine, from artifacts that came from another one.

Needs numpy, TensorRT and cuda-bindings, no network, Python 3.10 or later; PyTorch is timed beside them where it is.
The options are in `gpu_options`, the steps in `gpu_visit`, their order and their seconds in `gpu_steps`. What is known
is written after every step (`gpu_record`), so that a crash of a driver or a library loses nothing.
"""

from __future__ import annotations

import faulthandler
import json
import logging
import re
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from benchmarks.gpu_options import Options, build_parser, check_artifacts, read_options
from benchmarks.gpu_record import Record
from benchmarks.gpu_steps import make_steps
from benchmarks.gpu_targets import judge_targets, target_table
from benchmarks.gpu_visit import Visit
from benchmarks.telemetry import commit
from export.bounded_json import parse_json
from export.capabilities import TensorRT, find_tensorrt, why_missing
from export.driver import DriverStatus, driver_status
from export.errors import ExportError
from pipeline.errors import DataError, PipelineError
from pipeline.float_noise import noise_of
from pipeline.gpu_evidence import FOLDER, Gpu, GpuEvidence, Model
from pipeline.layout import KERAS, ONNX, PARITY, REFERENCE, engine_source
from pipeline.manifest import as_recorded, read_manifest
from pipeline.npz_files import read_arrays
from pipeline.parity import Reference
from pipeline.parity_report import read_parity
from pipeline.recipe import VerifyThresholds

log = logging.getLogger("benchmarks.gpu")

DONE, FAILED, BAD_INPUT, NO_GPU, INTERRUPTED = 0, 1, 2, 3, 130


def read_reference(artifacts: Path) -> Reference:
    """Read Keras' answers, which the verify stage of another machine wrote.

    Raises:
        PipelineError: they are not there, or are not such a file.
    """
    path = artifacts / REFERENCE
    try:
        held = read_arrays(path, ("meta", "pixels", "labels", "logits"))
        meta = parse_json(held["meta"].tobytes(), "meta")
        _refuse_other_arrays(held["pixels"], held["labels"], held["logits"])
        if not isinstance(sha256 := meta["model_sha256"], str):
            raise ValueError(f"the model's sha256 is {sha256!r:.80}")
        return Reference(KERAS, sha256, held["pixels"], held["labels"], held["logits"], noise_of(meta))
    except (OSError, ValueError, KeyError, TypeError, DataError) as error:
        raise PipelineError(
            f"Expected Keras' answers in {path}. Received: {error}. Run the recipe's verify stage, then bring its "
            "artifacts here: python -m pipeline bundle."
        ) from error


def as_verified(artifacts: Path) -> bool:
    """Whether Keras' answers are the very file that the verify stage wrote.

    Others are taken too, as a visit may bring fewer images to travel lighter, and the evidence says so.
    """
    path = artifacts / REFERENCE
    return read_manifest(path.parent) is not None and as_recorded(path)


def _refuse_other_arrays(pixels: np.ndarray, labels: np.ndarray, logits: np.ndarray) -> None:
    """Refuse what no verify stage writes before a GPU spends its time on it."""
    images = len(pixels) if pixels.ndim == 4 else 0
    fits = images > 0 and pixels.shape[3] == 3 and pixels.dtype == np.uint8
    fits &= labels.shape == (images,) and np.issubdtype(labels.dtype, np.integer)
    fits &= logits.ndim == 2 and len(logits) == images and logits.size > 0 and np.issubdtype(logits.dtype, np.floating)
    if not fits:
        shapes = ", ".join(f"{name} {one.dtype} {one.shape}" for name, one in
                           (("pixels", pixels), ("labels", labels), ("logits", logits)))  # fmt: skip
        raise ValueError(f"images, classes and answers that do not go together: {shapes}")


def read_thresholds(artifacts: Path) -> VerifyThresholds:
    """Read what the recipe asked of each precision, from the verdict of its verify stage; without one the defaults.

    Raises:
        PipelineError: the verdict is damaged.
    """
    path = artifacts / PARITY
    asked = read_parity(path).thresholds if path.is_file() else {}
    return VerifyThresholds(**{name: limits for name, limits in asked.items() if name in ONNX})


def evidence_path(options: Options, gpu: str, trt: TensorRT) -> Path:
    """A file that is not there yet: ``-o``, or ``evidence/<gpu>-<flavour>-<version>.json``; numbered if need be."""
    slug = re.sub(r"[^a-z0-9]+", "-", gpu.lower().replace("nvidia", "")).strip("-")
    wanted = options.output or options.artifacts / FOLDER / f"{slug}-{trt.flavour}-{trt.version}.json"
    path, number = wanted, 1
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        while path.exists() or not _is_ours(path.with_suffix(".md")):
            number += 1
            path = wanted.with_name(f"{wanted.stem}-{number}{wanted.suffix}")
    except OSError as error:
        raise PipelineError(
            f"Expected a place for {path}. Received: {error.strerror or error}. Name another with -o."
        ) from error
    if path != wanted:
        log.warning("%s is that of an earlier visit and is kept; this one's is %s", wanted.name, path.name)
    return path


def _is_ours(path: Path) -> bool:
    """Take a name by an empty page, unless it is taken: of two visits at once each has its own."""
    try:
        path.open("xb").close()
    except FileExistsError:
        return False
    return True


def first_evidence(options: Options, reference: Reference, status: DriverStatus, trt: TensorRT) -> GpuEvidence:
    """What is known before the first step."""
    gpu = status.devices[0]
    height, width = reference.pixels.shape[1:3]
    return GpuEvidence(
        date=time.strftime("%Y-%m-%dT%H:%MZ", time.gmtime()),
        commit=options.commit or commit(),
        state="running",
        gpu=Gpu(gpu.name, gpu.compute_capability, status.driver_version, status.cuda_version),
        flavour=trt.flavour,
        tensorrt_version=trt.version,
        machine={},
        model=Model(
            name=options.artifacts.resolve().name,
            keras_sha256=reference.sha256,
            size=(height, width),
            classes=reference.logits.shape[1],
            test_images=len(reference.pixels),
            as_verified=as_verified(options.artifacts),
        ),
        asked=options.described(),
    )


def gather(options: Options, reference: Reference, plans: Path, status: DriverStatus, trt: TensorRT) -> Record:
    """Build, compare, time and check, as far as the time goes.

    Args:
        options: of the command.
        reference: Keras' answers.
        plans: folder for the engines.
        status: of the driver.
        trt: the library.

    Returns:
        Record: finished, or interrupted from the keyboard.

    Raises:
        PipelineError: a damaged verdict, or the disk did not take the results.
    """
    thresholds = read_thresholds(options.artifacts)
    path = evidence_path(options, status.devices[0].name, trt)
    record = Record(path, first_evidence(options, reference, status, trt))
    log.info("writing to %s, and to %s beside it, after every step", path, path.with_suffix(".md").name)
    if not record.evidence.model.as_verified:
        log.warning("%s is not the file that the verify stage wrote; the evidence says so", REFERENCE)
    seconds = None if options.minutes is None else options.minutes * 60
    try:
        with record.watched(seconds):
            make_steps(Visit(options, reference, thresholds, trt, plans, record).steps(), record, seconds)
    except KeyboardInterrupt:
        record.close("interrupted")
    else:
        record.close("finished")
    return record


def _refuse_missing_sources(options: Options, trt: TensorRT) -> None:
    """Refuse precisions that were named and have no file for this TensorRT."""
    wanted = [engine_source(precision, trt.strongly_typed) for precision in options.precisions]
    absent = [name for name in wanted if not (options.artifacts / name).is_file()]
    if absent and (options.named or len(absent) == len(wanted)):
        raise PipelineError(
            f"Expected {', '.join(absent)} in {options.artifacts}, for {trt.flavour} {trt.version}. Received: no such "
            f"file. {_remedy(trt)}, and bring its artifacts here, or name other precisions."
        )


def _remedy(trt: TensorRT) -> str:
    """What makes the ONNX files for this TensorRT."""
    key = "" if trt.strongly_typed else ", with quantize.tensorrt8: true"
    return f"Run the recipe, verify included{key}"


def main(argv: Sequence[str] | None = None) -> int:
    """Gather evidence; returns the exit status."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    args = build_parser().parse_args(argv)
    try:
        options = read_options(args)
        check_artifacts(options)
        reference = read_reference(options.artifacts)
    except PipelineError as error:
        log.error("%s", error)
        return BAD_INPUT
    status = driver_status()
    trt = find_tensorrt(options.flavour) if status else None  # without a driver some versions crash when they are used
    if trt is None:
        why = status.reason if not status else "; ".join(why_missing().values())
        log.error(
            "Expected an NVIDIA GPU and TensorRT. Received: %s. Nothing was measured: run it where both are.", why
        )
        print(target_table(judge_targets((), None, None, False)))
        return NO_GPU
    try:
        _refuse_missing_sources(options, trt)
        with tempfile.TemporaryDirectory() as temporary:
            record = gather(options, reference, options.plans or Path(temporary), status, trt)
    except (PipelineError, ExportError) as error:
        log.error("%s", error)
        return BAD_INPUT
    except KeyboardInterrupt:
        log.error("interrupted before the first step")
        return INTERRUPTED
    evidence = record.evidence
    for failure in evidence.failures:
        log.error("failed: %s", failure)
    print(target_table(evidence.targets))
    verdict = evidence.parity.verdict if evidence.parity else None
    failed = len(evidence.failures)
    print(json.dumps({"output": str(record.path), "state": evidence.state, "parity": verdict, "failed": failed}))
    if evidence.state == "interrupted":
        log.error("interrupted; what was known is in %s", record.path)
        return INTERRUPTED
    if not evidence.engines:
        log.error(
            "Expected an engine at least. Received: none, so nothing was measured. Why is in %s; where time was too "
            "short, give it more --minutes or a lower --level.",
            record.path,
        )
    return FAILED if failed or not evidence.engines else DONE


if __name__ == "__main__":
    faulthandler.enable()  # a library that crashes the process shows where it was called
    sys.exit(main())
