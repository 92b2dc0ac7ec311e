"""Write other forms of a recipe's INT8 file, for a GPU to time against it: ``python -m benchmarks.int8_forms``.

Two choices of the quantize stage cost time on a GPU alone, if anything: the shift behind a ReLU, which makes a Clip of
it (`export.int8.shift`), and a trunk of FP32 (`export.int8.trunk`). Each form undoes one of them and leaves everything
else as it is in the file, so that ``benchmarks.gpu_evidence`` compares like with like.
"""

import argparse
import logging
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from export.errors import ProjectError
from export.fp16.convert import FP16_MAX, has_half, preprocessing_nodes, to_half
from export.int8.regions import find_regions
from export.int8.scales import INT8_MAX, SHIFTED_MAX
from export.int8.shift import HIGHEST, LIFTED, shift
from export.int8.trunk import trunk_nodes
from export.onnx_passes.file import check_model, load_model, save_model
from export.onnx_passes.graph import (
    attribute,
    bypass_nodes,
    constants,
    copy_model,
    infer_shapes,
    op_counts,
    producers,
    topological_sort,
)
from export.onnx_passes.repairs import convert_graph_to_float32
from export.words import listed
from pipeline.artifacts.output import check_folder
from pipeline.artifacts.paths import FORMS, ONNX, TENSORRT8
from pipeline.cli import options
from pipeline.terminal.command_line import Parser

log = logging.getLogger("benchmarks.int8_forms")

EXAMPLES = """examples:
  python -m benchmarks.int8_forms -c configs/imagenet.yaml
  python -m benchmarks.gpu_evidence artifacts/imagenet    # on the GPU machine, with the folder evidence/forms in it
"""
_UNBOUNDED = FP16_MAX  # a Clip with this maximum or a larger one stands for a ReLU


def float_model(model: onnx.ModelProto) -> tuple[onnx.ModelProto, dict[str, str]]:
    """Return an INT8 graph in float32 without its Q/DQ pairs, with the weights as they are rounded.

    Args:
        model: From `export.int8.qdq.quantize`, on any base.

    Returns:
        The graph, and tensor that was quantized -> name of the initializer with its scale in ``model``.
    """
    result = _in_float32(model)
    table = constants(result.graph)
    scales = {}
    pairs = []
    for node in result.graph.node:
        if node.op_type == "QuantizeLinear":
            pairs.append(node)
            if node.input[0] not in table:
                scales[node.input[0]] = node.input[1]
        elif node.op_type == "DequantizeLinear" and node.input[0] not in table:
            pairs.append(node)
    codes = [node for node in result.graph.node if node.op_type == "DequantizeLinear" and node.input[0] in table]
    for node in codes:
        values, scale = (numpy_helper.to_array(table[name]) for name in node.input[:2])
        axis = attribute(node, "axis", 1)
        shape = [-1 if scale.ndim and number == axis else 1 for number in range(values.ndim)]
        weight = np.asarray(values * scale.reshape(shape), np.float32)
        result.graph.initializer.append(numpy_helper.from_array(weight, node.output[0]))
        result.graph.node.remove(node)
    return bypass_nodes(result, pairs), scales


