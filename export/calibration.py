"""Statistics of a model's activations on calibration images, collected batch by batch with ONNX Runtime.

There are two passes: first the range and mean of each channel, reduced inside the graph so that no activation leaves
it; then a histogram of each tensor that will be quantized. Memory is bounded by one batch.
"""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from export.errors import ProjectError
from export.onnx_passes.graph import copy_model, infer_shapes, producers, tensor_shapes
from export.ort_session import open_session

BINS = 2048
_PARTS = ("ReduceMin", "ReduceMax", "ReduceMean")
_CHUNK = 2**15  # values that fit a core's cache


@dataclass(frozen=True)
class ChannelStatistics:
    """Statistics of each channel of one activation over all images and positions; float64 (C,).

    Args:
        low: Smallest value.
        high: Largest value.
        mean: Mean value.
    """

    low: np.ndarray
    high: np.ndarray
    mean: np.ndarray

    @property
    def largest(self) -> np.ndarray:
        """Return the largest absolute value of each channel, (C,)."""
        return np.asarray(np.maximum(np.abs(self.low), np.abs(self.high)))

    @property
    def limit(self) -> float:
        """Return the largest absolute value of the tensor."""
        return float(self.largest.max())


@dataclass(frozen=True)
class Histogram:
    """Histogram of an activation's absolute values.

    Args:
        counts: int64 (bins,); bin i counts values in [i, i + 1) · limit / bins, the last one also those above.
        limit: Upper end of the last bin; 0 if all values are 0, which are then in the first bin.
    """

    counts: np.ndarray
    limit: float

    @property
    def width(self) -> float:
        """Return the width of a bin."""
        return self.limit / len(self.counts)


@dataclass(frozen=True)
class Ranges:
    """The ranges of some activations, or of what equalization makes of them.

    Args:
        limits: Tensor name -> its largest absolute value.
        divisors: Tensor name -> (C,), above 0; what its channels are divided by before. Others stay as they are.
    """

    limits: Mapping[str, float]
    divisors: Mapping[str, np.ndarray] = field(default_factory=dict)


def collect_statistics(
    model: onnx.ModelProto, batches: Iterable[np.ndarray], tensors: Sequence[str]
) -> tuple[int, dict[str, ChannelStatistics]]:
    """Return the number of images, and the range and mean of each channel of some tensors: the first pass.

    The size and order of the batches change the result by float32 rounding alone.

    Args:
        model: The FP32 model.
        batches: uint8 (N, height, width, 3) RGB, N at least 1; it may change.
        tensors: Names of float32 tensors (N, C) or (N, C, ...) in the model.

    Returns:
        The number of images, and tensor name -> statistics.

    Raises:
        ProjectError: If a tensor is unknown, a batch has another type or shape, there are no images, every image is
            of one colour, or a weight or a value is NaN or infinite (the message names it).
    """
    for tensor in model.graph.initializer:
        if tensor.data_type == TensorProto.FLOAT and not np.isfinite(numpy_helper.to_array(tensor)).all():
            raise ProjectError(
                f"Expected finite weights. Received: NaN or infinity in {tensor.name!r} "
                "(the training diverged; load an earlier checkpoint or train again)."
            )
    names = list(dict.fromkeys(tensors))
    probe, reduced = _with_reductions(model, names)
    low: dict[str, np.ndarray] = {}
    high: dict[str, np.ndarray] = {}
    total: dict[str, np.ndarray] = {}
    seen = plain = 0
    for batch, values in run_batches(probe, batches, [part for parts in reduced.values() for part in parts]):
        seen += len(batch)
        plain += sum(bool((image == image[0, 0]).all()) for image in batch)
        for name, parts in reduced.items():
            least, most, mean = (values[part].astype(np.float64) for part in parts)
            if not (np.isfinite(least).all() and np.isfinite(most).all() and np.isfinite(mean).all()):
                raise ProjectError(
                    f"Expected finite activations. Received: NaN or infinity in {name!r} within the first {seen} "
                    "images (check the weights of the layers before it)."
                )
            low[name] = np.minimum(low.get(name, math.inf), least.min(axis=0))
            high[name] = np.maximum(high.get(name, -math.inf), most.max(axis=0))
            total[name] = total.get(name, 0.0) + mean.sum(axis=0)
    if plain == seen:
        raise ProjectError(
            f"Expected calibration images that show something. Received: {seen} of one colour each "
            "(check that the files are the photos that the model will see, and that they decode)."
        )
    return seen, {name: ChannelStatistics(low[name], high[name], total[name] / seen) for name in names}


