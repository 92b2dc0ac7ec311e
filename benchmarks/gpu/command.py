"""Verify and measure a model's engines on the GPU of this machine, from the artifacts of another machine.

`benchmarks.gpu_evidence` starts it. It needs Python 3.10, numpy, TensorRT and cuda-bindings, and no network; PyTorch is
timed too where it is installed. The results are written after every step, so that a crash of a driver or a library
loses nothing.
"""

import itertools
import logging
import re
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from benchmarks.gpu.folder import altered_files, as_verified, foresee, has_verdict, read_reference, read_thresholds
from benchmarks.gpu.markdown import target_table
from benchmarks.gpu.options import Options, build_parser, check_artifacts, read_options, refuse_missing_sources
from benchmarks.gpu.plan import Plan
from benchmarks.gpu.record import Record, last_line
from benchmarks.gpu.steps import run_steps
from benchmarks.gpu.visit import Visit
from benchmarks.telemetry import commit
from export.errors import ProjectError
from export.tensorrt.driver import DriverStatus, driver_status
from export.tensorrt.library import TensorRT, find_tensorrt, why_missing
from export.words import listed
from pipeline.artifacts.engines import engine_source
from pipeline.artifacts.gpu_evidence import FOLDER, Gpu, GpuEvidence, Model
from pipeline.artifacts.machine import Machine
from pipeline.artifacts.paths import ONNX, PARITY, REFERENCE
from pipeline.verification.parity import Reference

log = logging.getLogger("benchmarks.gpu")

DONE, FAILED, BAD_INPUT, NO_GPU, INTERRUPTED = 0, 1, 2, 3, 130


class NoGpuError(ProjectError):
    """A machine without an NVIDIA GPU, or without TensorRT."""


def evidence_path(options: Options, gpu: str, trt: TensorRT) -> Path:
    """Reserve a new file: ``-o``, or ``evidence/<gpu>-<flavour>-<version>.json``, with a number where it exists."""
    slug = re.sub(r"[^a-z0-9]+", "-", gpu.lower().replace("nvidia", "")).strip("-")
    first = options.output or options.artifacts / FOLDER / f"{slug}-{trt.flavour}-{trt.version}.json"
    others = (first.with_name(f"{first.stem}-{number}{first.suffix}") for number in itertools.count(2))
    try:
        first.parent.mkdir(parents=True, exist_ok=True)
        path = next(path for path in itertools.chain([first], others) if not path.exists() and _reserve(path))
    except OSError as error:
        raise ProjectError(
            f"Expected a place for {first}. Received: {error.strerror or error}. Name another with -o."
        ) from error
    if path != first:
        log.warning("%s is that of an earlier visit and is kept; this one's is %s", first.name, path.name)
    return path


def _reserve(path: Path) -> bool:
    """Create an empty page of this name; False where it exists, so that two visits at once have two files."""
    try:
        path.with_suffix(".md").touch(exist_ok=False)
    except FileExistsError:
        return False
    return True


def first_evidence(options: Options, reference: Reference, status: DriverStatus, trt: TensorRT) -> GpuEvidence:
    """Return the evidence before the first step."""
    gpu = status.devices[0]
    height, width = reference.pixels.shape[1:3]
    return GpuEvidence(
        date=time.strftime("%Y-%m-%dT%H:%MZ", time.gmtime()),
        commit=options.commit or commit(),
        state="running",
        gpu=Gpu(gpu.name, gpu.compute_capability, status.driver_version, status.cuda_version),
        flavour=trt.flavour,
        tensorrt_version=trt.version,
        machine=Machine(),
        model=Model(
            name=options.artifacts.resolve().name,
            keras_sha256=reference.sha256,
            size=(height, width),
            classes=reference.logits.shape[1],
            test_images=len(reference.pixels),
            as_verified=as_verified(options.artifacts),
            altered=altered_files(options.artifacts, _used(options, trt)),
            own_thresholds=has_verdict(options.artifacts),
        ),
        asked=options.described(),
    )


def _used(options: Options, trt: TensorRT) -> list[str]:
    """Return the files of the folder that a visit reads and that exist."""
    sources = [engine_source(precision, trt.strongly_typed) for precision in options.precisions]
    names = (*sources, *([ONNX["fp32"]] if options.peers else []), REFERENCE)
    return [name for name in dict.fromkeys(names) if (options.artifacts / name).is_file()]


