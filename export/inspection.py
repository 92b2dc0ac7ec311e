"""What is in an engine against what was asked for: the engine inspector's JSON, whose form differs between versions.

Standard library only, Python 3.10 syntax.
"""

from __future__ import annotations

import collections
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from export.capabilities import TensorRT
from export.sidecar import FoundLayers, Layer
from export.words import count, listed

# The longest names first: "bfloat16" holds "float16", "int8" stands in "uint8".
_TYPES = (
    ("bf16", "bf16|bfloat16"),
    ("fp16", "fp16|half|float16"),
    ("fp8", "fp8"),
    ("uint8", "uint8"),
    ("int8", "int8"),
    ("int32", "int32"),
    ("int64", "int64"),
    ("bool", "bool"),
    ("fp32", "fp32|float32|float"),
)
ANY = "any"  # asked of a layer whose type TensorRT 8.6 may choose
UNKNOWN = "unknown"


@dataclass(frozen=True)
class _Row:
    layer: Layer
    nodes: list[str]  # names of the ONNX nodes
    reformat: bool
    convolution: bool


def inspect_engine(
    trt: TensorRT, engine: Any, asked: Mapping[str, str], image: tuple[str, Sequence[int]] | None
) -> FoundLayers:
    """Summarise the layers of a deserialised engine; see `summarize_layers`.

    Args:
        trt: the library that loaded it.
        engine: the engine.
        asked: ONNX node of each convolution and the type that was asked of it.
        image: name and a full shape of the input. An engine for several batch sizes shows the types of its layers
            only for one of them. None: they are not asked for, as an engine without weights cannot run.
    """
    inspector = engine.create_engine_inspector()
    if image is not None:
        context = engine.create_execution_context()
        if context is not None and context.set_input_shape(image[0], tuple(image[1])):
            inspector.execution_context = context
    answer = inspector.get_engine_information(trt.member("LayerInformationFormat", "JSON"))
    return summarize_layers(answer, asked)


def summarize_layers(information: str, asked: Mapping[str, str] | None = None) -> FoundLayers:
    """Count the layers of an engine by kind and by the type that they compute in.

    A layer's type is that of its first input: the output of an INT8 convolution may be FP16 again. TensorRT 8.6 to 10
    write it as "Format/Datatype", TensorRT 11 as "DataType"; where it depends on the batch size, that of the weights
    tells. Which ONNX nodes a layer does is in its "Metadata", and in 8.6 in its name.

    Args:
        information: what ``get_engine_information(JSON)`` gave, from an engine built with DETAILED verbosity.
        asked: ONNX node of each convolution and the type asked of it. Defaults to None: what looks like a convolution
            is one.

    Returns:
        FoundLayers: counts by kind and type, and the layers; where the inspector's answer
        cannot be read, why not.
    """
    try:
        rows = [_row(layer) for layer in json.loads(information)["Layers"]]
    except (ValueError, KeyError, TypeError) as error:
        return FoundLayers(None, f"the engine inspector's answer is not understood: {error!r}")
    convolutions = _find(rows, asked) if asked else {row.layer.name: row for row in rows if row.convolution}
    types = {name: row.layer.precision if row else UNKNOWN for name, row in convolutions.items()}
    return FoundLayers(
        count=len(rows),
        by_kind=_counts(row.layer.kind for row in rows),
        by_precision=_counts(row.layer.precision for row in rows),
        convolutions=_counts(types.values()),
        convolution_layers=types,
        reformats=tuple(row.layer.name for row in rows if row.reformat),
        layers=tuple(row.layer for row in rows),
    )


def differences(asked: Mapping[str, str], found: FoundLayers | None) -> list[str]:
    """Say where the engine computes a convolution in another type than was asked for, by Keras layer.

    Args:
        asked: ONNX node of each convolution and the type asked of it.
        found: what `summarize_layers` gave, or None where the engine was not loaded.

    Returns:
        list[str]: a sentence for each type that was asked for and not met; none about what cannot be told.
    """
    types = found.convolution_layers if found else {}
    said = []
    for wanted in dict.fromkeys(asked.values()):
        names = [name for name, kind in asked.items() if kind == wanted]
        others = [f"{_keras(name)} ({types[name]})" for name in names if types.get(name, UNKNOWN) != UNKNOWN
                  and types[name] != wanted]  # fmt: skip
        if others and wanted != ANY:
            why = (
                "the ONNX file quantised"
                if wanted == "int8"
                else f"{'was' if len(names) == 1 else 'were'} asked for in {wanted.upper()}"
            )
            those = f"{len(others):,} of {count(len(names), 'convolution')} that {why}"
            said.append(f"{those} {'does' if len(others) == 1 else 'do'} not run in {wanted.upper()}: {listed(others)}")
    return said


def _row(layer: Any) -> _Row:
    if not isinstance(layer, dict):  # names only: an engine without DETAILED verbosity
        layer = {"Name": layer}
    name, kind = str(layer.get("Name", "")), str(layer.get("LayerType", UNKNOWN))
    weights = layer.get("Weights")
    precision = (
        _precision(layer.get("Inputs"))
        or _type(weights.get("Type") if isinstance(weights, dict) else None)
        or _precision(layer.get("Outputs"))
        or UNKNOWN
    )
    reformat = (
        "reformat" in kind.lower() or layer.get("Origin") == "REFORMAT" or name.startswith("Reformatting CopyNode")
    )
    nodes = re.findall(r"\[ONNX Layer: ([^\]\x1e\x1f]+)\]", str(layer.get("Metadata") or ""))
    if not nodes and not reformat and "ForeignNode[" not in name:  # which names its first and last node only
        nodes = [part.strip(" []{}") for part in re.split(r" \+ |\|\|", name)]
    keras = tuple(dict.fromkeys(_keras(node) for node in nodes if "/" in node))
    does = f"{kind} {layer.get('TacticName', '')} {layer.get('ParameterType', '')}".lower()
    convolution = not reformat and ("conv" in does or "fprop" in does or "conv" in name.lower())
    return _Row(Layer(name, keras, kind, precision), nodes, reformat, convolution)


def _find(rows: Sequence[_Row], asked: Mapping[str, str]) -> dict[str, _Row | None]:
    """The row that computes each convolution: what looks like one before what was merely fused with it."""
    holding: dict[str, list[_Row]] = {name: [] for name in asked}
    for row in rows:
        for node in () if row.reformat else row.nodes:
            if node in holding:
                holding[node].append(row)
    return {
        name: next((row for row in found if row.convolution), found[0] if found else None)
        for name, found in holding.items()
    }


def _keras(node: str) -> str:
    return node.partition("/")[0]


def _counts(values: Any) -> dict[str, int]:
    return dict(collections.Counter(values).most_common())


def _precision(tensors: Any) -> str | None:
    if not isinstance(tensors, list) or not tensors or not isinstance(tensors[0], dict):
        return None
    for wanted in ("datatype", "format"):
        for key, value in tensors[0].items():
            if wanted in key.lower() and (found := _type(value)):
                return found
    return None


def _type(value: Any) -> str | None:
    text = str(value).lower()
    return next((name for name, pattern in _TYPES if value is not None and re.search(pattern, text)), None)
