"""Time engines on a GPU in turns against each other, and PyTorch in turns with the FP16 engine.

The module needs Python 3.10 and numpy alone, and PyTorch for its own rows.
"""

import importlib.util
import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.timing import in_turns, measure
from export.errors import ProjectError
from export.tensorrt.sidecar import Precision
from pipeline.artifacts.gpu_evidence import ENGINE, WITHOUT_GRAPHS, Measures, TimedRow, Variant
from pipeline.recipe.runtime import RuntimeOptions
from pipeline.runners.tensorrt.runner import TensorRTRunner

log = logging.getLogger("benchmarks.gpu")

# Batches of one streamed call: many, because the first upload and the last download overlap with nothing. They are in
# ordinary memory once for all engines, and in page-locked memory for one engine at a time.
MOST_STREAMED, STREAMED_BYTES = 32, 1 << 30
_NOT_TIMED = "it was not timed yet"
WARM_UP = 0.5  # seconds before a row is measured, and at most its measured time
REPEATS = 20  # calls of the engine alone in one turn
PEER_MODES = ("eager", "graphs", "compile")
INCLUDES: Mapping[Measures, str] = {
    "infer": "host to host, one batch a call: uint8 pixels in ordinary memory to logits and probabilities there",
    "stream": "host to host, as many batches a call as ``batches`` says, overlapped: uint8 pixels in ordinary "
    "memory to logits and probabilities there",
    "stream pinned": "as stream, from page-locked memory that the runner gave",
    "compute": "the engine or model alone, by CUDA events: pixels and results on the GPU, no copy over the bus",
}


def error_text(error: BaseException) -> str:
    """Return the message of an error, with its class unless it is one of the project's."""
    return str(error) if isinstance(error, ProjectError) else f"{type(error).__name__}: {error}"


def time_engines(
    plans: Mapping[Precision, Path],
    pixels: np.ndarray,
    variant: Variant,
    batch: int,
    measures: Measures,
    seconds: float,
) -> list[TimedRow]:
    """Time engines at a batch size.

    Calls from host to host are timed with CUDA graphs and without. "stream pinned" opens one engine after the other,
    so that there is only one block of page-locked memory; the others are measured in turns.

    Args:
        plans: precision to engine.
        pixels: uint8, (N, height, width, 3); repeated where a batch has more images.
        variant: of the engines.
        batch: images a batch.
        measures: which part of an inference is timed.
        seconds: measured time of each row; "compute" takes a fixed number of calls.

    Returns:
        list[TimedRow]: one for each engine and way of launching, with times or with the reason why it has none.
    """
    if measures == "stream pinned" and len(plans) > 1:
        return [
            row
            for key, plan in plans.items()
            for row in time_engines({key: plan}, pixels, variant, batch, measures, seconds)
        ]
    batches = _streamed(pixels, batch) if measures.startswith("stream") else 1
    # Page-locked memory is filled from the images without repetition.
    images = pixels if measures == "stream pinned" else pixels[np.arange(batch * batches) % len(pixels)]
    turns = []
    with ExitStack() as stack:
        for precision, plan in plans.items():
            for graphs in (True, False) if measures == "infer" else (True,):
                row = TimedRow(
                    name=ENGINE if graphs else WITHOUT_GRAPHS,
                    precision=precision,
                    variant=variant,
                    batch=batch,
                    batches=batches,
                    measures=measures,
                    includes=INCLUDES[measures],
                    graphs=None if measures.startswith("stream") else graphs,
                    error=_NOT_TIMED,
                )
                turns.append(turn := _Turn(row))
                try:
                    runner = stack.enter_context(TensorRTRunner(plan, RuntimeOptions(graphs=graphs)))
                    if runner.max_batch != batch:  # a call would be split into other batches
                        raise ProjectError(f"it runs batches of {runner.max_batch} at most here")
                    turn.call = engine_call(runner, images, measures, batch * batches)
                except Exception as error:  # the others are still timed
                    turn.fail(error)
                else:
                    turn.doubt = partial(why_without_graph, runner, batch) if row.graphs else str
        return _time_in_turns(turns, measures == "compute", seconds)


