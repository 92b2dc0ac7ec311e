"""What this machine can time: a backend, a precision and a batch size each, with what the number includes."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from benchmarks.timing import Progress, Samples, in_turns, measure, summarize
from export.driver import driver_status
from export.errors import ExportError
from export.sidecar import PRECISIONS, Sidecar, read_sidecar
from pipeline.benchmark_report import GRAPH, NO_GRAPH, BenchmarkRow, Compute
from pipeline.errors import PipelineError
from pipeline.layout import KERAS, ONNX, engines, plan_variant
from pipeline.runners.base import Runner
from pipeline.runners.open import open_runner
from pipeline.runners.options import RuntimeOptions
from pipeline.runners.providers import DEVICES, Device, why_not
from pipeline.runners.tensorrt import TensorRTRunner

if TYPE_CHECKING:
    from pipeline.card import ModelCard

log = logging.getLogger(__name__)

HOST_TO_HOST = "host to host: uint8 pixels in host memory to logits in host memory; no decoding, no resizing"
INCLUDES: Mapping[str, str] = {
    "keras": f"{HOST_TO_HOST}; preprocessing in numpy and Keras' predict_on_batch",
    "onnxruntime": f"{HOST_TO_HOST}; preprocessing in the graph; ONNX Runtime on the CPU",
    "onnxruntime-cuda": f"{HOST_TO_HOST}; preprocessing in the graph; ONNX Runtime on the GPU, by its CUDA provider; "
    "both copies over the bus",
    "onnxruntime-tensorrt": f"{HOST_TO_HOST}; preprocessing in the graph; a peer, which is not verified and does not "
    "serve: ONNX Runtime on the GPU, by its TensorRT provider; both copies over the bus",
    "tensorrt": f"{HOST_TO_HOST}; preprocessing in the engine; both copies over the bus, through pinned memory",
}
COMPUTE = "the engine alone, by CUDA events: pixels and results on the GPU, no copy over the bus"
REPEATS = 20  # of the engine alone, in one turn
_QDQ = "Q/DQ pairs are computed as they stand, in float: this says nothing about INT8 engines, which fuse them"
_ONNX_CAVEATS: Mapping[str, Mapping[str, str]] = {
    "onnxruntime": {
        "fp16": "a CPU runs FP16 nodes in FP32 and casts between: this says nothing about FP16 engines",
        "int8": _QDQ,
    },
    "onnxruntime-cuda": {"int8": _QDQ},
    "onnxruntime-tensorrt": {},
}


@dataclass(frozen=True)
class Scenario:
    """One thing to time."""

    backend: str  # one of `INCLUDES`
    precision: str  # "fp32", "fp16" or "int8"
    batch: int  # images a call
    path: Path  # model.keras, an ONNX file or a plan
    includes: str  # what a sample covers
    caveat: str = ""  # what a reader must know before comparing; empty: nothing
    variant: str = ""  # which engine of this precision, where there are several


@dataclass(frozen=True)
class Options:
    """How long to measure; see `benchmarks.timing.measure`."""

    seconds_each: float = 3.0
    warmup_seconds: float = 0.5
    min_samples: int = 10
    max_samples: int = 10_000
    seed: int = 0  # of the random pixels


def scenarios(
    artifacts_dir: Path,
    batches: Sequence[int],
    *,
    precisions: Sequence[str] = PRECISIONS,
    backends: Sequence[str] = tuple(INCLUDES),
) -> list[Scenario]:
    """Find what can be timed here.

    Engines are listed only where there is a driver; one whose sidecar cannot be read is left out with a warning. ONNX
    files are listed on ONNX Runtime's CUDA and TensorRT providers where these are really active.

    Args:
        artifacts_dir: a recipe's artifacts, with ``train/``, ``export/``, ``quantize/`` and ``build/``.
        batches: batch sizes, in images.
        precisions: which to keep. Defaults to all.
        backends: which to keep. Defaults to all.

    Returns:
        list[Scenario]: by batch, then backend, then precision; may be empty.

    Raises:
        PipelineError: a batch size below 1.
    """
    if not batches or min(batches) < 1:
        raise PipelineError(f"Expected batch sizes of 1 or more. Received: {list(batches)}.")
    found: list[Scenario] = []
    plans = _engines(artifacts_dir) if "tensorrt" in backends else []
    runtimes = [name for name in DEVICES if name in backends and _is_active(DEVICES[name])]
    for batch in dict.fromkeys(batches):
        model = artifacts_dir / KERAS
        if "keras" in backends and "fp32" in precisions and model.is_file():
            found.append(Scenario("keras", "fp32", batch, model, INCLUDES["keras"]))
        onnx = [(precision, artifacts_dir / name) for precision, name in ONNX.items() if precision in precisions]
        for backend in runtimes:
            for precision, path in onnx:
                if path.is_file():
                    caveat = _ONNX_CAVEATS[backend].get(precision, "")
                    found.append(Scenario(backend, precision, batch, path, INCLUDES[backend], caveat))
        for path, sidecar in plans:
            if sidecar.precision in precisions and _worth_timing(path, sidecar, batch, batches):
                caveat, variant = _engine_caveat(sidecar, batch), plan_variant(path) or ""
                one = Scenario("tensorrt", sidecar.precision, batch, path, INCLUDES["tensorrt"], caveat, variant)
                found.append(one)
    return found


def _is_active(device: Device) -> bool:
    return device == "cpu" or not why_not(device)


def _worth_timing(plan: Path, sidecar: Sidecar, batch: int, batches: Sequence[int]) -> bool:
    """Whether an engine is for this batch size: a variant is for those of its profile, if it takes any of them."""
    fitting = [size for size in batches if sidecar.profile.takes(size)]
    return plan_variant(plan) is None or not fitting or batch in fitting


def _engines(artifacts_dir: Path) -> list[tuple[Path, Sidecar]]:
    found = []
    for path in engines(artifacts_dir) if driver_status() else ():
        try:
            found.append((path, read_sidecar(path)))
        except ExportError as error:
            log.warning("not timed: %s", error)
    return found


def _engine_caveat(sidecar: Sidecar, batch: int) -> str:
    notes = []
    if sidecar.flavour == "rtx":
        notes.append("TensorRT-RTX: compiled for this GPU when it was loaded")
    largest, smallest = sidecar.profile.max, sidecar.profile.min
    if batch > largest:
        notes.append(f"runs in pieces of {largest}, the engine's largest batch")
    if batch < smallest:
        notes.append(f"filled up to {smallest}, the engine's smallest batch")
    return "; ".join(notes)


def open_scenario(
    scenario: Scenario,
    runtime: RuntimeOptions | None = None,
    card: ModelCard | None = None,
    allow: Sequence[str] = (),
) -> Runner:
    """Make the runner of a scenario, which takes its batch at once; see `pipeline.runners.open.open_runner`.

    Args:
        scenario: what is to be timed.
        runtime: how engines are run. Defaults to None: `RuntimeOptions()`.
        card: what a Keras model needs besides its file.
        allow: what of a Keras model may run code, by name. Defaults to nothing.
    """
    if scenario.backend == "keras":
        from pipeline.runners.keras import open_keras

        return open_keras(scenario.path, card, allow, max(64, scenario.batch))
    return open_runner(scenario.path, scenario.backend, scenario.precision, runtime, at_once=scenario.batch)


def run_scenarios(
    wanted: Sequence[Scenario],
    opener: Callable[[Scenario], Runner],
    size: tuple[int, int],
    options: Options | None = None,
    progress: Progress | None = None,
) -> list[BenchmarkRow]:
    """Time scenarios: those of one batch size in turns against each other, batch size after batch size.

    Pixels are seeded noise, the same for all; zeros would flatter caches and power. A backend that fails gives a row
    with ``error`` and no numbers, and the others go on.

    Args:
        wanted: what to time.
        opener: makes the runner of a scenario; a file is opened once a batch size.
        size: height and width of the model's input.
        options: how long. Defaults to `Options()`.
        progress: called with (scenario, percent done, 100). Defaults to None.

    Returns:
        list[BenchmarkRow]: one a scenario, in the order given, with an error or the samples and what
        `benchmarks.timing.summarize` gives; an engine that takes the batch at once has what its GPU takes alone.
    """
    options = options or Options()
    rows: dict[Scenario, BenchmarkRow] = {}
    for batch in dict.fromkeys(one.batch for one in wanted):
        noise = np.random.default_rng(options.seed)
        pixels = noise.integers(0, 256, (batch, *size, 3), dtype=np.uint8)
        rows.update(_run_batch([one for one in wanted if one.batch == batch], opener, pixels, options, progress))
    return [rows[one] for one in wanted]


def _run_batch(
    group: Sequence[Scenario],
    opener: Callable[[Scenario], Runner],
    pixels: np.ndarray,
    options: Options,
    progress: Progress | None,
) -> dict[Scenario, BenchmarkRow]:
    named = {_name(one): one for one in group}
    errors: dict[str, str] = {}

    def failed(name: str, error: Exception) -> None:
        log.warning("%s failed: %s", name, error)
        errors[name] = f"{type(error).__name__}: {error}"

    with ExitStack() as stack:
        calls: dict[str, Callable[[], object]] = {}
        on_tensorrt: dict[str, TensorRTRunner] = {}
        for name, one in named.items():
            try:
                runner = stack.enter_context(opener(one))
            except Exception as error:  # whatever a backend raises: the others are to be timed all the same
                failed(name, error)
            else:
                calls[name] = partial(runner.infer, pixels)
                if isinstance(runner, TensorRTRunner):
                    on_tensorrt[name] = runner
        samples = measure(
            calls,
            seconds_each=options.seconds_each,
            warmup_seconds=options.warmup_seconds,
            min_samples=options.min_samples,
            max_samples=options.max_samples,
            progress=progress,
            on_error=failed,
        )
        # Before computing alone is timed, which may be launched in another way.
        found = {name: _graph(engine, len(pixels)) for name, engine in on_tensorrt.items()}
        whole = {name: engine for name, engine in on_tensorrt.items() if engine.sidecar.profile.takes(len(pixels))}
        computes = {
            name: partial(engine.compute_ms, pixels, REPEATS) for name, engine in whole.items() if name in samples
        }
        alone = in_turns(computes, on_error=failed)
    rows = {one: _row(one, samples.get(name), errors.get(name), found.get(name, "")) for name, one in named.items()}
    for name, one in named.items():
        if name in alone and rows[one].error is None:
            numbers = asdict(summarize(alone[name], one.batch))
            rows[one] = replace(rows[one], compute=Compute(**numbers, includes=COMPUTE))
    return rows


def _graph(runner: TensorRTRunner, batch: int) -> str:
    """What became of the CUDA graph of a batch: see `BenchmarkRow.graph`."""
    runs_as = max(batch, runner.sidecar.profile.min)
    if why := runner.graph_refusals.get(runs_as):
        return f"{NO_GRAPH}{why}"
    return GRAPH if runs_as in runner.graph_batches else ""


def _name(scenario: Scenario) -> str:
    # Two engines of one precision differ in their folder, the flavour, or in their variant.
    which = f"{scenario.precision}-{scenario.variant}" if scenario.variant else scenario.precision
    return f"{scenario.backend} {which} ({scenario.path.parent.name}) batch {scenario.batch}"


def _row(scenario: Scenario, samples: Samples | None, error: str | None, graph: str) -> BenchmarkRow:
    described = {key: value for key, value in asdict(scenario).items() if key != "path"}
    described |= {"file": f"{scenario.path.parent.name}/{scenario.path.name}", "graph": graph}
    if samples is None:
        return BenchmarkRow(**described, error=error or "it gave no sample")
    numbers = asdict(summarize(samples, scenario.batch))
    return BenchmarkRow(**described, samples_ms=tuple(samples), turns=tuple(samples.turns), **numbers)
