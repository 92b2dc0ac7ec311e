"""Which operations of a TensorFlow graph do more than compute, by the closed list of ``operation_list``.

Reads protocol buffers and runs nothing.
"""

from __future__ import annotations

import base64
from collections.abc import Iterable, Mapping
from typing import Any

from pipeline.graph_bounds import check_graph
from pipeline.graph_nodes import all_nodes, owner, reached
from pipeline.operation_list import CHECKPOINT, COMPUTING, reason
from pipeline.tensorflow_start import start_tensorflow


def frozen_operations(graph: Any, where: str = "the graph in a FrozenGraph") -> list[tuple[str, str]] | None:
    """What does more than compute in a ``GraphDef`` in base64, as (operation, what it does).

    Returns:
        None where it cannot be read.

    Raises:
        ModelError: more than a model has.
    """
    try:
        found = check_graph(base64.b64decode(graph), "Graph", where)
    except (TypeError, ValueError):
        return None
    return _outside(found.operations, found.functions)


def saved_operations(graphs: Iterable[Any]) -> tuple[list[tuple[str, str]], int]:
    """The same for the ``MetaGraphDef`` of a SavedModel, all of them, and how many operations they use.

    Saving and restoring files is passed over in the functions that only the saver calls.
    """
    found: set[tuple[str, str]] = set()
    used: set[str] = set()
    for graph in graphs:
        operations = {node.op for node in all_nodes(graph.graph_def)}
        used |= operations
        functions = {function.signature.name for function in graph.graph_def.library.function}
        if operations & CHECKPOINT:
            operations = operations - CHECKPOINT | (_beyond_saver(graph) & CHECKPOINT)
        found |= set(_outside(operations, functions))
    return sorted(found), len(used)


def _outside(operations: set[str], functions: set[str]) -> list[tuple[str, str]]:
    operations = operations - COMPUTING
    if not operations & functions:
        return [(name, reason(name)) for name in sorted(operations)]
    start_tensorflow()
    from tensorflow.python.framework import op_def_registry

    # A function of the graph, called by its name, is no operation; what is in it is looked at like all else.
    own = {name for name in functions if op_def_registry.get(name) is None}
    return [(name, reason(name)) for name in sorted(operations - own)]


def _beyond_saver(graph: Any) -> set[str]:
    """Operations of everything but what the saver alone runs."""
    nodes = {node.name: node for node in graph.graph_def.node}
    functions = {function.signature.name: function.node_def for function in graph.graph_def.library.function}
    if len(nodes) < len(graph.graph_def.node) or len(functions) < len(graph.graph_def.library.function):
        return {node.op for node in all_nodes(graph.graph_def)}  # names that stand for two things tell nothing
    saver = graph.saver_def
    savers = {owner(name) for name in (saver.save_tensor_name, saver.restore_op_name, saver.filename_tensor_name)}
    only_saver = _needed(savers, nodes)
    named = {owner(info.name) for signature in graph.signature_def.values() for info in signature.outputs.values()}
    named |= {owner(name) for collection in graph.collection_def.values() for name in collection.node_list.value}
    other_nodes = _needed((set(nodes) - only_saver) | named, nodes)
    saver_functions = _called([nodes[name] for name in only_saver - other_nodes], functions)
    other_functions = _called([nodes[name] for name in other_nodes], functions)
    loose = (set(functions) - saver_functions) | set(graph.object_graph_def.concrete_functions)
    other_functions |= _called([node for name in loose for node in functions.get(name, ())], functions) | loose
    return {nodes[name].op for name in other_nodes} | {
        node.op for name in other_functions for node in functions.get(name, ())
    }


def _needed(names: set[str], nodes: Mapping[str, Any]) -> set[str]:
    """The nodes of these names, and all that they read."""
    start = [name for name in names if name in nodes]
    return set(reached(start, lambda name: (source for source in map(owner, nodes[name].input) if source in nodes)))


def _called(nodes: Iterable[Any], functions: Mapping[str, Any]) -> set[str]:
    """The functions that nodes call, and those that these call."""

    def names(callers: Iterable[Any]) -> set[str]:
        called = {node.op for node in callers}
        for value in (value for node in callers for value in node.attr.values()):
            called |= {value.func.name} | {function.name for function in value.list.func}
        return called & functions.keys()

    return set(reached(names(nodes), lambda name: names(functions[name])))
