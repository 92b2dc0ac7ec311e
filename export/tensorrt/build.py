"""ONNX to TensorRT engine: a plan, and a sidecar that says what it is.

The types come from the ONNX file (FP16-typed graph, Q/DQ graph); only TensorRT 8.6, which knows no strongly
typed network, gets precision flags. Python 3.10 syntax, the standard library and TensorRT: this also runs on GPU
machines that hold little else.
"""

import contextlib
import hashlib
import logging
import mmap
import os
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from export.errors import ProjectError
from export.records import parse_json
from export.tensorrt import timing_cache
from export.tensorrt.driver import DriverStatus, driver_status
from export.tensorrt.layers import differences, inspect_engine, summarize_listing, unfused
from export.tensorrt.library import INSTALL, TensorRT
from export.tensorrt.network import (
    Progress,
    add_profile,
    check_tensors,
    configure,
    convolution_types,
    count_layers,
    deferred_interrupt,
    make_monitor,
    network_flags,
    parse,
)
from export.tensorrt.options import BuildOptions, described, refuse_unsupported
from export.tensorrt.sidecar import (
    INPUT,
    PRECISIONS,
    AskedLayers,
    BatchProfile,
    FoundLayers,
    Sidecar,
    home_of,
    sha256_file,
    write_plan,
)
from export.wire_format import BYTES, fields, refuse_external_data

log = logging.getLogger(__name__)

METADATA_PROPS = 14  # of ModelProto in ``onnx.proto3``: pairs of a key (1) and a value (2)


class EngineDeviceError(ProjectError):
    """The GPU or driver that this TensorRT needs to build does not exist here: nothing was tried."""


