"""Node names that begin with the node's Keras layer, so that tables can report by layer."""

import re
from collections import Counter
from collections.abc import Iterable
from typing import Any

import onnx

from export.onnx_passes.graph import constants, rename_inputs, topological_sort

# layer name -> the layers inside it, empty for a plain layer
LayerTree = dict[str, Any]
_WEIGHTED = ("Conv", "Gemm", "MatMul")
_ROLES = ("input", "weight", "bias")  # of the inputs of these operators


def keras_layer(node_name: str) -> str:
    """Return the Keras layer of a node of an exported model, or such as ``"preprocessing"`` if it has none."""
    return node_name.split("/", 1)[0]


def _match(component: str, tree: LayerTree, suffixed: bool) -> str | None:
    """Return the layer of a component of a scope path, None if it is none.

    Keras enters each scope twice (to build, to call), so a traced layer ``conv1`` has the scope ``conv1_1``. If there
    is a layer of that name as well, `suffixed` decides.
    """
    candidates = [name for name in (component, re.sub(r"_\d+$", "", component)) if name in tree]
    return next(reversed(candidates) if suffixed else iter(candidates), None)


def find_layer(paths: Iterable[str], root: str, tree: LayerTree) -> str | None:
    """Return the Keras layer of the first of several scope paths that contains one, None if none does.

    Args:
        paths: Names such as ``"resnet50_1/conv1_conv_1/convolution"``, in order of preference.
        root: The name of the model.
        tree: Its layers, nested models with their layers.
    """
    for path in paths:
        components = path.split(":")[0].split("/")
        roots = [i for i, c in enumerate(components[:-1]) if re.fullmatch(rf"{re.escape(root)}(_\d+)?", c)]
        layer, level = None, tree
        for component in components[roots[0] + 1 :] if roots else ():
            name = _match(component, level, suffixed=components[roots[0]] != root)
            if name is None:
                break
            layer, level = name, level[name]
        if layer is not None:
            return layer
    return None


def name_by_layer(model: onnx.ModelProto, root: str, tree: LayerTree) -> onnx.ModelProto:
    """Rename every node ``<keras layer>/<operator>``, and tensors and initializers after their nodes.

    A second node of a layer and operator gets the suffix ``_2``. A node of no layer gets the layer of the node that
    writes its input. Inputs and outputs of the graph keep their names.

    Args:
        model: With the names that tf2onnx gave.
        root: The name of the Keras model.
        tree: Its layers.
    """
    result = topological_sort(model)
    graph = result.graph
    table = constants(graph)
    fixed = {i.name for i in graph.input} | {o.name for o in graph.output}
    renamed: dict[str, str] = {}
    layer_of: dict[str, str] = {}
    counts: Counter[str] = Counter()
    for node in graph.node:
        weights = [name for name in node.input if name in table]
        # A Conv took over the output name of the BatchNorm folded into it, so its weight's name comes first.
        roles = _ROLES if node.op_type in _WEIGHTED else ()
        paths = [*weights, node.name] if roles else [node.name, *node.output, *weights]
        layer = find_layer(paths, root, tree) or next((layer_of[i] for i in node.input if i in layer_of), "graph")
        stem = f"{layer}/{node.op_type}"
        counts[stem] += 1
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
