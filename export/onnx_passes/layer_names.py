"""Names: every node carries its Keras layer, so tables can report by layer."""

import re
from collections.abc import Iterable
from typing import Any

import onnx

from export.onnx_passes.graph import constants, rename_inputs, topological_sort

# layer name -> the layers inside it, empty for a plain layer
LayerTree = dict[str, Any]
_WEIGHTED = ("Conv", "Gemm", "MatMul")
_ROLES = ("input", "weight", "bias")  # of what these read


def keras_layer(node_name: str) -> str:
    """Return the Keras layer of a node of an exported model; ``"preprocessing"`` and the like where it has none."""
    return node_name.split("/", 1)[0]


def _match(component: str, tree: LayerTree, suffixed: bool) -> str | None:
    """Return the layer that a scope component stands for.

    Keras enters each scope twice (to build, to call), so a traced layer ``conv1`` reads ``conv1_1``; with a layer
    of that very name around, the suffix decides.
    """
    candidates = [name for name in (component, re.sub(r"_\d+$", "", component)) if name in tree]
    if not candidates:
        return None
    return candidates[-1] if suffixed else candidates[0]


def find_layer(paths: Iterable[str], root: str, tree: LayerTree) -> str | None:
    """Return the Keras layer that one of several scope paths leads to.

    Args:
        paths: Names such as ``"resnet50_1/conv1_conv_1/convolution"``, the best first.
        root: The name of the model.
        tree: Its layers, nested models with theirs.
    """
    for path in paths:
        components = path.split(":")[0].split("/")
        roots = [i for i, c in enumerate(components[:-1]) if c == root or re.fullmatch(rf"{re.escape(root)}_\d+", c)]
        if not roots:
            continue
        suffixed = components[roots[0]] != root
        found, level = None, tree
        for component in components[roots[0] + 1 :]:
            name = _match(component, level, suffixed)
            if name is None:
                break
            found, level = name, level[name]
        if found is not None:
            return found
    return None


def name_by_layer(model: onnx.ModelProto, root: str, tree: LayerTree) -> onnx.ModelProto:
    """Rename every node ``<keras layer>/<operator>``, and tensors and initializers after their nodes.

    A second node of one layer and operator gets ``_2``. Nodes that belong to no layer keep the layer of the node
    that makes their input. Inputs and outputs of the graph keep their names.

    Args:
        model: As the exporter left it.
        root: The name of the Keras model.
        tree: Its layers.
    """
    result = topological_sort(model)
    graph = result.graph
    table = constants(graph)
    fixed = {i.name for i in graph.input} | {o.name for o in graph.output}
    renamed: dict[str, str] = {}
    layer_of: dict[str, str] = {}
    counts: dict[str, int] = {}
    for node in graph.node:
        weights = [name for name in node.input if name in table]
        # A Conv took over the output name of the BatchNorm folded into it, so its weight knows better.
        roles = _ROLES if node.op_type in _WEIGHTED else ()
        paths = [*weights, node.name] if roles else [node.name, *node.output, *weights]
        above = next((layer_of[name] for name in node.input if name in layer_of), "graph")
        layer = find_layer(paths, root, tree) or above
        stem = f"{layer}/{node.op_type}"
        counts[stem] = counts.get(stem, 0) + 1
        node.name = stem if counts[stem] == 1 else f"{stem}_{counts[stem]}"
        for index, name in enumerate(node.input):
            if name in table and name not in renamed:
                renamed[name] = f"{node.name}/{roles[index] if roles else f'constant{index}'}"
        for index, name in enumerate(node.output):
            layer_of[name] = layer
            if name and name not in fixed:
                renamed[name] = f"{node.name}:{index}"
    for node in graph.node:
        rename_inputs(node, renamed)
        node.output[:] = [renamed.get(name, name) for name in node.output]
        node.doc_string = ""
    for tensor in graph.initializer:
        tensor.name = renamed.get(tensor.name, tensor.name)
        tensor.doc_string = ""
    del graph.value_info[:]
    return result
