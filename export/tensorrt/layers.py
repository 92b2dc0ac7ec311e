"""Summarise the layers of an engine and compare their types with the requested ones.

The layers come from the engine inspector's JSON, whose form differs between versions, or, where the engine was not
loaded, from the listing that TensorRT-RTX logs after a build. Needs Python 3.10 and the standard library alone.
"""

import collections
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from export.tensorrt.library import TensorRT
from export.tensorrt.sidecar import EngineLayers, Layer
from export.words import count, listed

# The longest names first: "bfloat16" contains "float16", and "uint8" contains "int8".
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
ANY = "any"  # requested of a layer whose type TensorRT 8.6 may choose
UNKNOWN = "unknown"


@dataclass(frozen=True)
class _Row:
    layer: Layer
    nodes: list[str]  # names of the ONNX nodes
    reformat: bool
    convolution: bool
    output: str  # type of the first output


def inspect_engine(
    trt: TensorRT,
    engine: Any,
    asked: Mapping[str, str],
    image: tuple[str, Sequence[int]] | None,
    activations: Mapping[str, str] | None = None,
) -> EngineLayers:
    """Summarise the layers of a deserialised engine; see `summarize_layers`.

    Args:
        trt: the library that loaded it.
        engine: the engine.
        asked: ONNX node of each convolution to the requested type.
        image: name and full shape of the input, because an engine for several batch sizes shows the types of its
            layers for one size only. None: no shape is set, as for an engine without weights, which cannot run.
        activations: see `summarize_layers`. Defaults to None.

    Returns:
        FoundLayers: where the shape could not be set, without the types that depend on it, and with the reason.
    """
    inspector = engine.create_engine_inspector()
    reason = None
    if image is not None:
        context, why = _context_for(trt, engine, image)
        if context is None:
            reason = f"types that depend on the batch are not known: {why}"
        else:
            inspector.execution_context = context
    information = inspector.get_engine_information(trt.member("LayerInformationFormat", "JSON"))
    layers = summarize_layers(information, asked, activations)
    return replace(layers, reason=layers.reason or reason)


