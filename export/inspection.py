"""What is in an engine: a summary of the engine inspector's JSON, whose form differs between versions.

Standard library only, Python 3.10 syntax.
"""

from __future__ import annotations

import collections
import json
import re
from typing import Any

from export.capabilities import TensorRT

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


def inspect_engine(trt: TensorRT, engine: Any) -> dict[str, Any]:
    """Summarise the layers of a deserialised engine; see `summarize_layers`."""
    inspector = engine.create_engine_inspector()
    return summarize_layers(inspector.get_engine_information(trt.member("LayerInformationFormat", "JSON")))


def summarize_layers(information: str) -> dict[str, Any]:
    """Count the layers of an engine by kind and by the type that they compute in.

    A layer's type is that of its first input: the output of an INT8 convolution may be FP16 again.
    TensorRT 8.6 to 10 write it as "Format/Datatype", TensorRT 11 as "DataType".

    Args:
        information: what ``get_engine_information(JSON)`` gave, from an engine built with DETAILED verbosity.

    Returns:
        dict: ``count``; ``by_type`` (layer kind to number); ``by_precision`` ("int8", "fp16", "fp32", … or
        "unknown" to number); ``convolutions`` and ``int8_convolutions``; ``layers``, a list of [name, kind,
        precision]. Where the inspector's answer cannot be read: ``count`` None and ``reason``.
    """
    try:
        rows = [_row(layer) for layer in json.loads(information)["Layers"]]
    except (ValueError, KeyError, TypeError) as error:
        return {"count": None, "reason": f"the engine inspector's answer is not understood: {error!r}"}
    convolutions = [row for row in rows if "conv" in f"{row[0]} {row[1]}".lower()]
    return {
        "count": len(rows),
        "by_type": dict(collections.Counter(row[1] for row in rows).most_common()),
        "by_precision": dict(collections.Counter(row[2] for row in rows).most_common()),
        "convolutions": len(convolutions),
        "int8_convolutions": sum(row[2] == "int8" for row in convolutions),
        "layers": rows,
    }


def _row(layer: Any) -> list[str]:
    if not isinstance(layer, dict):  # names only: an engine without DETAILED verbosity
        return [str(layer), "unknown", "unknown"]
    return [
        str(layer.get("Name", "")),
        str(layer.get("LayerType", "unknown")),
        _precision(layer.get("Inputs")) or _precision(layer.get("Outputs")) or "unknown",
    ]


def _precision(tensors: Any) -> str | None:
    if not isinstance(tensors, list) or not tensors or not isinstance(tensors[0], dict):
        return None
    for key, value in tensors[0].items():
        if "datatype" in key.lower():
            for name, pattern in _TYPES:
                if re.search(pattern, str(value).lower()):
                    return name
    return None
