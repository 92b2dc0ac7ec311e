"""Proves and measures a model's engines on the GPU of this machine, from artifacts that came from another one.

Needs numpy, TensorRT and cuda-bindings, no network, Python 3.10 or later; PyTorch is timed beside them where it is.
`gpu_evidence` starts it. The options are in `gpu_options`, what is read of the folder in `gpu_folder`, the steps' order
and what fits into the time in `gpu_plan`, what the steps do in `gpu_visit`. What is known is written after every
step (`gpu_record`), so that a crash of a driver or a library loses nothing.
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
from benchmarks.gpu.plan import Plan, make_steps
from benchmarks.gpu.record import Record, last_line
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


class NothingHereError(ProjectError):
    """A machine without an NVIDIA GPU, or without TensorRT."""


def evidence_path(options: Options, gpu: str, trt: TensorRT) -> Path:
    """A file that is not there yet: ``-o``, or ``evidence/<gpu>-<flavour>-<version>.json``; numbered if need be."""
    slug = re.sub(r"[^a-z0-9]+", "-", gpu.lower().replace("nvidia", "")).strip("-")
    wanted = options.output or options.artifacts / FOLDER / f"{slug}-{trt.flavour}-{trt.version}.json"
    others = (wanted.with_name(f"{wanted.stem}-{number}{wanted.suffix}") for number in itertools.count(2))
    try:
        wanted.parent.mkdir(parents=True, exist_ok=True)
        path = next(one for one in itertools.chain([wanted], others) if not one.exists() and _is_ours(one))
    except OSError as error:
        raise ProjectError(
            f"Expected a place for {wanted}. Received: {error.strerror or error}. Name another with -o."
        ) from error
    if path != wanted:
        log.warning("%s is that of an earlier visit and is kept; this one's is %s", wanted.name, path.name)
    return path


def _is_ours(path: Path) -> bool:
    """Take a name by an empty page, unless it is taken: of two visits at once each has its own."""
    try:
        path.with_suffix(".md").touch(exist_ok=False)
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
    """The files of the folder that a visit reads, those that are there."""
    sources = [engine_source(precision, trt.strongly_typed) for precision in options.precisions]
    sources += [ONNX["fp32"]] if options.peers else []
    return [name for name in dict.fromkeys((*sources, REFERENCE)) if (options.artifacts / name).is_file()]


def _say_doubts(model: Model) -> None:
    """Warn of what makes the numbers other than those of the recipe's files."""
    if model.altered:
        log.warning(
            "%s: not as the bundle recorded, and used all the same; the evidence says so", listed(model.altered)
        )
    if not model.as_verified and REFERENCE not in model.altered:
        log.warning("%s is not the file that the verify stage wrote; the evidence says so", REFERENCE)
    if not model.own_thresholds:
        log.warning("the folder has no verdict (%s), so the default thresholds judge; the evidence says so", PARITY)


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
        ProjectError: a damaged verdict, or the disk did not take the results.
    """
    thresholds = read_thresholds(options.artifacts)
    path = evidence_path(options, status.devices[0].name, trt)
    record = Record(path, first_evidence(options, reference, status, trt))
    log.info("writing to %s, and to %s beside it, after every step", path, path.with_suffix(".md").name)
    _say_doubts(record.evidence.model)
    seconds = None if options.minutes is None else options.minutes * 60
    try:
        with record.watched(seconds):
            plan = Plan(options, trt.flavour, trt.strongly_typed)
            make_steps(plan.steps(Visit(plan, reference, thresholds, trt, plans, record)), record, seconds)
    except KeyboardInterrupt:
        record.close("interrupted")
    else:
        record.close("finished")
    return record


def _visit(options: Options) -> Record:
    """Look for the GPU, and gather.

    Raises:
        NothingHereError: no GPU, or no TensorRT.
        ProjectError: bad input.
    """
    check_artifacts(options)
    reference = read_reference(options.artifacts)
    status = driver_status()
    trt = find_tensorrt(options.flavour) if status else None  # without a driver some versions crash when they are used
    if trt is None:
        why = status.reason if not status else "; ".join(why_missing().values())
        raise NothingHereError(
            f"Expected an NVIDIA GPU and TensorRT. Received: {why}. Nothing was measured: run it where both are."
        )
    refuse_missing_sources(options, f"{trt.flavour} {trt.version}", trt.strongly_typed)
    with tempfile.TemporaryDirectory() as temporary:
        return gather(options, reference, options.plans or Path(temporary), status, trt)


def main(argv: Sequence[str] | None = None) -> int:
    """Gather evidence; returns the exit status, which is in the last line that is printed as well."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    try:
        options = read_options(build_parser().read(sys.argv[1:] if argv is None else argv))
        if options.dry_run:
            print("\n".join(foresee(options)))
            print(last_line(None, DONE, ""))
            return DONE
        record = _visit(options)
    except NothingHereError as error:
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
    """Say how a visit ended; returns the exit status."""
    evidence = record.evidence
    for failure in evidence.failures:
        log.error("failed: %s", failure)
    status, error = (FAILED, evidence.failures[0]) if evidence.failures else (DONE, "")
    if evidence.state == "interrupted":
        status, error = INTERRUPTED, f"Interrupted; what was known is in {record.path}."
        log.error("%s", error)
    elif not evidence.engines:
        status = FAILED
        error = (
            f"Expected an engine at least. Received: none, so nothing was measured. Why is in {record.path}; where "
            "time was too short, give it more --minutes or a lower --level."
        )
        log.error("%s", error)
    print(target_table(evidence.targets))
    print(last_line(record, status, error))
    return status