def _context_for(trt: TensorRT, engine: Any, image: tuple[str, Sequence[int]]) -> tuple[Any, str]:
    """Make a context for one batch size, without memory, as it never runs; None and the reason where TensorRT refuses.

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


def summarize_layers(
    information: str, asked: Mapping[str, str] | None = None, activations: Mapping[str, str] | None = None
) -> EngineLayers:
    """Count the layers of an engine by kind and by the type that they compute in.

    A layer's type is that of its first input, as the output of an INT8 convolution may be FP16. TensorRT 8.6 to 10
    write it as "Format/Datatype", TensorRT 11 as "DataType"; where it depends on the batch size, the type of the
    weights is taken. The ONNX nodes of a layer are in its "Metadata", and in 8.6 in its name.

    Args:
        information: the result of ``get_engine_information(JSON)`` for an engine built with DETAILED verbosity.
        asked: ONNX node of each convolution to the requested type. Defaults to None: convolutions are recognised by
            their names and kinds.
        activations: ONNX node of each convolution to that of the activation behind it, a Relu or a Clip. Defaults to
            None: whether a convolution's layer computes its activation too is not told.

    Returns:
        FoundLayers: counts by kind and type, and the layers; where the inspector's answer cannot be read, the reason.
    """
    try:
        # Not strict, because the separator between the nodes in "Metadata" is a control character.
        rows = [_row(layer) for layer in json.loads(information, strict=False)["Layers"]]
    except (ValueError, KeyError, TypeError) as error:
        return EngineLayers(None, f"the engine inspector's answer is not understood: {error!r}")
    convolutions = _match_nodes(rows, asked) if asked else {row.layer.name: row for row in rows if row.convolution}
    types = {name: row.layer.precision if row else UNKNOWN for name, row in convolutions.items()}
    outputs = [row.output for row in convolutions.values() if row and row.layer.precision == "int8"]
    known = [kind for kind in outputs if kind != UNKNOWN]
    return EngineLayers(
        count=len(rows),
        by_kind=_counts(row.layer.kind for row in rows),
        by_precision=_counts(row.layer.precision for row in rows),
        convolutions=_counts(types.values()),
        convolution_layers=types,
        int8_outputs=_counts(known) if known or not outputs else None,
        fused_activations=tuple(
            name
            for name, activation in (activations or {}).items()
            if (row := convolutions.get(name)) and row.convolution and activation in row.nodes
        ),
        reformats=tuple(row.layer.name for row in rows if row.reformat),
        layers=tuple(row.layer for row in rows),
    )


def differences(asked: Mapping[str, str], found: EngineLayers | None) -> list[str]:
    """List where the engine computes a convolution in another type than the requested one, by Keras layer.

    Args:
        asked: ONNX node of each convolution to the requested type.
        found: the result of `summarize_layers`, or None where the engine was not loaded.

    Returns:
        list[str]: a sentence for each requested type that some layers do not have; layers of unknown type are left
        out.
    """
    types = found.convolution_layers if found else {}
    sentences = []
    for requested in dict.fromkeys(asked.values()):
        names = [name for name, kind in asked.items() if kind == requested]
        others = [f"{_keras(name)} ({types[name]})" for name in names
                  if types.get(name, UNKNOWN) not in (UNKNOWN, requested)]  # fmt: skip
        if others and requested != ANY:
            why = (
                "the ONNX file quantised"
                if requested == "int8"
                else f"{'was' if len(names) == 1 else 'were'} asked for in {requested.upper()}"
            )
            sentences.append(
                f"{len(others):,} of {count(len(names), 'convolution')} that {why} "
                f"{'does' if len(others) == 1 else 'do'} not run in {requested.upper()}: {listed(others)}"
            )
    return sentences


def unfused(found: EngineLayers | None) -> list[str]:
    """Warn where INT8 convolutions write float, so that separate kernels have to requantise it.

    The last convolution, before the head, writes float in any case, and so may a few others: there is a warning where
    fewer than half of the rest write INT8.
    """
    outputs = (found.int8_outputs if found else None) or {}
    total = sum(outputs.values())
    others = {kind: number for kind, number in outputs.items() if kind != "int8"}
    if 2 * outputs.get("int8", 0) >= total - 1:
        return []
    return [
        f"{sum(others.values()):,} of {count(total, 'INT8 convolution')} write {' and '.join(map(str.upper, others))}: "
        "they are not fused with what follows them, so expect INT8 slower than FP16. This is about speed alone; the "
        "benchmark on a GPU tells which is faster"
    ]


_LISTED = re.compile(
    r"Name: (?P<Name>.*?), LayerType: (?P<LayerType>\w+), Inputs: \[(?P<Inputs>.*?)\], Constants: \[.*?\], "
    r"Outputs: \[(?P<Outputs>.*?)\], TacticName: (?P<TacticName>.*?), StreamId: .*?\bMetadata: ?(?P<Metadata>.*)"
)


def summarize_listing(
    listing: str, asked: Mapping[str, str], activations: Mapping[str, str] | None = None
) -> EngineLayers | None:
    """Summarise the layers that TensorRT-RTX lists in its log after a build, also without a GPU.

    Args:
        listing: the message: "Layers:", a line for each layer, an empty line, and further text that is ignored.
        asked: ONNX node of each convolution to the requested type.
        activations: see `summarize_layers`. Defaults to None.

    Returns:
        FoundLayers | None: see `summarize_layers`; None where a line has another form than in 1.7.
    """
    head, *lines = listing.partition("\n\n")[0].split("\n")
    matches = [_LISTED.fullmatch(line) for line in lines]
    if head != "Layers:" or not all(matches):
        return None
    layers = [match.groupdict() for match in matches if match]
    for layer in layers:
        for side in ("Inputs", "Outputs"):
            layer[side] = [{"Datatype": kind} for kind in re.findall(r"Datatype: (\w+)", layer[side])]
    return summarize_layers(json.dumps({"Layers": layers}), asked, activations)


def _row(layer: Any) -> _Row:
    if not isinstance(layer, dict):  # an engine without DETAILED verbosity has names only
        layer = {"Name": layer}
    name, kind = str(layer.get("Name", "")), str(layer.get("LayerType", UNKNOWN))
    weights, output = layer.get("Weights"), _precision(layer.get("Outputs")) or UNKNOWN
    precision = (
        _precision(layer.get("Inputs")) or _type(weights.get("Type") if isinstance(weights, dict) else None) or output
    )
    reformat = (
        "reformat" in kind.lower() or layer.get("Origin") == "REFORMAT" or name.startswith("Reformatting CopyNode")
    )
    nodes = re.findall(r"\[ONNX Layer: ([^\]\x1e\x1f]+)\]", str(layer.get("Metadata") or ""))
    if not nodes and not reformat and "ForeignNode[" not in name:  # a ForeignNode names its first and last node only
        nodes = _named_nodes(name)
    keras = tuple(dict.fromkeys(_keras(node) for node in nodes if "/" in node))
    operation = f"{kind} {layer.get('TacticName', '')} {layer.get('ParameterType', '')}".lower()
    named = any(word in operation for word in ("conv", "fprop", "correlation")) or "conv" in name.lower()
    named |= name.startswith("__myl_") and "Corr" in name  # TensorRT's compiler names what it fused: "__myl_CorrMaxMin"
    return _Row(Layer(name, keras, kind, precision), nodes, reformat, named and not reformat, output)


def _named_nodes(name: str) -> list[str]:
    """Return the ONNX nodes in the name of a layer of TensorRT 8.6, such as "conv/Conv + PWN(relu/Clip)".

    "PWN(…)" is a pointwise operation, also within another one: "PWN(PWN(a), b)".
    """
    parts = (part.strip(" []{}") for part in re.split(r" \+ |\|\|", name))
    inner = (re.split(r", ", part.replace("PWN(", "").rstrip(")")) if "PWN(" in part else [part] for part in parts)
    return [node.strip(" ()") if len(nodes) > 1 else node for nodes in inner for node in nodes]


def _match_nodes(rows: Sequence[_Row], names: Iterable[str]) -> dict[str, _Row | None]:
    """Return the row that computes each convolution: a convolution row before a row that is only fused with it."""
    ordered = sorted((row for row in rows if not row.reformat), key=lambda row: not row.convolution)
    return {name: next((row for row in ordered if name in row.nodes), None) for name in names}


def _keras(node: str) -> str:
    return node.partition("/")[0]


def _counts(values: Any) -> dict[str, int]:
    return dict(collections.Counter(values).most_common())


def _precision(tensors: Any) -> str | None:
    if not isinstance(tensors, list) or not tensors or not isinstance(tensors[0], dict):
        return None
    fields = tensors[0].items()
    types = (_type(value) for word in ("datatype", "format") for key, value in fields if word in key.lower())
    return next(filter(None, types), None)


def _type(value: Any) -> str | None:
    return next(
        (name for name, pattern in _TYPES if value is not None and re.search(pattern, str(value).lower())), None
    )
