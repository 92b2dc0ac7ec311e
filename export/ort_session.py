"""Opens ONNX Runtime sessions with options under which the graph of the file runs; copies models without large weights.

All sessions are opened here. onnx and onnxruntime are imported inside the functions, because this module is imported
where they are not installed. Python 3.10 syntax.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import onnx
    from onnx import ModelProto

CPU = "CPUExecutionProvider"
# Files that earlier versions exported have a Pad before a MaxPool. Pad_Fusion drops its border: wrong for ResNetV2.
_WRONG_OPTIMIZERS = ["Pad_Fusion"]
_SMALL = 1000  # values of an initializer that shape inference or an optimizer may read


def skeleton(model: onnx.ModelProto) -> tuple[onnx.ModelProto, list[onnx.TensorProto]]:
    """Return the model without its large weights, and these weights."""
    from onnx import ModelProto, TensorProto

    result = ModelProto(
        **{part: getattr(model, part) for part in ("ir_version", "opset_import", "functions", "metadata_props")}
    )
    graph = result.graph
    graph.name = model.graph.name
    for part in ("node", "input", "output", "value_info", "sparse_initializer"):
        getattr(graph, part).extend(getattr(model.graph, part))
    weights: list[onnx.TensorProto] = []
    for tensor in model.graph.initializer:
        small = tensor.data_type == TensorProto.INT64 or math.prod(tensor.dims) < _SMALL  # shapes, axes, pads
        (graph.initializer if small else weights).append(tensor)
    return result, weights


def with_weights_as_inputs(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return the model with a graph input instead of each large weight."""
    from onnx import helper

    result, weights = skeleton(model)
    result.graph.input.extend(helper.make_tensor_value_info(t.name, t.data_type, t.dims) for t in weights)
    return result


def open_session(
    model: str | bytes | ModelProto,
    *,
    providers: Sequence[tuple[str, Mapping[str, str]]] = ((CPU, {}),),
    exact: bool = False,
    fuse_int8: bool = False,
    memory_pattern: bool = True,
    spinning: bool = True,
    threads: int = 0,
    log_severity: int = 3,
) -> Any:
    """Return an ``InferenceSession`` without a fallback: a failure while it opens or runs is an error.

    Args:
        model: Path of an ONNX file, its bytes, or a model in memory, whose large weights are not copied.
        providers: Execution providers in order of preference, each with its options. Defaults to the CPU.
        exact: Whether all graph optimizations are off. Defaults to False.
        fuse_int8: Whether ONNX Runtime may replace Q/DQ pairs by its INT8 kernels, which saturate on some CPUs.
            Defaults to False: pairs are computed as in the file.
        memory_pattern: Whether the memory of all activations is planned at once. Defaults to True.
        spinning: Whether idle threads wait in a loop, which shortens the latency a little and occupies the cores.
            Defaults to True.
        threads: Number of threads per operator; 0 is ONNX Runtime's default. Defaults to 0.
        log_severity: Lowest severity that ONNX Runtime writes to standard error: 3 for errors, 4 for fatal errors.
            Defaults to 3.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = log_severity
    options.intra_op_num_threads = threads
    options.enable_mem_pattern = memory_pattern
    if not spinning:
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    if not fuse_int8:
        options.add_session_config_entry("session.disable_quant_qdq", "1")
    if exact:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    weights: dict[str, object] = {}
    if not isinstance(model, (str, bytes)):
        model, weights = _weights_apart(model)
        options.add_external_initializers(list(weights), list(weights.values()))
    # Without enable_fallback=0 a failure on a GPU would be computed on the CPU instead.
    session = onnxruntime.InferenceSession(
        model, options, providers=list(providers), enable_fallback=0, disabled_optimizers=_WRONG_OPTIMIZERS
    )
    session.weights = weights  # ONNX Runtime does not copy them, and keeps no reference
    return session


def _weights_apart(model: ModelProto) -> tuple[bytes, dict[str, object]]:
    """Return the bytes of a model with its large weights external, and these weights as ``OrtValue`` by name."""
    from onnx import TensorProto, numpy_helper
    from onnxruntime import OrtValue

    result, tensors = skeleton(model)
    for tensor in tensors:
        stub = result.graph.initializer.add(
            name=tensor.name, data_type=tensor.data_type, dims=tensor.dims, data_location=TensorProto.EXTERNAL
        )
        stub.external_data.add(key="location", value="memory")
    return result.SerializeToString(), {
        tensor.name: OrtValue.ortvalue_from_numpy(numpy_helper.to_array(tensor)) for tensor in tensors
    }