def _warn_of_differences(model: Model) -> None:
    """Warn where the files or thresholds are not those of the recipe."""
    for differs, warning in (
        (bool(model.altered), f"{listed(model.altered)}: not as the bundle recorded, and used all the same"),
        (
            not model.as_verified and REFERENCE not in model.altered,
            f"{REFERENCE} is not the file that the verify stage wrote",
        ),
        (not model.own_thresholds, f"the folder has no verdict ({PARITY}), so the default thresholds judge"),
    ):
        if differs:
            log.warning("%s; the evidence says so", warning)


def gather(options: Options, reference: Reference, plans: Path, status: DriverStatus, trt: TensorRT) -> Record:
    """Build, compare, time and check engines, within the time limit.

    Args:
        options: of the command.
        reference: Keras' outputs.
        plans: folder for the engines.
        status: of the driver.
        trt: the library.

    Returns:
        Record: finished, or interrupted from the keyboard.

    Raises:
        ProjectError: the verdict is damaged, or the results cannot be written.
    """
    thresholds = read_thresholds(options.artifacts)
    path = evidence_path(options, status.devices[0].name, trt)
    record = Record(path, first_evidence(options, reference, status, trt))
    log.info("writing to %s, and to %s beside it, after every step", path, path.with_suffix(".md").name)
    _warn_of_differences(record.evidence.model)
    seconds = None if options.minutes is None else options.minutes * 60
    try:
        with record.watched(seconds):
            plan = Plan(options, trt.flavour, trt.strongly_typed)
            run_steps(plan.steps(Visit(plan, reference, thresholds, trt, plans, record)), record, seconds)
    except KeyboardInterrupt:
        record.close("interrupted")
    else:
        record.close("finished")
    return record


def _visit(options: Options) -> Record:
    """Look for the GPU and TensorRT, and gather the evidence.

    Raises:
        NothingHereError: no GPU, or no TensorRT.
        ProjectError: bad input.
    """
    check_artifacts(options)
    reference = read_reference(options.artifacts)
    status = driver_status()
    trt = find_tensorrt(options.flavour) if status else None  # some versions crash when used without a driver
    if trt is None:
        why = status.reason if not status else "; ".join(why_missing().values())
        raise NoGpuError(
            f"Expected an NVIDIA GPU and TensorRT. Received: {why}. Nothing was measured: run it where both are."
        )
    refuse_missing_sources(options, f"{trt.flavour} {trt.version}", trt.strongly_typed)
    with tempfile.TemporaryDirectory() as temporary:
        return gather(options, reference, options.plans or Path(temporary), status, trt)


def main(argv: Sequence[str] | None = None) -> int:
    """Gather evidence; return the exit status, which is also in the last printed line."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    try:
        options = read_options(build_parser().read(sys.argv[1:] if argv is None else argv))
        if options.dry_run:
            print("\n".join(foresee(options)))
            print(last_line(None, DONE, ""))
            return DONE
        record = _visit(options)
    except NoGpuError as error:
        return _refused(NO_GPU, str(error))
    except ProjectError as error:
        return _refused(BAD_INPUT, str(error))
    except KeyboardInterrupt:
        return _refused(INTERRUPTED, "Interrupted before the first step.")
    return _ended(record)


def _refused(status: int, why: str) -> int:
    log.error("%s", why)
    print(last_line(None, status, why))
    return status


def _ended(record: Record) -> int:
    """Report how a visit ended and return the exit status."""
    evidence = record.evidence
    for failure in evidence.failures:
        log.error("failed: %s", failure)
    if evidence.state == "interrupted":
        status, error = INTERRUPTED, f"Interrupted; the results so far are in {record.path}."
        log.error("%s", error)
    elif not evidence.engines:
        status = FAILED
        error = (
            "Expected an engine at least. Received: none, so nothing was measured. The reasons are in "
            f"{record.path}; where time was too short, give it more --minutes or a lower --level."
        )
        log.error("%s", error)
    else:
        status, error = (FAILED, evidence.failures[0]) if evidence.failures else (DONE, "")
    print(target_table(evidence.targets))
    print(last_line(record, status, error))
    return status
