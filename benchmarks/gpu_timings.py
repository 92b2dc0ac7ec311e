"""Times engines on a GPU in turns against each other, and PyTorch in turns against the engine beside it.

What one call here times is one row or several that were measured in turns; they are known together. Python 3.10
syntax, numpy alone; PyTorch where it is installed.
"""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.timing import in_turns, measure, summarize
from export.errors import ProjectError
from pipeline.gpu_evidence import ENGINE, WITHOUT_GRAPHS, Measures, TimedRow, Variant
from pipeline.runners.options import RuntimeOptions
from pipeline.runners.tensorrt import TensorRTRunner

log = logging.getLogger("benchmarks.gpu")

# Batches that one streamed call holds: the first upload and the last download overlap with nothing, so there should be
# many; they lie in ordinary memory once for all engines, and in page-locked memory for one engine at a time.
MOST_STREAMED, STREAMED_BYTES = 32, 1 << 30
WARM_UP = 0.5  # seconds before a row is measured, and no longer than it is measured
REPEATS = 20  # of computing alone, in one turn
PEER_MODES = ("eager", "graphs", "compile")
INCLUDES: Mapping[Measures, str] = {
    "infer": "host to host, one batch a call: uint8 pixels in ordinary memory to logits and probabilities there",
    "stream": "host to host, as many batches a call as ``batches`` says, overlapped: uint8 pixels in ordinary "
    "memory to logits and probabilities there",
    "stream pinned": "as stream, from page-locked memory that the runner gave",
    "compute": "the engine or model alone, by CUDA events: pixels and results on the GPU, no copy over the bus",
}
_NUMBERS = ("n", "p50_ms", "p90_ms", "p99_ms", "mean_ms", "images_per_second", "p99_is_near_max")


def words_of(error: BaseException) -> str:
    """What an error says; with its kind, unless it is one of ours, which are sentences."""
    ours = isinstance(error, ProjectError)
    return str(error) if ours else f"{type(error).__name__}: {error}"


def time_engines(
    plans: Mapping[str, Path], pixels: np.ndarray, variant: Variant, batch: int, measures: Measures, seconds: float
) -> list[TimedRow]:
    """Time engines at a batch size.

    Calls from host to host are timed with CUDA graphs and without. "stream pinned" opens one engine after the other,
    so that page-locked memory is held once; everything else is measured in turns.

    Args:
        plans: precision to engine.
        pixels: uint8, (N, height, width, 3); repeated where a batch holds more.
        variant: of the engines.
        batch: images.
        measures: what of the way is timed.
        seconds: measured time for each row; "compute" takes a fixed number of calls.

    Returns:
        list[TimedRow]: one for each engine and way of launching, or why it has no times.
    """
    if measures == "stream pinned" and len(plans) > 1:
        each = [time_engines({key: plan}, pixels, variant, batch, measures, seconds) for key, plan in plans.items()]
        return [row for rows in each for row in rows]
    batches = _streamed(pixels, batch) if measures.startswith("stream") else 1
    # Page-locked memory is filled from the few images themselves.
    images = pixels if measures == "stream pinned" else pixels[np.arange(batch * batches) % len(pixels)]
    turns = _Turns(by_events=measures == "compute")
    with ExitStack() as stack:
        for precision, plan in plans.items():
            for graphs in (True, False) if measures == "infer" else (True,):
                row = {
                    "name": ENGINE if graphs else WITHOUT_GRAPHS,
                    "precision": precision,
                    "variant": variant,
                    "batch": batch,
                    "batches": batches,
                    "measures": measures,
                    "graphs": None if measures.startswith("stream") else graphs,
                }
                try:
                    runner = stack.enter_context(TensorRTRunner(plan, RuntimeOptions(graphs=graphs)))
                    if runner.max_batch != batch:  # the parts of a call would be other batches
                        turns.refuse(row, f"it runs batches of {runner.max_batch} at most here")
                        continue
                    call = _call(runner, images, measures, batch * batches)
                except Exception as error:  # the others are to be timed all the same
                    turns.refuse(row, words_of(error))
                    continue
                turns.add(row, call, partial(why_without_graph, runner, batch) if row["graphs"] else _no_doubt)
        return turns.run(seconds)


