"""Second-order rounding of weights: codes that change a convolution's output least, not its weights.

Rounding the weights w of an output to q adds noise of the energy ``(w - q) H (w - q)^T`` to it, where ``H`` is the sum
of ``x x^T`` over the inputs x that the convolution reads. GPTQ rounds one weight after the other, and moves those that
are left so that they make up for the error so far. With ``H = R D R^T``, R upper triangular with ones as its diagonal,
that is

    q_k = round(w_k + sum over i < k of (w_i - q_i) R_ik)

which takes one Cholesky factorization, and no inverse of H.

Source: Frantar et al., Optimal brain compression, NeurIPS 2022, and GPTQ, ICLR 2023, of which damping, order and blocks
are; Chee et al., QuIP, NeurIPS 2023, on the second form.
"""

import math
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from threadpoolctl import ThreadpoolController

from export.calibration import run_batches
from export.int8.conv_inputs import ConvInput, Samples, samples_bytes
from export.int8.placement import quantized_edges
from export.int8.qdq import insert_lowered_pair
from export.int8.scales import INT8_MAX, Scales
from export.int8.weights import RoundedWeight, round_to_nearest
from export.onnx_passes.graph import constants, copy_model, producers, topological_sort

DAMPING = 0.01  # of the mean of H's diagonal, added to it
BLOCK = 128  # weights whose errors are passed on one by one; those of a block are passed on together
MOST_GAIN_DB = 100.0
# Moments up to this size are factorized by one thread: several wait for each other longer than they compute, many times
# as long if another process has one of the cores.
ONE_THREAD = 1024
SAMPLES_BYTES = 2**29  # of the inputs that are held at once; more convolutions are sampled in another pass


@dataclass(frozen=True)
class SecondOrderWeights:
    """Rounded weights.

    Args:
        weights: Name of a weight -> its codes.
        gains_db: Name of a weight -> how much smaller the error of the convolution's output became, dB; at most
            `MOST_GAIN_DB`, and 0 where rounding to nearest is as good.
        images: Number of images that gave the statistics.
        skipped: Name of a Conv that it does not round -> why, for people.
    """

    weights: Mapping[str, RoundedWeight]
    gains_db: Mapping[str, float]
    images: int
    skipped: Mapping[str, str]


