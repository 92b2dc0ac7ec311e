"""List what this machine can time (a backend, a precision and a batch size each), and time it."""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from benchmarks.timing import Measurement, Progress, in_turns, measure
from export.errors import ProjectError
from export.tensorrt.driver import driver_status
from export.tensorrt.library import find_tensorrt
from export.tensorrt.sidecar import Sidecar, read_sidecar
from pipeline.artifacts.benchmark_report import GRAPH, NO_GRAPH, BenchmarkRow, Compute
from pipeline.artifacts.engines import engines, plan_variant
from pipeline.artifacts.paths import KERAS, ONNX, Artifacts
from pipeline.recipe.runtime import RuntimeOptions
from pipeline.runners.base import Runner
from pipeline.runners.onnxruntime import DEVICES, why_not
from pipeline.runners.open import open_runner
from pipeline.runners.tensorrt.runner import TensorRTRunner

if TYPE_CHECKING:
    from pipeline.models.model_card import ModelCard

log = logging.getLogger(__name__)

Timing = Callable[..., dict[str, Measurement]]  # `benchmarks.timing.measure`, or a partial of it

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
REPEATS = 20  # calls of the engine alone in one turn
_QDQ = "Q/DQ pairs are computed as they stand, in float: this says nothing about INT8 engines, which fuse them"
_CAVEATS: Mapping[tuple[str, str], str] = {
    ("onnxruntime", "fp16"): "a CPU runs FP16 nodes in FP32 and casts between: this says nothing about FP16 engines",
    ("onnxruntime", "int8"): _QDQ,
    ("onnxruntime-cuda", "int8"): _QDQ,
}


@dataclass(frozen=True)
class Scenario:
    """A file to time with one backend at one batch size."""

    backend: str  # one of `INCLUDES`
    precision: str  # "fp32", "fp16" or "int8"
    batch: int  # images a call
    path: Path  # model.keras, an ONNX file or a plan
    includes: str  # what a sample covers
    caveat: str = ""  # what limits a comparison; "": nothing
    variant: str = ""  # name of the engine's batch profile, where there are several of this precision


def scenarios(artifacts: Artifacts, batches: Sequence[int]) -> list[Scenario]:
    """List what can be timed on this machine.

    Engines are listed only where there is a driver; one whose sidecar cannot be read is left out with a warning. ONNX
    files are listed on ONNX Runtime's CUDA and TensorRT providers where these are active.

    Args:
        artifacts: of a recipe; the Keras model, the ONNX files and the engines are listed.
        batches: batch sizes, in images.

    Returns:
        list[Scenario]: by batch, then backend, then precision; may be empty.

    Raises:
        ProjectError: a batch size below 1.
    """
    if not batches or min(batches) < 1:
        raise ProjectError(f"Expected batch sizes of 1 or more. Received: {list(batches)}.")
    runtimes = [name for name, device in DEVICES.items() if device == "cpu" or not why_not(device)]
    models = [
        ("keras", "fp32", artifacts.path(KERAS)),
        *((name, precision, artifacts.path(file)) for name in runtimes for precision, file in ONNX.items()),
    ]
    plans = _engines(artifacts)
    listed: list[Scenario] = []
    for batch in dict.fromkeys(batches):
        listed += [
            Scenario(backend, precision, batch, path, INCLUDES[backend], _CAVEATS.get((backend, precision), ""))
            for backend, precision, path in models
            if path.is_file()
        ]
        for path, sidecar in plans:
            variant = plan_variant(path) or ""
            fitting = [size for size in batches if sidecar.profile.takes(size)] if variant else []
            if batch in (fitting or batches):  # a variant is for the batch sizes of its profile, if it takes any
                caveat = _engine_caveat(sidecar, batch)
                listed.append(
                    Scenario("tensorrt", sidecar.precision, batch, path, INCLUDES["tensorrt"], caveat, variant)
                )
    return listed


def _engines(artifacts: Artifacts) -> list[tuple[Path, Sidecar]]:
    names, sidecars = engines(artifacts), []  # also without a driver: what is read must be declared on every machine
    for path in map(artifacts.path, names if driver_status() else ()):
        try:
            sidecars.append((path, read_sidecar(path)))
        except ProjectError as error:
            log.warning("not timed: %s", error)
    return sidecars


def _engine_caveat(sidecar: Sidecar, batch: int) -> str:
    largest, smallest = sidecar.profile.max, sidecar.profile.min
    notes = {
        "TensorRT-RTX: compiled for this GPU when it was loaded": sidecar.flavour == "rtx",
        f"split into batches of {largest}, the engine's largest": batch > largest,
        f"padded to {smallest}, the engine's smallest batch": batch < smallest,
    }
    return "; ".join(note for note, applies in notes.items() if applies)


def installed(candidates: Sequence[Scenario]) -> list[Scenario]:
    """Return the scenarios whose library is installed; log what is left out, a line for each library.

    A machine that only runs a bundle has a single TensorRT.

    Args:
        candidates: scenarios whose files exist.
    """
    missing = {scenario: _missing_library(scenario) for scenario in candidates}
    for library in filter(None, dict.fromkeys(missing.values())):
        files = {f"{each.path.parent.name}/{each.path.name}" for each, name in missing.items() if name == library}
        log.info("  not timed, as %s is not installed here: %s", library, ", ".join(sorted(files)))
    return [scenario for scenario in candidates if not missing[scenario]]