def build_engine(
    onnx_path: str | os.PathLike[str],
    plan_path: str | os.PathLike[str],
    *,
    precision: str,
    profile: BatchProfile,
    trt: TensorRT,
    options: BuildOptions | None = None,
    variant: str | None = None,
    progress: Progress | None = None,
    extra: Mapping[str, Any] | None = None,
) -> Sidecar:
    """Build an engine for an exported classifier and write it with its sidecar.

    Args:
        onnx_path: the graph: "images" uint8 (N, height, width, 3) in, "logits" and "probabilities" out,
            "top_probabilities" and "top_classes" too where it was exported so.
        plan_path: where the plan goes; the sidecar goes beside it, see `sidecar_path`. Not ending in ".json".
        precision: "fp32", "fp16" or "int8": what the graph must hold.
        profile: the batch sizes.
        trt: the library, from `export.tensorrt.library.find_tensorrt`.
        options: how to build. Defaults to `BuildOptions()`.
        variant: name of the batch profile among several, for the sidecar. Defaults to None: there is one.
        progress: called with (phase, steps done, steps), from TensorRT's threads too. Defaults to None.
        extra: what else the sidecar is to hold, above all "classes" and "preprocessing"; it wins over the
            ONNX file's metadata. Defaults to None.

    Returns:
        Sidecar: as written.

    Raises:
        EngineDeviceError: this TensorRT needs a GPU and there is none.
        ProjectError: TensorRT refused, in its own words, or the disk did. Nothing half-written is left.
    """
    source, plan_file, options = Path(onnx_path), Path(plan_path), options or BuildOptions()
    _check_request(source, plan_file, precision)
    driver = driver_status()
    _require_device(trt, driver, options.targets)
    refuse_unsupported(options, trt, driver)
    wanted = _targets(trt, options.targets, driver)
    onnx_sha256 = sha256_file(source)
    started = time.monotonic()

    with deferred_interrupt() as interrupt:
        logger = trt.logger()
        builder = trt.module.Builder(logger)
        network = builder.create_network(network_flags(trt))
        parser = parse(trt, network, logger, source)
        tensors = check_tensors(network, profile, source)
        network_layers = count_layers(trt, network, precision, source)
        asked = convolution_types(trt, network, precision)
        config = builder.create_builder_config()
        flags = configure(trt, builder, config, precision, options, wanted)
        add_profile(builder, network, config, profile, logger)
        cache, cache_state = None, None
        if options.timing_cache is not None:
            cache, cache_state = timing_cache.attach(trt, config, options.timing_cache, logger)
        monitor = make_monitor(trt, progress, interrupt) if trt.progress_monitor else None
        if monitor is not None:
            config.progress_monitor = monitor
        logger.raise_pending()
        logger.clear()
        plan = builder.build_serialized_network(network, config)
        listing = str(logger.listing())
        if monitor is not None and monitor.error is not None:
            raise monitor.error  # an interrupt or an error of the caller's function; the build was cancelled
        logger.raise_pending()
    if plan is None:
        advice = "Change the graph or the options that it names."
        if options.version_compatible:
            advice = (
                "version_compatible needs TensorRT's lean runtime: install it, or remove the option from the recipe."
            )
        raise ProjectError(
            f"Expected {trt.flavour} {trt.version} to build {source.name} as {precision}. "
            f"Received: {logger.lines()}. {advice}"
        )
    if cache is not None and options.timing_cache is not None:
        timing_cache.save(cache, options.timing_cache)
    del parser  # not earlier: it owns the weights that the network refers to
    seconds = time.monotonic() - started

    data = memoryview(plan)
    found, why_not_found = _inspect(trt, data, driver, logger, asked, options, (profile.opt, *tensors[0].shape[1:]))
    if found is None:
        found = summarize_listing(listing, asked)
    elif found.reason is not None:
        log.warning("%s: %s", plan_file.name, found.reason)
    warnings = [*differences(asked, found), *unfused(found)]
    for warning in warnings:
        log.warning("%s: %s", plan_file.name, warning)
    metadata = {**_onnx_metadata(source), **(extra or {})}
    sidecar = Sidecar(
        flavour=trt.flavour,
        tensorrt_version=trt.version,
        **_machine(trt, driver, wanted),
        onnx_file=Path(os.path.relpath(source.resolve(), home_of(plan_file))).as_posix(),
        onnx_sha256=onnx_sha256,
        plan_sha256=hashlib.sha256(data).hexdigest(),
        plan_bytes=data.nbytes,
        precision=precision,
        variant=variant,
        profile=profile,
        tensors=tensors,
        classes=_names(metadata.pop("classes", None)),
        preprocessing=metadata.pop("preprocessing", None),
        metadata=metadata,
        options={
            **described(options),
            "timing_cache": cache_state,
            "strongly_typed": trt.strongly_typed,
            "flags": flags,
        },
        seconds=round(seconds, 3),
        network_layers=network_layers,
        asked=AskedLayers(precision, dict(Counter(asked.values())), asked),
        found=found,
        layers_reason=why_not_found,
        warnings=tuple(warnings),
    )
    write_plan(plan_file, data, sidecar)
    log.debug("built %s: %.1f MB in %.1f s (%s %s)", plan_file, data.nbytes / 1e6, seconds, trt.flavour, trt.version)
    return sidecar


def _check_request(source: Path, plan: Path, precision: str) -> None:
    if precision not in PRECISIONS:
        raise ProjectError(f"Expected a precision of {', '.join(PRECISIONS)}. Received: {precision!r}.")
    if plan.suffix == ".json":
        raise ProjectError(f"Expected a plan path like fp16.plan. Received: {plan}, which is its sidecar's name.")
    if not source.is_file():
        raise ProjectError(f"Expected an ONNX file at {source}. Received: no such file. Export the model first.")
    refuse_external_data(source)


def _require_device(trt: TensorRT, driver: DriverStatus, targets: Sequence[str]) -> None:
    current = any(target.lower() == "current" for target in targets)
    if driver or (trt.builds_without_gpu and not current):
        return
    remedy = (
        "Name the targets, such as SM86, or leave them out"
        if current
        else f"Build on the GPU machine, or install TensorRT-RTX, which builds without one: {INSTALL['rtx']}"
    )
    raise EngineDeviceError(
        f"Expected an NVIDIA GPU to build with {trt.flavour} {trt.version}"
        f"{' for the current GPU' if current else ''}. Received: {driver.reason}. {remedy}."
    )


