"""Times engines on a GPU in turns against each other, and PyTorch in turns against the engine beside it.

What one call here times is one row or several that were measured in turns; they are known together. Python 3.10
syntax, numpy alone; PyTorch where it is installed.
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

# Batches that one streamed call holds: the first upload and the last download overlap with nothing, so there should be
# many; they lie in ordinary memory once for all engines, and in page-locked memory for one engine at a time.
MOST_STREAMED, STREAMED_BYTES = 32, 1 << 30
_NOT_TIMED = "it was not timed yet"
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


def words_of(error: BaseException) -> str:
    """What an error says; with its kind, unless it is one of ours, which are sentences."""
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
                    if runner.max_batch != batch:  # the parts of a call would be other batches
                        raise ProjectError(f"it runs batches of {runner.max_batch} at most here")
                    turn.call = _call(runner, images, measures, batch * batches)
                except Exception as error:  # the others are to be timed all the same
                    turn.fail(error)
                else:
                    turn.doubt = partial(why_without_graph, runner, batch) if row.graphs else str
        return _time_in_turns(turns, measures == "compute", seconds)


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
    from benchmarks.peers.pytorch.runner import PyTorchRunner

    images = pixels[np.arange(batch) % len(pixels)]
    rows = []
    with ExitStack() as stack:
        peer = stack.enter_context(PyTorchRunner(model, "fp16", mode, max_batch=batch))  # type: ignore[arg-type]
        peer.infer(images)  # captures or compiles, outside of the measured time
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
                ours, doubt = _call(runner, images, measures, batch), partial(why_without_graph, runner, batch)
                turns.append(_Turn(replace(row, name=ENGINE, graphs=True), ours, doubt))
            rows += _time_in_turns(turns, measures == "compute", seconds)
    return rows


def why_without_peers(model: Path) -> str:
    """Why PyTorch cannot be timed here; "" where it can be tried."""
    missing = [name for name in ("torch", "onnx") if importlib.util.find_spec(name) is None]
    if missing:
        return f"{' and '.join(missing)} not installed"
    return "" if model.is_file() else f"it needs {model.parent.name}/{model.name}, which is not there"


def why_without_graph(runner: TensorRTRunner, batch: int) -> str:
    """Why a batch that was asked to run by a CUDA graph does not; "" where it does."""
    if batch in runner.graph_batches and batch not in runner.graph_refusals:
        return ""
    why = f": {runner.graph_refusals[batch]}" if batch in runner.graph_refusals else ", and nobody said why"
    return f"no CUDA graph was made for batches of {batch}{why}"


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


@dataclass
class _Turn:
    """A row to be.

    Attributes:
        row: what is known of it: without times, and with the reason.
        call: is timed in turns with the others'; None where that is not possible.
        doubt: says afterwards why the times are not what the row says they are; "" where they are, as ``str()`` does.
    """

    row: TimedRow
    call: Callable[[], Any] | None = None
    doubt: Callable[[], str] = str

    def fail(self, error: Exception) -> None:
        """Say why it has no times."""
        self.row, self.call = replace(self.row, error=words_of(error)), None


def _time_in_turns(turns: Sequence[_Turn], by_events: bool, seconds: float) -> list[TimedRow]:
    """Time all calls; give all rows, in the order in which they came.

    Args:
        turns: with names of their own.
        by_events: the calls measure themselves and return milliseconds.
        seconds: measured time for each other call.
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