def _missing_library(scenario: Scenario) -> str:
    """Return the library that a scenario needs and this machine does not have; "" if it has it, or is not known."""
    package, _, _ = scenario.backend.partition("-")
    if package != "tensorrt":
        return "" if importlib.util.find_spec(package) else {"keras": "Keras"}.get(package, "ONNX Runtime")
    try:
        flavour = read_sidecar(scenario.path).flavour
        return "" if find_tensorrt(flavour) else {"rtx": "TensorRT-RTX"}.get(flavour, "TensorRT")
    except ProjectError:
        return ""  # its runner reports what is wrong with it


def open_scenario(
    scenario: Scenario,
    runtime: RuntimeOptions | None = None,
    card: ModelCard | None = None,
    allow: Sequence[str] = (),
) -> Runner:
    """Make the runner of a scenario, which does not split its batch; see `pipeline.runners.open.open_runner`.

    Args:
        scenario: what to time.
        runtime: how to run engines. Defaults to None: `RuntimeOptions()`.
        card: the model card, for a Keras model. Defaults to None.
        allow: names of the parts of a Keras model that may run code. Defaults to none.
    """
    if scenario.backend == "keras":
        from pipeline.runners.keras import open_keras

        return open_keras(scenario.path, card, allow, max(64, scenario.batch))
    return open_runner(scenario.path, scenario.backend, scenario.precision, runtime, at_once=scenario.batch)


def run_scenarios(
    selected: Sequence[Scenario],
    opener: Callable[[Scenario], Runner],
    size: tuple[int, int],
    timing: Timing = measure,
    progress: Progress | None = None,
) -> list[BenchmarkRow]:
    """Time scenarios, those of one batch size in turns against each other, one batch size after the other.

    Pixels are seeded noise, the same for all, because zeros would make caches and power look better. A backend that
    fails gives a row with ``error`` and no numbers, and the others go on.

    Args:
        selected: what to time.
        opener: makes the runner of a scenario; a file is opened once for each batch size.
        size: height and width of the model's input.
        timing: times calls in turns. Defaults to `benchmarks.timing.measure`.
        progress: called with (scenario, percent done, 100). Defaults to None.

    Returns:
        list[BenchmarkRow]: a row for each scenario, in the given order, with an error or with the samples and
        `Measurement.summary`; an engine that does not split the batch also has the time of the engine alone.
    """
    rows: dict[Scenario, BenchmarkRow] = {}
    for batch in dict.fromkeys(scenario.batch for scenario in selected):
        pixels = np.random.default_rng(0).integers(0, 256, (batch, *size, 3), dtype=np.uint8)
        group = [scenario for scenario in selected if scenario.batch == batch]
        rows.update(_run_batch(group, opener, pixels, timing, progress))
    return [rows[scenario] for scenario in selected]


def _run_batch(
    group: Sequence[Scenario],
    opener: Callable[[Scenario], Runner],
    pixels: np.ndarray,
    timing: Timing,
    progress: Progress | None,
) -> dict[Scenario, BenchmarkRow]:
    named = {_name(scenario): scenario for scenario in group}
    errors: dict[str, str] = {}

    def failed(name: str, error: Exception) -> None:
        log.warning("%s failed: %s", name, error)
        errors[name] = f"{type(error).__name__}: {error}"

    with ExitStack() as stack:
        runners: dict[str, Runner] = {}
        for name, scenario in named.items():
            try:
                runners[name] = stack.enter_context(opener(scenario))
            except Exception as error:  # any error of a backend: the others are still timed
                failed(name, error)
        calls = {name: partial(runner.infer, pixels) for name, runner in runners.items()}
        timed = timing(calls, progress=progress, on_error=failed)
        engines = {name: runner for name, runner in runners.items() if isinstance(runner, TensorRTRunner)}
        # Before the engine alone is timed, which may be launched in another way.
        graphs = {name: _graph(engine, len(pixels)) for name, engine in engines.items()}
        computes = {
            name: partial(engine.compute_ms, pixels, REPEATS)
            for name, engine in engines.items()
            if name in timed and engine.sidecar.profile.takes(len(pixels))
        }
        alone = in_turns(computes, on_error=failed)
    return {
        scenario: _row(scenario, timed.get(name), errors.get(name), graphs.get(name, ""), alone.get(name))
        for name, scenario in named.items()
    }


def _graph(runner: TensorRTRunner, batch: int) -> str:
    """Return whether a batch runs by a CUDA graph, see `BenchmarkRow.graph`."""
    runs_as = max(batch, runner.sidecar.profile.min)
    if why := runner.graph_refusals.get(runs_as):
        return f"{NO_GRAPH}{why}"
    return GRAPH if runs_as in runner.graph_batches else ""


def _name(scenario: Scenario) -> str:
    # Two engines of one precision differ in their folder, the flavour, or in their variant.
    which = f"{scenario.precision}-{scenario.variant}" if scenario.variant else scenario.precision
    return f"{scenario.backend} {which} ({scenario.path.parent.name}) batch {scenario.batch}"


def _row(
    scenario: Scenario, timed: Measurement | None, error: str | None, graph: str, alone: Measurement | None
) -> BenchmarkRow:
    head = {key: value for key, value in asdict(scenario).items() if key != "path"}
    head |= {"file": f"{scenario.path.parent.name}/{scenario.path.name}", "graph": graph}
    if timed is None:
        return BenchmarkRow(**head, error=error or "it gave no sample")
    compute = Compute(**asdict(alone.summary(scenario.batch)), includes=COMPUTE) if alone is not None else None
    return BenchmarkRow(**head, **asdict(timed), **asdict(timed.summary(scenario.batch)), compute=compute)