def time_peer(
    mode: str, model: Path, plan: Path | None, pixels: np.ndarray, variant: Variant, batch: int, seconds: float
) -> list[TimedRow]:
    """Time PyTorch in FP16 on the same weights, in turns with the FP16 engine.

    Args:
        mode: one of `PEER_MODES`.
        model: the FP32 ONNX file.
        plan: the FP16 engine; None: PyTorch alone.
        pixels: uint8, (N, height, width, 3).
        variant: of the engine.
        batch: images a batch.
        seconds: measured time of each row, host to host.

    Returns:
        list[TimedRow]: rows of the model alone, and host to host.

    Raises:
        Exception: any error of PyTorch when it loads, compiles or captures the model.
    """
    from benchmarks.peers.pytorch.runner import PyTorchRunner

    images = pixels[np.arange(batch) % len(pixels)]
    rows = []
    with ExitStack() as stack:
        peer = stack.enter_context(PyTorchRunner(model, "fp16", mode, max_batch=batch))  # type: ignore[arg-type]
        peer.infer(images)  # captures or compiles before the measured time
        runner = stack.enter_context(TensorRTRunner(plan)) if plan is not None else None
        measured: tuple[Measures, ...] = ("compute", "infer")
        for measures in measured:
            row = TimedRow(
                name=f"PyTorch {mode}",
                precision="fp16",
                variant=variant,
                batch=batch,
                batches=1,
                measures=measures,
                includes=INCLUDES[measures],
                graphs=mode != "eager" or None,
                beside=mode,
                error=_NOT_TIMED,
            )
            call = partial(peer.compute_ms, batch, REPEATS) if measures == "compute" else partial(peer.infer, images)
            turns = [_Turn(row, call)]
            if runner is not None:
                engine, doubt = engine_call(runner, images, measures, batch), partial(why_without_graph, runner, batch)
                turns.append(_Turn(replace(row, name=ENGINE, graphs=True), engine, doubt))
            rows += _time_in_turns(turns, measures == "compute", seconds)
    return rows


def why_without_peers(model: Path) -> str:
    """Return why PyTorch cannot be timed on this machine; "" where it can be tried."""
    missing = [name for name in ("torch", "onnx") if importlib.util.find_spec(name) is None]
    if missing:
        return f"{' and '.join(missing)} not installed"
    return "" if model.is_file() else f"it needs {model.parent.name}/{model.name}, which is not there"


def why_without_graph(runner: TensorRTRunner, batch: int) -> str:
    """Return why a batch does not run by a CUDA graph as requested; "" where it does."""
    if batch in runner.graph_batches and batch not in runner.graph_refusals:
        return ""
    return f"no CUDA graph was made for batches of {batch}: {runner.graph_refusals.get(batch, 'no reason was given')}"


def _streamed(pixels: np.ndarray, batch: int) -> int:
    return int(min(MOST_STREAMED, max(4, STREAMED_BYTES // (batch * pixels[0].nbytes))))


def engine_call(runner: TensorRTRunner, images: np.ndarray, measures: Measures, count: int) -> Callable[[], Any]:
    """Return the function that runs and, for "compute", times an engine once; see `INCLUDES`."""
    if measures == "compute":
        return partial(runner.compute_ms, images, REPEATS)
    if measures == "stream pinned":
        pinned = runner.pinned_pixels(count)
        np.take(images, np.arange(count), axis=0, out=pinned, mode="wrap")
        return partial(runner.infer, pinned)
    return partial(runner.infer, images)


@dataclass
class _Turn:
    """A row that is still to be timed.

    Attributes:
        row: without times, with the reason why it has none.
        call: function to time in turns with the others; None where the row cannot be timed.
        doubt: called afterwards; returns why the times are not valid for the row, "" where they are, as ``str()`` does.
    """

    row: TimedRow
    call: Callable[[], Any] | None = None
    doubt: Callable[[], str] = str

    def fail(self, error: Exception) -> None:
        """Record an error as the reason for no times."""
        self.row, self.call = replace(self.row, error=error_text(error)), None


def _time_in_turns(turns: Sequence[_Turn], by_events: bool, seconds: float) -> list[TimedRow]:
    """Time all calls and return all rows, in the given order.

    Args:
        turns: rows of different name, precision or measurement.
        by_events: whether the calls measure themselves and return milliseconds.
        seconds: measured time of each call that does not.
    """
    by_key = {f"{turn.row.name} {turn.row.precision} {turn.row.measures}": turn for turn in turns}
    calls = {key: turn.call for key, turn in by_key.items() if turn.call is not None}

    def failed(key: str, error: Exception) -> None:
        by_key[key].fail(error)

    timed = (
        in_turns(calls, on_error=failed)
        if by_events
        else measure(calls, seconds_each=seconds, warmup_seconds=min(WARM_UP, seconds), min_samples=10, on_error=failed)
    )
    rows = []
    for key, turn in by_key.items():
        row = turn.row
        if turn.call is not None:
            numbers = asdict(timed[key].summary(row.batch * row.batches))
            del numbers["percentile_method"]
            row = replace(row, error=doubt) if (doubt := turn.doubt()) else replace(row, error="", **numbers)
        if row.error:
            log.warning("%s: %s", key, row.error)
        rows.append(row)
    return rows
