"""Walks over TensorFlow graphs as protocol buffers; imports no TensorFlow."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any


def all_nodes(definition: Any) -> Iterator[Any]:
    """The nodes of a ``GraphDef``, and those of its functions."""
    yield from definition.node
    for function in definition.library.function:
        yield from function.node_def


def owner(tensor: str) -> str:
    """The name of the node that a tensor comes from, or that an input waits for."""
    return tensor.removeprefix("^").split(":")[0]


def readers(nodes: Iterable[Any]) -> dict[str, list[Any]]:
    """The nodes that read a node, by its name."""
    found: dict[str, list[Any]] = {}
    for node in nodes:
        for name in node.input:
            found.setdefault(owner(name), []).append(node)
    return found


def reached(start: Iterable[str], following: Callable[[str], Iterable[str]]) -> dict[str, None]:
    """The names that are reached from some, themselves included, as a set that keeps the order.

    Args:
        start: where to begin.
        following: the names right behind one.
    """
    found, waiting = dict.fromkeys(start), list(start)
    for name in waiting:  # which grows
        for new in following(name):
            if new not in found:
                found[new] = None
                waiting.append(new)
    return found
