"""A row of the table that says what each node of the INT8 graph computes in."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Placement:
    """What one node computes in, and why.

    Args:
        node: Its name in the graph.
        keras_layer: The layer it comes from.
        op: The ONNX operator.
        precision: ``"int8"``, ``"fp16"`` or ``"fp32"``. ``"int8"`` says that all data inputs are quantised.
        why: The rule, for people.
    """

    node: str
    keras_layer: str
    op: str
    precision: str
    why: str