def round_second_order(
    model: onnx.ModelProto,
    scales: Scales,
    batches: Callable[[str], Iterable[np.ndarray]],
    *,
    images: int,
    kind: str = "fp32",
    seed: int = 0,
    kept: Collection[str] = (),
    track: Callable[[Sequence[str]], Iterable[str]] = iter,
) -> SecondOrderWeights:
    """Return the weights of all quantized Convs, rounded for their quantized inputs.

    The inputs are those of the float model with all of its activations quantized, at `POSITIONS` random places of the
    output of each Conv and image. They are held as INT8 codes, so the sums of their products are exact: for given
    activations the result depends neither on the size of the batches, nor on the number of passes that memory asks for.

    Args:
        model: The float32 model that the scales belong to.
        scales: Of its quantized activations; a Conv whose input has none stays in float.
        batches: Returns the calibration images, uint8 (N, height, width, 3) RGB, once for each pass that it is given a
            description of.
        images: The most images to take, the first ones.
        kind: The type that the file holds scales in, as for `export.int8.weights.weight_scales`. Defaults to
            ``"fp32"``.
        seed: Of the random places, at least 0. Defaults to 0.
        kept: Names of nodes that stay in float. Defaults to none.
        track: Shows the progress through the weights of a pass. Defaults to not showing it.

    Raises:
        ProjectError: If there are no images, or a batch has another type or shape than the model takes.
    """
    scales = scales.of_type(kind)
    probe, inputs, skipped = _with_codes(model, scales, kept)
    tensors = constants(model.graph)
    weights: dict[str, RoundedWeight] = {}
    gains: dict[str, float] = {}
    seen, blas = 0, ThreadpoolController()
    for names in _passes(inputs, images):
        chosen = [source for name in names for source in inputs[name]]
        samples = Samples(chosen, images, seed)
        outputs = list(dict.fromkeys(source.codes for source in chosen))
        first = _first(batches("second-order rounding"), images)
        for batch, codes in run_batches(_with_outputs(probe, outputs), first, outputs):
            samples.add(len(batch), codes)
        seen = samples.seen
        for name in track(names):
            source, *others = inputs[name]
            nodes = [source.node, *(other.node for other in others)]
            if not samples.refused.isdisjoint(nodes):
                skipped |= dict.fromkeys(
                    nodes, "what it reads, or another Conv with its weights, is not one map an image"
                )
                continue
            with blas.limit(limits=1 if source.values // source.groups <= ONE_THREAD else None, user_api="blas"):
                moments = samples.take(source.node)
                for other in others:
                    moments += samples.take(other.node)
                weights[name], gains[name] = round_weight(numpy_helper.to_array(tensors[name]), moments, kind)
    return SecondOrderWeights(weights, gains, seen, skipped)


def round_weight(weight: np.ndarray, moments: np.ndarray, kind: str = "fp32") -> tuple[RoundedWeight, float]:
    """Return a weight rounded for the inputs that it meets, and the gain in dB over rounding to nearest.

    Each output keeps its nearest codes if they are not worse. The scales are those of nearest.

    Args:
        weight: float32 (out, in / groups, ...).
        moments: Sum of x x^T over the inputs x of each group, float64 (groups, d, d), where d is the number of weights
            of an output.
        kind: As for `export.int8.weights.weight_scales`. Defaults to ``"fp32"``.
    """
    nearest = round_to_nearest(weight, kind)
    shape = len(moments), -1, moments.shape[1]
    steps = nearest.scales.astype(np.float64).reshape(*shape[:2], 1)
    exact = weight.reshape(shape) / steps
    codes = nearest.codes.reshape(shape)
    before = _errors(exact - codes, moments)
    found = _second_order_codes(exact, moments)
    after = _errors(exact - found, moments)
    better = after < before
    codes = np.where(better[..., None], found, codes).astype(np.int8)
    noise, left = (float((errors * steps[..., 0] ** 2).sum()) for errors in (before, np.where(better, after, before)))
    gain = min(10.0 * math.log10(noise / left), MOST_GAIN_DB) if left > 0 else MOST_GAIN_DB * (noise > 0)
    return RoundedWeight(codes.reshape(weight.shape), nearest.scales), gain


def _errors(rounding: np.ndarray, moments: np.ndarray) -> np.ndarray:
    """Return the noise of each output, (groups, out / groups), of rounding errors (groups, out / groups, d)."""
    return np.asarray(np.maximum(((rounding @ moments) * rounding).sum(axis=-1), 0.0))


def _second_order_codes(exact: np.ndarray, moments: np.ndarray) -> np.ndarray:
    """Return whole numbers within ±127, float64 (groups, out / groups, d), for weights in units of their scales.

    The weights come in the order of a falling diagonal of the moments. The factorization begins with the last of them,
    so that a lower triangular factor of that order is an upper one of ours.
    """
    diagonal = np.diagonal(moments, axis1=1, axis2=2)
    # The last comes first. With this damping the condition is at most 100 d + 1, so the factorization cannot fail; an
    # input that was 0 throughout has neighbours of 0, and is rounded to nearest.
    order = np.argsort(-diagonal, axis=1, kind="stable")[:, ::-1]
    mean = diagonal.mean(axis=1)
    damped = np.take_along_axis(np.take_along_axis(moments, order[:, :, None], 1), order[:, None, :], 2)
    size = damped.shape[1]
    damped[:, np.arange(size), np.arange(size)] += np.where(mean > 0, DAMPING * mean, 1.0)[:, None]
    factor = np.linalg.cholesky(damped)
    del damped
    factor /= np.diagonal(factor, axis1=1, axis2=2)[:, None, :].copy()
    weights = np.ascontiguousarray(np.take_along_axis(exact, order[:, None, :], 2).swapaxes(1, 2))
    left = np.zeros_like(weights)  # the errors of the weights that are rounded, (groups, d, out / groups)
    for stop in range(size, 0, -BLOCK):
        start = max(stop - BLOCK, 0)
        target = weights[:, start:stop] + factor[:, stop:, start:stop].swapaxes(1, 2) @ left[:, stop:]
        inner = np.ascontiguousarray(factor[:, start:stop, start:stop].swapaxes(1, 2))
        errors = left[:, start:stop]
        for row in reversed(range(stop - start)):
            moved = target[:, row] + (inner[:, row, None, row + 1 :] @ errors[:, row + 1 :])[:, 0]
            errors[:, row] = weights[:, start + row] - np.clip(np.rint(moved), -INT8_MAX, INT8_MAX)
    codes = np.empty_like(exact)
    np.put_along_axis(codes, order[:, None, :], np.rint(weights - left).swapaxes(1, 2), 2)
    return codes


def _with_codes(
    model: onnx.ModelProto, scales: Scales, kept: Collection[str]
) -> tuple[onnx.ModelProto, dict[str, list[ConvInput]], dict[str, str]]:
    """Return the model with its activations quantized, and the Convs' inputs in it.

    Returns:
        The model; name of a weight -> the input of each Conv that reads it; name of a Conv -> why it has none.
    """
    result = copy_model(model)
    graph, tensors = result.graph, constants(result.graph)
    found = quantized_edges(model, kept)
    edges = {(edge.node, edge.index): edge.tensor for edge in found if edge.tensor in scales.scales}
    rounded = {tensor: insert_lowered_pair(graph, tensor, scales) for tensor in dict.fromkeys(edges.values())}
    writers = producers(graph)
    inputs: dict[str, list[ConvInput]] = {}
    skipped: dict[str, str] = {}
    for node in graph.node:
        tensor = edges.get((node.name, 0))
        if node.op_type == "Conv" and node.input[1] not in tensors:
            skipped[node.name] = "its weights are computed"
        elif node.op_type == "Conv" and tensor is None:
            skipped[node.name] = "it stays in float" if node.name in kept else "its input has no scale"
        elif node.op_type == "Conv" and tensor is not None:
            shifted = tensor in scales.shifted
            pair = writers[rounded[tensor]]  # the DequantizeLinear, or the Add behind it
            codes = (writers[pair.input[0]] if shifted else pair).input[0]
            source = ConvInput.of(node, tensors[node.input[1]], codes, scales.scales[tensor], shifted)
            inputs.setdefault(node.input[1], []).append(source)
    for name, sources in list(inputs.items()):
        if len({source.groups for source in sources}) > 1:
            why = "Convs with another number of groups read its weights, too"
            skipped |= {source.node: why for source in inputs.pop(name)}
    nodes = {node.name: node for node in graph.node}
    for (reader, index), tensor in edges.items():
        nodes[reader].input[index] = rounded[tensor]
    return topological_sort(result), inputs, skipped


def _with_outputs(probe: onnx.ModelProto, codes: Sequence[str]) -> onnx.ModelProto:
    """Return the model with int8 tensors as its only outputs."""
    result = copy_model(probe)
    graph = result.graph
    del graph.output[:]
    graph.output.extend(helper.make_tensor_value_info(name, TensorProto.INT8, None) for name in codes)
    return result


def _passes(inputs: Mapping[str, Sequence[ConvInput]], images: int) -> Iterator[list[str]]:
    """Yield the names of weights whose samples are held at once: at least one, in the order of the graph."""
    held: list[str] = []
    size = 0
    for name, sources in inputs.items():
        needed = sum(samples_bytes(source, images) for source in sources)
        if held and size + needed > SAMPLES_BYTES:
            yield held
            held, size = [], 0
        held.append(name)
        size += needed
    if held:
        yield held


def _first(batches: Iterable[np.ndarray], images: int) -> Iterator[np.ndarray]:
    """Yield the first images, the last batch cut short."""
    for batch in batches:
        yield batch[:images]
        images -= len(batch)
        if images <= 0:
            return