def _targets(trt: TensorRT, targets: Sequence[str], driver: DriverStatus) -> list[str]:
    """Give the targets as "8.6" (the driver's own for "current"), checked; none means the library's default."""
    wanted: list[str] = []
    for target in targets:
        text = target.lower()
        if text == "current":
            text = driver.devices[0].compute_capability
        digits = text.removeprefix("sm").replace(".", "")
        if not trt.has("ComputeCapability", f"SM{digits}"):
            raise ProjectError(
                f"Expected targets of {', '.join(trt.generations())} or current. Received: {target!r}: "
                f"{trt.flavour} {trt.version} does not build for it. On such a GPU build with TensorRT: "
                f"{INSTALL['tensorrt']}."
            )
        wanted.append(f"{digits[:-1]}.{digits[-1:]}")
    return list(dict.fromkeys(wanted))


def _machine(trt: TensorRT, driver: DriverStatus, wanted: Sequence[str]) -> dict[str, Any]:
    """Say for the sidecar what the plan runs on and where it was built (None: on a machine without a GPU)."""
    gpu = driver.devices[0] if driver else None
    here = gpu.compute_capability if gpu else None
    if not trt.targets:
        runs_on = f"compute capability {here}"
    elif wanted:
        runs_on = f"compute capability {', '.join(wanted)}"
    else:
        runs_on = "compute capability 8.0 and later where TensorRT-RTX supports the GPU (its default; no Turing)"
    return {
        "compute_capability": here if not trt.targets else None,
        "targets": tuple(wanted),
        "runs_on": runs_on,
        "gpu": gpu.name if gpu else None,
        "driver_version": driver.driver_version if gpu else None,
        "cuda_version": driver.cuda_version if gpu else None,
    }


def _inspect(
    trt: TensorRT,
    plan: memoryview,
    driver: DriverStatus,
    logger: Any,
    asked: Mapping[str, str],
    options: BuildOptions,
    image: Sequence[int],
) -> tuple[FoundLayers | None, str | None]:
    """Summarise the engine's layers where it can be loaded here; else None and why not."""
    if not driver:
        return None, f"the engine was not loaded here: {driver.reason}"
    logger.clear()
    try:
        runtime = trt.module.Runtime(logger)
        if options.version_compatible:
            runtime.engine_host_code_allowed = True  # the plan brings its runtime, and it was built here just now
        engine = runtime.deserialize_cuda_engine(plan)
        if engine is None:
            return None, f"the engine cannot be loaded on the GPU of this machine: {logger.lines()}"
        return inspect_engine(trt, engine, asked, None if options.strip_weights else (INPUT, image)), None
    except Exception as error:  # of the library, or of an answer of another form: an engine took minutes to build
        return None, f"the engine's layers cannot be listed here: {type(error).__name__}: {error}"


def _names(classes: Any) -> tuple[str, ...] | None:
    return tuple(map(str, classes)) if isinstance(classes, (list, tuple)) else None


def _onnx_metadata(source: Path) -> dict[str, object]:
    """Read the metadata of an ONNX file, values as JSON where they are, off its bytes: a GPU machine may have no onnx.

    Raises:
        ProjectError: no ONNX file.
    """
    found: dict[str, Any] = {}
    try:
        with source.open("rb") as handle, mmap.mmap(handle.fileno(), 0, access=mmap.ACCESS_READ) as data:
            for field, kind, begin, end in fields(data, 0, len(data)):
                if (field, kind) == (METADATA_PROPS, BYTES):
                    pair = {at: data[start:stop].decode() for at, _, start, stop in fields(data, begin, end)}
                    found[pair.get(1, "")] = pair.get(2, "")
    except (OSError, ValueError, IndexError) as error:
        raise ProjectError(f"Expected an ONNX file. Received: {source}: {error}. Export the model again.") from error
    for key, text in found.items():
        with contextlib.suppress(ValueError):
            found[key] = parse_json(text, key)
    return found
