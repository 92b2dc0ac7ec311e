"""Values that FP16 cannot hold, in a file whose FP16 nodes a CPU computes in FP32.

ONNX Runtime has no FP16 kernels for most operators on a CPU. It computes such nodes in FP32 and, at every level of
optimization, leaves out the casts between them, so a value above FP16's largest, 65,504, does not become infinite
there, as it does on a GPU. The largest values of all FP16 tensors are therefore computed apart, on a few images, in the
file's twin in FP32. Where some are beyond, the twin runs once more with infinity in their place: a negative one that a
ReLU drops changes no answer, and is no fault. NumPy only, Python 3.10 syntax; onnx is imported inside the functions.
"""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np

from pipeline.verification.checks.overflow import LARGEST, ROUNDED_DOWN, Extreme

if TYPE_CHECKING:
    import onnx

log = logging.getLogger(__name__)

IMAGES: Final = 16
MOST_TRIED: Final = 8  # tensors beyond FP16 that are made infinite one by one, to find the first that matters


def find_extreme(path: Path, inputs: np.ndarray) -> Extreme | None:
    """Find what exceeds FP16 in a file, or comes within a factor of two.

    Args:
        path: the file, with one input.
        inputs: for it, at least as many images as its batch size, if that is fixed; `IMAGES` of them are run.

    Returns:
        Extreme | None: of several tensors that matter the first; None where nothing is near, the file has no FP16
            tensors, or the package onnx is not here.
    """
    if importlib.util.find_spec("onnx") is None:
        return None
    try:
        return _find_extreme(path, inputs)
    except Exception as error:  # of ONNX Runtime, which has no public base: the verdict stands on what ran
        log.warning("%s: whether its values exceed FP16 could not be computed: %s", path, error)
        log.debug("why:", exc_info=True)
        return None


def _find_extreme(path: Path, inputs: np.ndarray) -> Extreme | None:
    import onnx

    from pipeline.verification.explain.twin import float_tensors, in_fp32

    model = onnx.load(str(path))
    half = half_tensors(model)
    twin = in_fp32(model) if half else model
    written = {name: node for name, node in float_tensors(twin) if name in half}
    if not written:
        return None
    size = twin.graph.input[0].type.tensor_type.shape.dim[0].dim_value or 1
    few = inputs[: max(IMAGES, size)]
    batches = np.split(few[: len(few) - len(few) % size], len(few) // size)
    largest = _largest(twin, list(written), batches)
    beyond = [name for name in written if largest[name] >= ROUNDED_DOWN]
    worst = max(written, key=largest.__getitem__)
    changed = 0
    if beyond:
        outputs = [info.name for info in twin.graph.output]
        before = _rows(twin, outputs, batches)

        def changed_by(names: Sequence[str]) -> int:
            after = _rows(_with_infinity(twin, names), outputs, batches)
            return sum(not np.array_equal(one, other, equal_nan=True) for one, other in zip(before, after))

        changed = changed_by(beyond)
        if changed:
            worst = next((name for name in beyond[:MOST_TRIED] if changed_by([name])), beyond[0])
    if largest[worst] < LARGEST / 2:
        return None
    node = written[worst]
    return Extreme(node.name.split("/", 1)[0], node.name, largest[worst], len(batches) * size, changed)


def half_tensors(model: onnx.ModelProto) -> set[str]:
    """Return the activations of a model that are FP16."""
    from onnx import TensorProto

    from export.onnx_passes.graph import infer_shapes

    inferred = infer_shapes(model)
    return {
        info.name
        for info in (*inferred.value_info, *inferred.output)
        if info.type.tensor_type.elem_type == TensorProto.FLOAT16
    }


def _largest(model: onnx.ModelProto, tensors: Sequence[str], batches: Sequence[np.ndarray]) -> dict[str, float]:
    """Return the largest absolute value of each tensor over all images; 0 for one that is not finite by itself."""
    from onnx import ModelProto, helper

    reduced = ModelProto()
    reduced.CopyFrom(model)
    names = [f"{tensor}/{kind}" for tensor in tensors for kind in ("ReduceMax", "ReduceMin")]
    for name in names:
        tensor, _, kind = name.rpartition("/")
        reduced.graph.node.append(helper.make_node(kind, [tensor], [name], name, keepdims=0))
    values = np.abs(list(_run(reduced, names, batches))).max(axis=0)
    pairs = np.where(np.isfinite(values), values, 0.0).reshape(-1, 2).max(axis=1)
    return dict(zip(tensors, pairs.tolist()))


def _with_infinity(model: onnx.ModelProto, tensors: Sequence[str]) -> onnx.ModelProto:
    """Return the model in which values of these tensors are infinite where FP16 has no finite ones."""
    from onnx import ModelProto, helper, numpy_helper

    from export.onnx_passes.graph import topological_sort

    result = ModelProto()
    result.CopyFrom(model)
    graph = result.graph
    for name, value in (("fp16/end", ROUNDED_DOWN), ("fp16/infinity", np.inf)):
        graph.initializer.append(numpy_helper.from_array(np.asarray(value, np.float32), name))
    for tensor in tensors:
        node = next(node for node in graph.node if tensor in node.output)
        node.output[list(node.output).index(tensor)] = before = f"{tensor}/before"
        size, fits, infinite = (f"{tensor}/{part}" for part in ("size", "fits", "infinite"))
        graph.node.extend(
            [
                helper.make_node("Abs", [before], [size], size),
                helper.make_node("Less", [size, "fp16/end"], [fits], fits),
                helper.make_node("Mul", [before, "fp16/infinity"], [infinite], infinite),
                helper.make_node("Where", [fits, before, infinite], [tensor], f"{tensor}/where"),
            ]
        )
    return topological_sort(result)


def _rows(model: onnx.ModelProto, names: Sequence[str], batches: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Return all values that a model gives for each image."""
    return [
        np.concatenate([np.ravel(output[image]) for output in outputs])
        for batch, outputs in zip(batches, _run(model, names, batches))
        for image in range(len(batch))
    ]


def _run(model: onnx.ModelProto, names: Sequence[str], batches: Sequence[np.ndarray]) -> Iterator[Sequence[np.ndarray]]:
    """Run a model with one input, one batch after the other."""
    from export.onnx_passes.cut import with_outputs
    from export.ort_session import open_session

    session = open_session(with_outputs(model, names), exact=True, spinning=False, log_severity=4)
    source = session.get_inputs()[0]
    for batch in batches:
        values = batch.astype(np.float32) if source.type == "tensor(float)" else batch  # of a file that takes FP16
        yield session.run(list(names), {source.name: values})
