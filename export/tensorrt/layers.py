"""What is in an engine against what was asked for: the engine inspector's JSON, whose form differs between versions.

Where an engine was not loaded, TensorRT-RTX's own listing of what it built says the same.

Standard library only, Python 3.10 syntax.
"""

import collections
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from export.tensorrt.library import TensorRT
from export.tensorrt.sidecar import FoundLayers, Layer
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
    output: str  # type of what it writes


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

    Returns:
        FoundLayers: where such a size could not be set, without the types that depend on it, and with the reason.
    """
    inspector = engine.create_engine_inspector()
    reason = None
    if image is not None:
        context, words = _context_for(trt, engine, image)
        if context is None:
            reason = f"types that depend on the batch are not known: {words}"
        else:
            inspector.execution_context = context
    answer = inspector.get_engine_information(trt.member("LayerInformationFormat", "JSON"))
    found = summarize_layers(answer, asked)
    return replace(found, reason=found.reason or reason)


def _context_for(trt: TensorRT, engine: Any, image: tuple[str, Sequence[int]]) -> tuple[Any, str]:
    """Make a context of one batch size, without memory, as it never runs; None and why where TensorRT refuses.

    Engines that are built to get their memory from the caller refuse a context that allocates its own.
    """
    logger = trt.logger()
    try:
        context = trt.context_without_memory(engine)
        if context is None:
            return None, f"no execution context was made: {logger.lines()}"
        if not context.set_input_shape(image[0], tuple(image[1])):
            return None, f"the shape {list(image[1])} was refused: {logger.lines()}"
    except RuntimeError as error:
        return None, f"no execution context was made: {error}"
    return context, ""


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
        # Not strictly: what stands between the nodes in "Metadata" is a control character.
        rows = [_row(layer) for layer in json.loads(information, strict=False)["Layers"]]
    except (ValueError, KeyError, TypeError) as error:
        return FoundLayers(None, f"the engine inspector's answer is not understood: {error!r}")
    convolutions = _find(rows, asked) if asked else {row.layer.name: row for row in rows if row.convolution}
    types = {name: row.layer.precision if row else UNKNOWN for name, row in convolutions.items()}
    outputs = [row.output for row in convolutions.values() if row and row.layer.precision == "int8"]
    told = [kind for kind in outputs if kind != UNKNOWN]
    return FoundLayers(
        count=len(rows),
        by_kind=_counts(row.layer.kind for row in rows),
        by_precision=_counts(row.layer.precision for row in rows),
        convolutions=_counts(types.values()),
        convolution_layers=types,
        int8_outputs=_counts(told) if told or not outputs else None,
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


def unfused(found: FoundLayers | None) -> list[str]:
    """Say where INT8 convolutions write float, so that separate kernels have to make INT8 of it again.

    The last convolution, before the head, has no INT8 to write, and a few others may go to where float is wanted: it is
    said where fewer than half of the rest write INT8.
    """
    outputs = (found.int8_outputs if found else None) or {}
    total = sum(outputs.values())
    others = {kind: number for kind, number in outputs.items() if kind != "int8"}
    if 2 * outputs.get("int8", 0) >= total - 1:
        return []
    kinds = " and ".join(kind.upper() for kind in others)
    return [
        f"{sum(others.values()):,} of {count(total, 'INT8 convolution')} write {kinds}: they are not fused with what "
        "follows them, so expect INT8 slower than FP16. This is about speed alone; the benchmark on a GPU tells "
        "which is faster"
    ]


_LISTED = re.compile(
    r"Name: (?P<Name>.*?), LayerType: (?P<LayerType>\w+), Inputs: \[(?P<Inputs>.*?)\], Constants: \[.*?\], "
    r"Outputs: \[(?P<Outputs>.*?)\], TacticName: (?P<TacticName>.*?), StreamId: .*?\bMetadata: ?(?P<Metadata>.*)"
)


def summarize_listing(listing: str, asked: Mapping[str, str]) -> FoundLayers | None:
    """Summarise what TensorRT-RTX lists in its log when it has built an engine, as it does where no GPU is.

    Args:
        listing: the message: "Layers:", a line for each layer, an empty line, and what does not matter here.
        asked: ONNX node of each convolution and the type asked of it.

    Returns:
        FoundLayers | None: see `summarize_layers`; None where a line has another form than that of 1.7.
    """
    head, *lines = listing.partition("\n\n")[0].split("\n")
    matches = [_LISTED.fullmatch(line) for line in lines]
    if head != "Layers:" or not all(matches):
        return None
    layers = []
    for layer in (match.groupdict() for match in matches if match):
        tensors = {side: [{"Datatype": kind} for kind in re.findall(r"Datatype: (\w+)", layer[side])]
                   for side in ("Inputs", "Outputs")}  # fmt: skip
        layers.append({**layer, **tensors})
    return summarize_layers(json.dumps({"Layers": layers}), asked)


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
    named = any(word in does for word in ("conv", "fprop", "correlation")) or "conv" in name.lower()
    output = _precision(layer.get("Outputs")) or UNKNOWN
    return _Row(Layer(name, keras, kind, precision), nodes, reformat, named and not reformat, output)


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
