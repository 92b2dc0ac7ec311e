"""Times engines on a GPU in turns against each other and against PyTorch, and holds them against the project's targets.

Python 3.10 syntax, numpy alone; PyTorch where it is installed.
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
from pipeline.runners.options import RuntimeOptions
from pipeline.runners.tensorrt import TensorRTRunner

log = logging.getLogger("benchmarks.gpu")

# Batches that one streamed call holds: the first upload and the last download overlap with nothing, so there should be
# many; each runner has as many in page-locked memory, which should leave room for others.
MOST_STREAMED, STREAMED_BYTES = 32, 1 << 30
REPEATS = 20  # of computing alone, in one turn
INCLUDES: Mapping[str, str] = {
    "infer": "host to host, one batch a call: uint8 pixels in ordinary memory to logits and probabilities there",
    "stream": "host to host, as many batches a call as ``batches`` says, overlapped: uint8 pixels in ordinary "
    "memory to logits and probabilities there",
    "stream pinned": "as stream, from page-locked memory that the runner gave",
    "compute": "the engine or model alone, by CUDA events: pixels and results on the GPU, no copy over the bus",
}
PEER_MODES = ("graphs", "compile")


def time_batch(
    plans: Mapping[str, Path], pixels: np.ndarray, batch: int, seconds: float, model: Path | None, stream: bool
) -> list[dict[str, Any]]:
    """Time every engine at a batch size, with CUDA graphs and without, and PyTorch in FP16 on the same weights.

    Args:
        plans: precision to engine.
        pixels: uint8, (N, height, width, 3); repeated where a batch holds more.
        batch: images.
        seconds: measured time for each candidate.
        model: the FP32 ONNX file, for PyTorch. None: without it.
        stream: whether to time several batches a call, too, where the batch is the engine's largest.

    Returns:
        list[dict]: ``name``, ``precision``, ``batch``, ``measures``, ``includes`` and what
        `benchmarks.timing.summarize` gives, or ``error``.
    """
    images = pixels[np.arange(batch) % len(pixels)]
    batches = min(MOST_STREAMED, max(4, STREAMED_BYTES // images.nbytes))
    many = pixels[np.arange(batches * batch) % len(pixels)] if stream else images
    walls: dict[tuple[str, str, str], Callable[[], object]] = {}
    computes: dict[tuple[str, str, str], Callable[[], Sequence[float]]] = {}
    errors: dict[tuple[str, str, str], str] = {}
    with ExitStack() as stack:
        for precision, plan in plans.items():
            for name, options in (
                ("engine", RuntimeOptions()),
                ("engine without graphs", RuntimeOptions(graphs=False)),
            ):
                try:
                    runner = stack.enter_context(TensorRTRunner(plan, options))
                except Exception as error:  # the others are to be timed all the same
                    errors[name, precision, "infer"] = f"{type(error).__name__}: {error}"
                    continue
                if runner.max_batch < batch:
                    errors[name, precision, "infer"] = f"it runs batches of {runner.max_batch} at most here"
                    continue
                walls[name, precision, "infer"] = partial(runner.infer, images)
                if name == "engine":
                    computes[name, precision, "compute"] = partial(runner.compute_ms, images, REPEATS)
                    if stream and runner.max_batch == batch:  # else the parts of a stream are other batches
                        pinned = runner.pinned_pixels(len(many))
                        pinned[:] = many
                        walls[name, precision, "stream"] = partial(runner.infer, many)
                        walls[name, precision, "stream pinned"] = partial(runner.infer, pinned)
        if model is not None:
            _add_peers(stack, model, images, walls, computes, errors)
        samples = _measure(walls, computes, seconds, errors)
    rows = []
    for key in [*walls, *computes, *(key for key in errors if key not in walls and key not in computes)]:
        name, precision, measures = key
        held = batches if measures.startswith("stream") else 1
        row = {"name": name, "precision": precision, "batch": batch, "batches": held, "measures": measures}
        row["includes"] = INCLUDES[measures]
        rows.append(row | (summarize(samples[key], batch * held) if key in samples else {"error": errors[key]}))
    return rows


def _add_peers(
    stack: ExitStack, model: Path, images: np.ndarray, walls: dict[Any, Any], computes: dict[Any, Any], errors: Any
) -> None:
    if importlib.util.find_spec("torch") is None or importlib.util.find_spec("onnx") is None:
        log.warning("PyTorch is not timed: torch or onnx is not installed")
        return
    from benchmarks.peers.pytorch_runner import PyTorchRunner

    for mode in PEER_MODES:
        name = f"PyTorch {mode}"
        try:
            peer = stack.enter_context(PyTorchRunner(model, "fp16", mode, max_batch=len(images)))  # type: ignore[arg-type]
            peer.infer(images)  # captures or compiles, outside of the measured time
        except Exception as error:  # whatever PyTorch raises: the engines are to be timed all the same
            log.warning("%s failed: %s", name, error)
            errors[name, "fp16", "infer"] = f"{type(error).__name__}: {error}"
            continue
        walls[name, "fp16", "infer"] = partial(peer.infer, images)
        computes[name, "fp16", "compute"] = partial(peer.compute_ms, len(images), REPEATS)


def _measure(
    walls: Mapping[Any, Callable[[], object]],
    computes: Mapping[Any, Callable[[], Sequence[float]]],
    seconds: float,
    errors: dict[Any, str],
) -> dict[Any, list[float]]:
    def failed(key: Any, error: Exception) -> None:
        log.warning("%s failed: %s", " ".join(key), error)
        errors[key] = f"{type(error).__name__}: {error}"

    samples: dict[Any, list[float]] = {}
    samples.update(measure(walls, seconds_each=seconds, min_samples=10, on_error=failed))
    samples.update(in_turns(computes, on_error=failed))
    return samples


def judge_targets(rows: Sequence[Mapping[str, Any]], gpu: str | None, resnet50: bool) -> list[dict[str, Any]]:
    """Hold the rows against the project's targets.

    Args:
        rows: of `time_batch`; none: nothing was measured.
        gpu: name of the GPU; the absolute targets are for an H200.
        resnet50: whether the model is a ResNet-50 at 224x224, which the absolute throughput is for.

    Returns:
        list[dict]: ``target``, ``limit``, ``measured`` (None: not measured), ``met`` (None: open) and ``why``.
    """
    largest = max((row["batch"] for row in rows), default=0)
    smallest = min((row["batch"] for row in rows), default=0)
    h200 = gpu is not None and "H200" in gpu

    def value(name: str, precision: str, measures: str, batch: int, key: str = "images_per_second") -> float | None:
        for row in rows:
            if (row["name"], row["precision"], row["measures"], row["batch"]) == (name, precision, measures, batch):
                return row.get(key)
        return None

    def ratio(over: float | None, under: float | None) -> float | None:
        return round(over / under, 4) if over and under else None

    found = []
    for precision in ("fp32", "fp16", "int8"):
        share = ratio(value("engine", precision, "stream", largest), value("engine", precision, "compute", largest))
        name = f"{precision}: images a second from ordinary host memory, over those of computing alone, largest batch"
        found.append(_target(name, 0.95, share))
    p99 = value("engine", "int8", "infer", smallest, "p99_ms") if smallest == 1 else None
    found.append(_target("int8: p99 of one image, host to host, ms, on an H200", 0.35, p99, h200, at_most=True))
    throughput = value("engine", "int8", "stream", largest)
    found.append(
        _target(
            "int8: images a second, host to host, ResNet-50 at 224x224 on an H200",
            60_000,
            throughput,
            h200 and resnet50,
        )
    )
    over_fp16 = ratio(throughput, value("engine", "fp16", "stream", largest))
    found.append(_target("int8 over fp16: images a second, host to host, largest batch", 1.5, over_fp16))
    engine = value("engine", "fp16", "compute", largest)
    for mode, limit in zip(PEER_MODES, (1.3, 1.15)):
        peer = value(f"PyTorch {mode}", "fp16", "compute", largest)
        found.append(_target(f"fp16 over PyTorch {mode}: computing alone, largest batch", limit, ratio(engine, peer)))
    return found


def _target(
    name: str, limit: float, measured: float | None, applies: bool = True, at_most: bool = False
) -> dict[str, Any]:
    if measured is None:
        met, why = None, "not measured"
    elif not applies:
        met, why = None, "measured on another GPU or model than the target is for"
    else:
        met, why = (measured <= limit if at_most else measured >= limit), ""
    return {"target": name, "limit": limit, "measured": measured, "met": met, "why": why}