def time_peer(
    mode: str, model: Path, plan: Path | None, pixels: np.ndarray, variant: Variant, batch: int, seconds: float
) -> list[TimedRow]:
    """Time PyTorch in FP16 on the same weights, in turns with the FP16 engine.

    Args:
        mode: of `PEER_MODES`.
        model: the FP32 ONNX file.
        plan: the FP16 engine; None: PyTorch alone.
        pixels: uint8, (N, height, width, 3).
        variant: of the engine.
        batch: images.
        seconds: measured time for each row, host to host.

    Returns:
        list[TimedRow]: computing alone, and host to host.

    Raises:
        Exception: whatever PyTorch raises when it is opened, compiles or captures.
    """
    from benchmarks.peers.pytorch_runner import PyTorchRunner

    images = pixels[np.arange(batch) % len(pixels)]
    rows = []
    with ExitStack() as stack:
        peer = stack.enter_context(PyTorchRunner(model, "fp16", mode, max_batch=batch))  # type: ignore[arg-type]
        peer.infer(images)  # captures or compiles, outside of the measured time
        runner = stack.enter_context(TensorRTRunner(plan)) if plan is not None else None
        measured: tuple[Measures, ...] = ("compute", "infer")
        for measures in measured:
            turns = _Turns(by_events=measures == "compute")
            row = {
                "precision": "fp16",
                "variant": variant,
                "batch": batch,
                "batches": 1,
                "measures": measures,
                "beside": mode,
            }
            call = partial(peer.compute_ms, batch, REPEATS) if measures == "compute" else partial(peer.infer, images)
            turns.add({**row, "name": f"PyTorch {mode}", "graphs": mode != "eager" or None}, call, _no_doubt)
            if runner is not None:
                beside = {**row, "name": ENGINE, "graphs": True}
                turns.add(beside, _call(runner, images, measures, batch), partial(why_without_graph, runner, batch))
            rows += turns.run(seconds)
    return rows


def why_without_peers(model: Path) -> str:
    """Why PyTorch cannot be timed here; "" where it can be tried."""
    missing = [name for name in ("torch", "onnx") if importlib.util.find_spec(name) is None]
    if missing:
        return f"{' and '.join(missing)} not installed"
    return "" if model.is_file() else f"it needs {model.parent.name}/{model.name}, which is not there"


def why_without_graph(runner: TensorRTRunner, batch: int) -> str:
    """Why a batch that was asked to run by a CUDA graph does not; "" where it does."""
    if (why := runner.graph_refusals.get(batch)) is not None:
        return f"no CUDA graph was made for batches of {batch}: {why}"
    made = batch in runner.graph_batches
    return "" if made else f"no CUDA graph was made for batches of {batch}, and nobody said why"


def _no_doubt() -> str:
    return ""


def _streamed(pixels: np.ndarray, batch: int) -> int:
    return int(min(MOST_STREAMED, max(4, STREAMED_BYTES // (batch * pixels[0].nbytes))))


def _call(runner: TensorRTRunner, images: np.ndarray, measures: Measures, count: int) -> Callable[[], Any]:
    if measures == "compute":
        return partial(runner.compute_ms, images, REPEATS)
    if measures == "stream pinned":
        pinned = runner.pinned_pixels(count)
        np.take(images, np.arange(count), axis=0, out=pinned, mode="wrap")
        return partial(runner.infer, pinned)
    return partial(runner.infer, images)


class _Turns:
    """Rows to be, each with a call that is timed in turns with the others', or with the reason why it has none.

    Args:
        by_events: the calls measure themselves and return milliseconds.
    """

    def __init__(self, by_events: bool) -> None:
        self._by_events = by_events
        self._rows: dict[str, dict[str, Any]] = {}
        self._calls: dict[str, Callable[[], Any]] = {}
        self._doubts: dict[str, Callable[[], str]] = {}
        self._errors: dict[str, str] = {}

    def _key(self, row: dict[str, Any]) -> str:
        key = f"{row['name']} {row['precision']} {row['measures']}"
        self._rows[key] = row
        return key

    def add(self, row: dict[str, Any], call: Callable[[], Any], doubt: Callable[[], str]) -> None:
        """Take a row; ``doubt`` says afterwards why its times are not what the row says they are."""
        key = self._key(row)
        self._calls[key], self._doubts[key] = call, doubt

    def refuse(self, row: dict[str, Any], why: str) -> None:
        """Take a row that has no times."""
        self._failed(self._key(row), why)

    def _failed(self, key: str, why: str) -> None:
        log.warning("%s: %s", key, why)
        self._errors[key] = why

    def run(self, seconds: float) -> list[TimedRow]:
        """Time all calls; give all rows, in the order in which they came."""

        def failed(key: str, error: Exception) -> None:
            self._failed(key, words_of(error))

        samples: Mapping[str, Sequence[float]] = (
            in_turns(self._calls, on_error=failed)
            if self._by_events
            else measure(
                self._calls, seconds_each=seconds, warmup_seconds=min(WARM_UP, seconds), min_samples=10, on_error=failed
            )
        )
        for key in samples:
            if why := self._doubts[key]():
                self._failed(key, why)
        return [self._row(key, samples) for key in self._rows]

    def _row(self, key: str, samples: Mapping[str, Sequence[float]]) -> TimedRow:
        row = self._rows[key]
        row["includes"] = INCLUDES[row["measures"]]
        if key in self._errors:
            return TimedRow(**row, error=self._errors[key])
        numbers = summarize(list(samples[key]), row["batch"] * row["batches"])
        return TimedRow(**row, **{name: getattr(numbers, name) for name in _NUMBERS})