def _in_float32(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return the graph in float32, without the casts between the types of its parts."""
    result = copy_model(model)
    del result.graph.value_info[:]
    convert_graph_to_float32(result.graph)
    written = producers(result.graph)
    casts = [
        node
        for node in result.graph.node
        if node.op_type == "Cast" and attribute(node, "to") == TensorProto.FLOAT and node.input[0] in written
    ]
    return bypass_nodes(result, casts)


def without_shift(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return an INT8 graph without its shift: a Relu for each Clip, and scales that cover the same range.

    Args:
        model: From `export.int8.qdq.quantize`, on any base.

    Raises:
        ProjectError: If no tensor is shifted, or the shift is not one that `export.int8.shift` makes.
    """
    plain, scales = float_model(model)
    amounts = _lowered(plain)
    if not amounts:
        raise ProjectError("Expected shifted tensors in the INT8 file. Received: none (there is one form less).")
    _rectify_all(plain, amounts)
    regions = {region.node: region for region in find_regions(plain).found.values()}
    if missing := [name for name in amounts if name not in regions]:
        raise ProjectError(
            f"Expected shifts that this version makes. Received: others, of {listed(missing)} (quantize again)."
        )
    before = {name: numpy_helper.to_array(tensor) for name, tensor in constants(plain.graph).items()}
    lifted = shift(plain, {regions[name].tensor: -amount for name, amount in amounts.items()}, lambda node: None).model
    changed = {
        name: values
        for name, tensor in constants(lifted.graph).items()
        if name in before and not np.array_equal(values := numpy_helper.to_array(tensor), before[name])
    }
    result = copy_model(model)
    wider = {scales[regions[name].tensor] for name in amounts}
    for tensor in result.graph.initializer:
        values = numpy_helper.to_array(tensor)
        if tensor.name in wider:
            changed[tensor.name] = values.astype(np.float64) * SHIFTED_MAX / INT8_MAX
        if tensor.name in changed:
            tensor.CopyFrom(numpy_helper.from_array(changed.pop(tensor.name).astype(values.dtype), tensor.name))
    _rectify_all(result, amounts)
    if changed:
        raise ProjectError(
            f"Expected biases of the INT8 file. Received: none called {listed(changed)} (quantize again)."
        )
    check_model(result)
    return result


def _lowered(model: onnx.ModelProto) -> dict[str, float]:
    """Return name of a Clip with a minimum below 0 -> by how much it lowers its input."""
    table = constants(model.graph)
    minima = {
        node.name: float(numpy_helper.to_array(table[node.input[1]]))
        for node in model.graph.node
        if node.op_type == "Clip" and len(node.input) > 1 and node.input[1] in table
    }
    return {name: -minimum for name, minimum in minima.items() if minimum < 0}


def _lifts(model: onnx.ModelProto) -> list[tuple[onnx.NodeProto, onnx.NodeProto]]:
    """Return each Add of a shift behind a pooling, and the node that writes the mean."""
    written = producers(model.graph)
    adds = [node for node in model.graph.node if node.op_type == "Add" and node.name.endswith(LIFTED)]
    return [(add, written[add.input[0]]) for add in adds]


def _rectify_all(model: onnx.ModelProto, amounts: Mapping[str, float]) -> None:
    """Undo what a shift makes of ReLUs and behind poolings (in place); the biases stay."""
    for node in model.graph.node:
        if node.name in amounts:
            _rectify(model, node, amounts[node.name])
    for add, mean in _lifts(model):
        mean.output[0] = add.output[0]
        model.graph.initializer.remove(constants(model.graph)[add.input[1]])
        model.graph.node.remove(add)


def _rectify(model: onnx.ModelProto, node: onnx.NodeProto, amount: float) -> None:
    """Make a Relu of a Clip that is lower by an amount, or a Clip at 0 and its maximum (in place)."""
    table = constants(model.graph)
    highest = numpy_helper.to_array(table[node.input[2]])
    for name in set(node.input[1:]):
        model.graph.initializer.remove(table[name])
    del node.input[1:]
    if float(highest) >= _UNBOUNDED:
        node.op_type = "Relu"
        return
    for name, value in (("bottom", 0.0), ("top", float(highest) + amount)):
        node.input.append(f"{node.name}/{name}")
        model.graph.initializer.append(numpy_helper.from_array(np.asarray(value, highest.dtype), node.input[-1]))


def with_half_trunk(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return an INT8 graph with a trunk of FP16: its biases, Adds and scales, those of the weights included.

    The layers that stay in float keep their types. A node of the trunk with a constant that FP16 cannot hold, as a bias
    that makes up for a shift may be, stays FP32, as in a file that the quantize stage makes with such a trunk.

    Args:
        model: From `export.int8.qdq.quantize` on the base ``"fp16"``.

    Raises:
        ProjectError: If the trunk is of FP16 already, or the graph is on an FP32 base.
    """
    whole = topological_sort(_in_float32(model))
    lifts = {node.name for pair in _lifts(whole) for node in pair}  # FP32 in any case, see `export.int8.shift`
    trunk = trunk_nodes(whole) - lifts
    kinds = {info.name: info.type.tensor_type.elem_type for info in infer_shapes(model).value_info}
    kinds |= {info.name: info.type.tensor_type.elem_type for info in model.graph.output}
    single = {node.name for node in model.graph.node if kinds.get(node.output[0]) == TensorProto.FLOAT}
    if not has_half(model) or single.isdisjoint(trunk):
        received = "one of FP16" if has_half(model) else "a file without FP16"
        raise ProjectError(
            f"Expected an INT8 file with a trunk of FP32. Received: {received} (there is one form less)."
        )
    prepared = {node.name for node in preprocessing_nodes(whole)}
    return to_half(whole, keep=(single - trunk - prepared) | lifts | (trunk & _beyond_half(whole.graph)))


def _beyond_half(graph: onnx.GraphProto) -> set[str]:
    """Return the names of the nodes with a constant beyond FP16; float32's largest stands for no bound."""
    largest = {
        name: float(np.abs(values[np.abs(values) != HIGHEST]).max(initial=0.0))
        for name, tensor in constants(graph).items()
        if (values := numpy_helper.to_array(tensor)).dtype == np.float32
    }
    return {node.name for node in graph.node if any(largest.get(name, 0.0) > FP16_MAX for name in node.input)}


def write_forms(artifacts: Path) -> dict[str, str]:
    """Write the forms of a recipe's INT8 files that differ from them.

    Args:
        artifacts: ``artifacts/<recipe>``, quantized.

    Returns:
        Name of a file in the artifacts -> "", or why there is no such form.

    Raises:
        ProjectError: If there is no INT8 file, or it is damaged.
    """
    check_folder((artifacts / FORMS["plain"]).parent, "--artifacts")
    model = load_model(artifacts / ONNX["int8"])
    if "DequantizeLinear" not in op_counts(model):
        raise ProjectError(f"Expected an INT8 graph. Received: {artifacts / ONNX['int8']}, which has no Q/DQ pair.")
    jobs = [(FORMS["plain"], without_shift, model), (FORMS["trunk-fp16"], with_half_trunk, model)]
    if (artifacts / TENSORRT8["int8"]).is_file():
        jobs.append((FORMS["plain-trt8"], without_shift, load_model(artifacts / TENSORRT8["int8"])))
    results = {}
    for name, make, source in jobs:
        (artifacts / name).unlink(missing_ok=True)  # of an earlier INT8 file
        try:
            made = make(source)
        except ProjectError as error:
            results[name] = str(error)
            log.warning("  no %s: %s", name, error)
            continue
        helper.set_model_props(made, {entry.key: entry.value for entry in source.metadata_props})
        (artifacts / name).parent.mkdir(parents=True, exist_ok=True)
        save_model(made, artifacts / name)
        results[name] = ""
        log.info("  %s: %.1f MB", name, (artifacts / name).stat().st_size / 1e6)
    return results


def build_parser() -> Parser:
    """Return the parser of the command line."""
    return Parser(
        prog="python -m benchmarks.int8_forms",
        description="Write other forms of a recipe's INT8 file, for a GPU to time against it.",
        parents=[options.recipe_options()],
        epilog=f"{EXAMPLES}\n{options.EXIT_STATUS}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return the exit status."""
    return options.run_command(build_parser(), argv, _forms)


def _forms(args: argparse.Namespace) -> dict[str, object]:
    context = options.make_context(args)
    results = write_forms(context.root)
    return {"recipe": context.recipe.name, "files": [name for name, why in results.items() if not why]}


if __name__ == "__main__":
    sys.exit(main())
