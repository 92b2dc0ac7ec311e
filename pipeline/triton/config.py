"""The ``config.pbtxt`` of the three models: the file that classifies, the step that decodes, the ensemble of both."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from export.records import to_json
from pipeline.data.decode import DecodeSpec
from pipeline.serving.protocol import ANSWERS, FILES, VERSION, decode_model, files_model
from pipeline.triton.batching import Batching, Number
from pipeline.triton.model_file import ModelFile, Tensor

CONFIG, LABELS = "config.pbtxt", "labels.txt"
_EXACT = """# Without graph optimizations: so the file computes the answers that were verified.
optimization { graph { level: 2 } }"""
_FP32 = """# FP32 in FP32, as it was verified, and not in TF32, the provider's default.
optimization {
  execution_accelerators {
    gpu_execution_accelerator [ { name: "cuda" parameters { key: "use_tf32" value: "0" } } ]
  }%s
}"""


@dataclass(frozen=True)
class Serving:
    """What the configurations are made from.

    Attributes:
        name: of the recipe.
        backend: of this project: "tensorrt", "onnxruntime-cuda" or "onnxruntime".
        file: that classifies.
        batching: of requests.
        decode: how an image file becomes pixels.
        largest_file: bytes of an image file, at most.
        instances: of the file that classifies, on each GPU or on the CPU.
        decoders: processes that decode.
    """

    name: str
    backend: str
    file: ModelFile
    batching: Batching
    decode: DecodeSpec
    largest_file: int
    instances: int
    decoders: int

    @property
    def model_name(self) -> str:
        """Name of the file in its version's folder, as Triton's backends expect it."""
        return "model.plan" if self.backend == "tensorrt" else "model.onnx"


def classifier_config(serving: Serving) -> str:
    """Return the configuration of the model that takes pixels."""
    batching, file = serving.batching, serving.file
    platform = "tensorrt_plan" if serving.backend == "tensorrt" else "onnxruntime_onnx"
    kind = "KIND_CPU" if serving.backend == "onnxruntime" else "KIND_GPU"
    warm = dict.fromkeys((1, batching.preferred.value))
    parts = [
        _head(serving.name, f'platform: "{platform}"', batching.largest),
        _tensors("input", [file.pixels]),
        _tensors("output", file.answers, labels=True),
        _versions(),
        f"# --instances of triton-repo\ninstance_group [ {{ count: {serving.instances} kind: {kind} }} ]",
        _dynamic_batching(batching),
        _optimization(serving),
        "model_warmup [\n" + ",\n".join(_warmup(size, file.pixels) for size in warm) + "\n]",
    ]
    return _text(parts)


def decoder_config(serving: Serving, more: Mapping[str, str]) -> str:
    """Return the configuration of the step that decodes.

    Args:
        serving: what is served.
        more: parameters for its ``model.py`` besides ``decode`` and ``largest_file``.
    """
    parameters = {
        "decode": json.dumps(to_json(serving.decode)),
        "largest_file": str(serving.largest_file),
        **more,
    }
    return _text(
        [
            _head(decode_model(serving.name), 'backend: "python"', serving.batching.largest),
            _tensors("input", [_FILES]),
            _tensors("output", [serving.file.pixels]),
            _versions(),
            "# --decoders of triton-repo: a process each, on the CPUs of everything else that runs there",
            f"instance_group [ {{ count: {serving.decoders} kind: KIND_CPU }} ]",
            *(
                f"parameters {{ key: {_quoted(key)} value {{ string_value: {_quoted(parameters[key])} }} }}"
                for key in parameters
            ),
        ]
    )


def ensemble_config(serving: Serving) -> str:
    """Return the configuration of the model that takes image files."""
    answers = [tensor.name for tensor in serving.file.answers]
    pixels = serving.file.pixels.name
    steps = [
        _step(decode_model(serving.name), {FILES: FILES}, {pixels: pixels}),
        _step(serving.name, {pixels: pixels}, dict(zip(answers, answers))),
    ]
    return _text(
        [
            _head(files_model(serving.name), 'platform: "ensemble"', serving.batching.largest),
            _tensors("input", [_FILES]),
            _tensors("output", serving.file.answers, labels=True),
            _versions(),
            "ensemble_scheduling {\n  step [\n" + ",\n".join(steps) + "\n  ]\n}",
        ]
    )


_FILES = Tensor(FILES, "TYPE_STRING", (1,))


def _head(name: str, kind: str, largest: Number) -> str:
    return f"name: {_quoted(name)}\n{kind}\n{_comment(largest)}\nmax_batch_size: {largest.value}"


def _tensors(field: str, tensors: Iterable[Tensor], labels: bool = False) -> str:
    lines = []
    for tensor in tensors:
        label = f" label_filename: {_quoted(LABELS)}" if labels and tensor.name in ANSWERS else ""
        dims = ", ".join(map(str, tensor.dims))
        lines.append(f"  {{ name: {_quoted(tensor.name)} data_type: {tensor.data_type} dims: [ {dims} ]{label} }}")
    return f"{field} [\n" + ",\n".join(lines) + "\n]"


def _versions() -> str:
    return f"version_policy {{ specific {{ versions: [ {VERSION} ] }} }}"


def _dynamic_batching(batching: Batching) -> str:
    preferred, delay = batching.preferred, batching.delay
    size = f"  preferred_batch_size: [ {preferred.value} ]\n" if preferred.value > 1 else ""
    return (
        f"dynamic_batching {{\n  {_comment(preferred)}\n{size}  {_comment(delay)}\n"
        f"  max_queue_delay_microseconds: {delay.value}\n}}"
    )


def _optimization(serving: Serving) -> str:
    if serving.backend == "onnxruntime-cuda":
        return _FP32 % ("\n  graph { level: 2 }" if serving.file.exact else "")
    return _EXACT if serving.file.exact else ""


def _warmup(size: int, pixels: Tensor) -> str:
    dims = ", ".join(map(str, pixels.dims))
    value = f"data_type: {pixels.data_type} dims: [ {dims} ] zero_data: true"
    inputs = f"inputs {{ key: {_quoted(pixels.name)} value {{ {value} }} }}"
    return f'  {{ name: "batch of {size}" batch_size: {size}\n    {inputs} }}'


def _step(model: str, inputs: Mapping[str, str], outputs: Mapping[str, str]) -> str:
    maps = [
        f"      {field} {{ key: {_quoted(key)} value: {_quoted(value)} }}"
        for field, tensors in (("input_map", inputs), ("output_map", outputs))
        for key, value in tensors.items()
    ]
    return "\n".join(
        ["    {", f"      model_name: {_quoted(model)}", f"      model_version: {VERSION}", *maps, "    }"]
    )


def _comment(number: Number) -> str:
    """Return where a number comes from; the name of a machine that somebody brought cannot end the comment."""
    return f"# {' '.join(number.source.split())}"


def _quoted(text: str) -> str:
    """Return text as a string of protobuf's text format."""
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n") + '"'


def _text(parts: Sequence[str]) -> str:
    return "\n".join(["# Written by `python -m pipeline triton-repo`.", *(part for part in parts if part), ""])
