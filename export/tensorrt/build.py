"""Build a TensorRT engine from an ONNX file: a plan, and a sidecar that describes it.

The types come from the ONNX file (FP16-typed graph, Q/DQ graph). Only TensorRT 8.6, which has no strongly typed
networks, gets precision flags. The module needs Python 3.10, the standard library and TensorRT alone, because it
also runs on GPU machines that have little else installed.
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
    activations_behind,
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
from export.tensorrt.options import BuildOptions, options_record, refuse_unsupported
from export.tensorrt.sidecar import (
    INPUT,
    PRECISIONS,
    BatchProfile,
    EngineLayers,
    RequestedLayers,
    Sidecar,
    artifacts_folder,
    sha256_file,
    write_plan,
)
from export.wire_format import BYTES, read_fields, refuse_external_data

log = logging.getLogger(__name__)

METADATA_PROPS = 14  # field of ModelProto in ``onnx.proto3``: pairs of a key (1) and a value (2)

DEFAULT_TARGETS = "8.0 and later where TensorRT-RTX supports the GPU (its default; no Turing)"


class EngineDeviceError(ProjectError):
    """The GPU or driver that this TensorRT needs to build is missing on this machine; no build was started."""


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
        onnx_path: the graph, with the input "images" uint8 (N, height, width, 3) and the outputs "logits" and
            "probabilities", optionally "top_probabilities" and "top_classes".
        plan_path: file to write the plan to, not ending in ".json"; the sidecar goes beside it, see `sidecar_path`.
        precision: "fp32", "fp16" or "int8"; the graph must have these types.
        profile: batch sizes of the engine.
        trt: the library, from `export.tensorrt.library.find_tensorrt`.
        options: how to build. Defaults to `BuildOptions()`.
        variant: name of the batch profile among several, for the sidecar. Defaults to None: there is only one.
        progress: called with (phase, steps done, steps), also from TensorRT's threads. Defaults to None.
        extra: further metadata for the sidecar, mainly "classes" and "preprocessing"; takes precedence over the
            ONNX file's metadata. Defaults to None.

    Returns:
        Sidecar: as written.

    Raises:
        EngineDeviceError: this TensorRT needs a GPU and there is none.
        ProjectError: TensorRT refused (with its message), or the files cannot be written. No partial file is left.
    """
    source, plan_file, options = Path(onnx_path), Path(plan_path), options or BuildOptions()
    _check_request(source, plan_file, precision)
    driver = driver_status()
    _require_device(trt, driver, options.targets)
    refuse_unsupported(options, trt, driver)
    targets = _targets(trt, options.targets, driver)
    onnx_sha256 = sha256_file(source)
    started = time.monotonic()

    with deferred_interrupt() as interrupts:
        logger = trt.logger()
        builder = trt.module.Builder(logger)
        network = builder.create_network(network_flags(trt))
        parser = parse(trt, network, logger, source)
        tensors = check_tensors(network, profile, source)
        network_layers = count_layers(trt, network, precision, source)
        requested = convolution_types(trt, network, precision)
        activations = activations_behind(network)
        config = builder.create_builder_config()
        flags = configure(trt, builder, config, precision, options, targets)
        add_profile(builder, network, config, profile, logger)
        cache, cache_state = None, None
        if options.timing_cache is not None:
            cache, cache_state = timing_cache.attach(trt, config, options.timing_cache, logger)
        monitor = make_monitor(trt, progress, interrupts) if trt.progress_monitor else None
        if monitor is not None:
            config.progress_monitor = monitor
        logger.raise_pending()
        logger.clear()
        plan = builder.build_serialized_network(network, config)
        listing = str(logger.listing())
        if monitor is not None and monitor.error is not None:
            raise monitor.error  # an interrupt, or an error from ``progress``; the build was cancelled
        logger.raise_pending()
    if plan is None:
        advice = (
            "version_compatible needs TensorRT's lean runtime: install it, or remove the option from the recipe."
            if options.version_compatible
            else "Change the graph or the options that it names."
        )
        raise ProjectError(
            f"Expected {trt.flavour} {trt.version} to build {source.name} as {precision}. "
            f"Received: {logger.lines()}. {advice}"
        )
    if cache is not None and options.timing_cache is not None:
        timing_cache.save(cache, options.timing_cache)
    del parser  # not before the build has ended: the parser owns the weights that the network refers to
    seconds = time.monotonic() - started

    data = memoryview(plan)
    layers, layers_reason = _inspect(
        trt, data, driver, logger, requested, activations, options, image=(profile.opt, *tensors[0].shape[1:])
    )
    if layers is None:
        layers = summarize_listing(listing, requested, activations)
    elif layers.reason is not None:
        log.warning("%s: %s", plan_file.name, layers.reason)
    warnings = (*differences(requested, layers), *unfused(layers))
    for warning in warnings:
        log.warning("%s: %s", plan_file.name, warning)
    metadata = {**_onnx_metadata(source), **(extra or {})}
    classes = metadata.pop("classes", None)
    sidecar = Sidecar(
        flavour=trt.flavour,
        tensorrt_version=trt.version,
        **_machine(trt, driver, targets),
        onnx_file=Path(os.path.relpath(source.resolve(), artifacts_folder(plan_file))).as_posix(),
        onnx_sha256=onnx_sha256,
        plan_sha256=hashlib.sha256(data).hexdigest(),
        plan_bytes=data.nbytes,
        precision=precision,
        variant=variant,
        profile=profile,
        tensors=tensors,
        classes=tuple(map(str, classes)) if isinstance(classes, (list, tuple)) else None,
        preprocessing=metadata.pop("preprocessing", None),
        metadata=metadata,
        options={
            **options_record(options),
            "timing_cache": cache_state,
            "strongly_typed": trt.strongly_typed,
            "flags": flags,
        },
        seconds=round(seconds, 3),
        network_layers=network_layers,
        asked=RequestedLayers(precision, dict(Counter(requested.values())), requested, activations),
        found=layers,
        layers_reason=layers_reason,
        warnings=warnings,
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
    if not driver and (current or not trt.builds_without_gpu):
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
    """Return the checked targets as "8.6", with the driver's GPU for "current"; none means the library's default."""
    capabilities: list[str] = []
    for target in targets:
        name = driver.devices[0].compute_capability if target.lower() == "current" else target.lower()
        digits = name.removeprefix("sm").replace(".", "")
        if not trt.has("ComputeCapability", f"SM{digits}"):
            raise ProjectError(
                f"Expected targets of {', '.join(trt.generations())} or current. Received: {target!r}: "
                f"{trt.flavour} {trt.version} does not build for it. On such a GPU build with TensorRT: "
                f"{INSTALL['tensorrt']}."
            )
        capabilities.append(f"{digits[:-1]}.{digits[-1:]}")
    return list(dict.fromkeys(capabilities))


def _machine(trt: TensorRT, driver: DriverStatus, targets: Sequence[str]) -> dict[str, Any]:
    """Return the sidecar's fields on which GPUs the plan runs and where it was built (None: without a GPU)."""
    gpu = driver.devices[0] if driver else None
    capability = gpu.compute_capability if gpu and not trt.targets else None
    gpus = ", ".join(targets) if trt.targets else str(capability)
    return {
        "compute_capability": capability,
        "targets": tuple(targets),
        "runs_on": f"compute capability {gpus or DEFAULT_TARGETS}",
        "gpu": gpu.name if gpu else None,
        "driver_version": driver.driver_version if gpu else None,
        "cuda_version": driver.cuda_version if gpu else None,
    }


def _inspect(
    trt: TensorRT,
    plan: memoryview,
    driver: DriverStatus,
    logger: Any,
    requested: Mapping[str, str],
    activations: Mapping[str, str],
    options: BuildOptions,
    image: Sequence[int],
) -> tuple[EngineLayers | None, str | None]:
    """Summarise the layers of the engine, loaded on this machine; None and the reason where it cannot be loaded."""
    if not driver:
        return None, f"the engine was not loaded here: {driver.reason}"
    logger.clear()
    try:
        runtime = trt.module.Runtime(logger)
        if options.version_compatible:
            runtime.engine_host_code_allowed = True  # the plan contains its runtime; it was built just now, so trusted
        engine = runtime.deserialize_cuda_engine(plan)
        if engine is None:
            return None, f"the engine cannot be loaded on the GPU of this machine: {logger.lines()}"
        shape = None if options.strip_weights else (INPUT, image)
        return inspect_engine(trt, engine, requested, shape, activations), None
    except Exception as error:  # any error of the library or its answer: the engine took minutes to build, so keep it
        return None, f"the engine's layers cannot be listed here: {type(error).__name__}: {error}"


def _onnx_metadata(source: Path) -> dict[str, Any]:
    """Read the metadata of an ONNX file from its bytes, as a GPU machine may have no onnx; JSON values are parsed.

    Raises:
        ProjectError: not an ONNX file.
    """
    metadata: dict[str, Any] = {}
    try:
        with source.open("rb") as handle, mmap.mmap(handle.fileno(), 0, access=mmap.ACCESS_READ) as data:
            for field, kind, begin, end in read_fields(data, 0, len(data)):
                if (field, kind) == (METADATA_PROPS, BYTES):
                    pair = {at: data[start:stop].decode() for at, _, start, stop in read_fields(data, begin, end)}
                    metadata[pair.get(1, "")] = pair.get(2, "")
    except (OSError, ValueError, IndexError) as error:
        raise ProjectError(f"Expected an ONNX file. Received: {source}: {error}. Export the model again.") from error
    for key, text in metadata.items():
        with contextlib.suppress(ValueError):
            metadata[key] = parse_json(text, key)
    return metadata