def collect_histograms(
    model: onnx.ModelProto, batches: Iterable[np.ndarray], ranges: Sequence[Ranges]
) -> list[dict[str, Histogram]]:
    """Return histograms of the absolute values of some tensors for each of some ranges: the second pass.

    Counts are integers, so for given activations they do not depend on the size and order of the batches.

    Args:
        model: The FP32 model, which runs once for all ranges.
        batches: uint8 (N, height, width, 3) RGB.
        ranges: From the first pass; all have the same tensors.

    Raises:
        ProjectError: As `collect_statistics`.
    """
    names = list(ranges[0].limits)
    counts = [{name: np.zeros(BINS, dtype=np.int64) for name in names} for _ in ranges]
    for _, activations in run_batches(_with_outputs(model, names), batches, names):
        for name, value in activations.items():
            for one, found in zip(ranges, counts):
                found[name] += count_bins(value, one.limits[name], one.divisors.get(name))
    return [{name: Histogram(found[name], one.limits[name]) for name in names} for one, found in zip(ranges, counts)]


def count_bins(value: np.ndarray, limit: float, divisors: np.ndarray | None = None) -> np.ndarray:
    """Return how many absolute values fall into each of `BINS` bins up to a limit, int64.

    Args:
        value: float32; (N, C) or (N, C, ...) with divisors, else of any shape.
        limit: Upper end of the last bin, which also counts the values above.
        divisors: (C,), above 0; what each channel is divided by before. Defaults to None: nothing.
    """
    units = limit * (np.ones(1) if divisors is None else divisors)
    with np.errstate(divide="ignore", over="ignore"):
        factors = np.where(units > 0, np.minimum(BINS / units, np.finfo(np.float32).max), 0.0).astype(np.float32)
    rows = value.reshape(-1, 1) if divisors is None else value.reshape(len(value) * len(divisors), -1)
    of_rows = np.broadcast_to(factors, len(rows)) if divisors is None else np.tile(factors, len(value))
    counts = np.zeros(BINS, dtype=np.int64)
    step = max(1, _CHUNK // rows.shape[1])
    for start in range(0, len(rows), step):
        scaled = np.abs(rows[start : start + step])
        scaled *= of_rows[start : start + step, None]
        np.minimum(scaled, np.float32(BINS - 1), out=scaled)
        counts += np.bincount(scaled.reshape(-1).astype(np.intp), minlength=BINS)
    return counts


def run_batches(
    probe: onnx.ModelProto, batches: Iterable[np.ndarray], outputs: Sequence[str]
) -> Iterator[tuple[np.ndarray, dict[str, np.ndarray]]]:
    """Run a model batch by batch with ONNX Runtime, and yield each batch with the outputs by name.

    Raises:
        ProjectError: If there are no batches, or one has another type or shape than the model takes.
    """
    source = probe.graph.input[0].name
    shape = tensor_shapes(probe)[source]
    # A plan of all activations at once costs more memory than it saves time.
    session = open_session(probe, memory_pattern=False, spinning=False)
    batch = None
    for batch in batches:
        if batch.dtype != np.uint8 or batch.ndim != 4 or not len(batch) or batch.shape[1:] != shape[1:]:
            raise ProjectError(
                f"Expected a batch of uint8 (N, {', '.join(map(str, shape[1:]))}). Received: {batch.dtype} "
                f"{batch.shape} (decode and resize with the function that training used)."
            )
        yield batch, dict(zip(outputs, session.run(list(outputs), {source: batch})))
    if batch is None:
        raise ProjectError("Expected calibration images. Received: none (check the calibration split).")


def _with_outputs(model: onnx.ModelProto, names: Sequence[str]) -> onnx.ModelProto:
    """Return the model with inner tensors as additional outputs.

    Raises:
        ProjectError: If a name is no float32 tensor that a node writes.
    """
    inferred = infer_shapes(model)
    infos = {info.name: info for info in (*inferred.value_info, *inferred.output)}
    written = producers(model.graph)
    if unknown := [name for name in names if name not in infos or name not in written]:
        raise ProjectError(
            f"Expected tensors of the model. Received: {unknown[:5]} (ask quantizable_tensors for the names)."
        )
    result = copy_model(model)
    present = {o.name for o in result.graph.output}
    result.graph.output.extend(infos[name] for name in names if name not in present)
    return result


def _with_reductions(model: onnx.ModelProto, names: Sequence[str]) -> tuple[onnx.ModelProto, dict[str, list[str]]]:
    """Return the model with (N, C) minimum, maximum and mean of tensors as outputs, and their names by tensor."""
    shapes = {o.name: len(o.type.tensor_type.shape.dim) for o in _with_outputs(model, names).graph.output}
    result = copy_model(model)
    graph = result.graph
    reduced: dict[str, list[str]] = {}
    for name in names:
        axes = list(range(2, shapes[name]))
        if not axes:  # (N, C) is its own minimum, maximum and mean
            reduced[name] = [name] * len(_PARTS)
            continue
        reduced[name] = [f"{name}/{part}" for part in _PARTS]
        for part, output in zip(_PARTS, reduced[name]):
            graph.node.append(helper.make_node(part, [name], [output], output, axes=axes, keepdims=0))
    present = {o.name for o in graph.output}
    graph.output.extend(
        helper.make_tensor_value_info(output, TensorProto.FLOAT, None)
        for output in dict.fromkeys(part for parts in reduced.values() for part in parts)
        if output not in present
    )
    return result, reduced
