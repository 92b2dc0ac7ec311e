"""Writes the smallest failing part of a file as a folder that a bug report can carry.

``model.onnx``, ``inputs.npz`` and ``expected.npz``, and a ``README.txt`` with what is wrong and the lines that show it:
with NumPy and ONNX Runtime alone, or with TensorRT's trtexec where an engine is wrong.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from export.onnx_passes.file import save_model
from export.onnx_passes.graph import copy_model, op_counts, opset
from export.words import count
from pipeline.artifacts.files import sha256_file
from pipeline.artifacts.layer_report import Reduced
from pipeline.artifacts.manifest import tool_versions
from pipeline.verification.layers.reduce import Part

FOLDER = "reduced"
_TOOLS = ("python", "numpy", "onnx", "onnxruntime", "onnxruntime-gpu")
_ON_CPU = """\
With NumPy and ONNX Runtime alone, in this folder; each line that it prints is an output, its largest difference from
expected.npz, and the largest value there:

import numpy as np, onnxruntime as ort
options = ort.SessionOptions(); options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
session = ort.InferenceSession("model.onnx", options, providers=["CPUExecutionProvider"])
inputs, expected = dict(np.load("inputs.npz")), dict(np.load("expected.npz"))
for (n, e), g in zip(expected.items(), session.run(list(expected), inputs)): print(n, abs(g - e).max(), abs(e).max())
"""
_IN_TENSORRT = """\
With trtexec of TensorRT, on a GPU, in this folder; given.json then holds what the engine gives, in the order of
expected.npz. From TensorRT 11 on all networks are strongly typed: leave out --stronglyTyped. TensorRT 8.6 has no such
networks: give --fp16, for an INT8 file --int8 --fp16, in its place.

python3 -c "import numpy as n; [v.tofile(f'{{i}}.bin') for i, v in enumerate(n.load('inputs.npz').values())]"
trtexec --onnx=model.onnx --stronglyTyped --noTF32 {shapes} --loadInputs={inputs} --exportOutput=given.json
"""
_REFERENCES = {
    False: "Keras' outputs of its layers on the CPU, in the layout of the file",
    True: "the file's own values, computed by ONNX Runtime on a CPU without optimizations",
}


def write_reduced(
    out: Path,
    part: Part,
    run: str,
    layers: Mapping[str, Sequence[str]],
    subject: Path,
    versions: Mapping[str, str] | None = None,
    engine: bool = False,
) -> Reduced:
    """Write a failing part with its values and the lines that show it fail.

    Args:
        out: The stage's folder.
        part: What fails.
        run: Run that it is of.
        layers: Keras layers that end in a tensor, by tensor, in the order of the model.
        subject: The ONNX file that it is a part of.
        versions: Of what else it fails with, such as TensorRT and the GPU. Defaults to None: ONNX Runtime alone.
        engine: Whether it fails as an engine of TensorRT. Defaults to False: in ONNX Runtime.

    Returns:
        Reduced: The record of it.
    """
    name = re.sub(r"[^a-z0-9]+", "-", run.lower()).strip("-")[:100]
    folder = out / FOLDER / name
    folder.mkdir(parents=True)
    model = copy_model(part.model)
    del model.metadata_props[:]  # classes and preprocessing of the whole file, which a bug report has no need of
    save_model(model, folder / "model.onnx")
    for file, values in (("inputs", part.inputs), ("expected", part.expected)):
        np.savez(folder / f"{file}.npz", **values)  # type: ignore[arg-type]  # named as np.savez names its options
    written = {tensor for node in model.graph.node for tensor in node.output}
    contained = tuple(layer for tensor, names in layers.items() if tensor in written for layer in names)
    nodes = len(model.graph.node)
    operators = ", ".join(f"{number} {operator}" for operator, number in op_counts(model).items())
    end = "With a node less it passes, or has no reference value to be held against."
    if not part.minimal:
        end = "The time for shrinking was up: a smaller part may fail too."
    tools = {**{name: value for name, value in tool_versions().items() if name in _TOOLS}, **(versions or {})}
    lines = [
        f"The smallest part of {run} that fails.",
        "",
        f"What is wrong:  {part.why}.",
        f"Keras layers:   {', '.join(contained) or 'none as a whole'}",
        f"The part:       {count(nodes, 'node')} ({operators}), opset {opset(model)}. {end}",
        f"Of the file:    {subject.name}, sha256 {sha256_file(subject)}",
        f"Versions:       {', '.join(f'{name} {value}' for name, value in tools.items())}",
        "",
        "model.onnx      the part, with the weights of the file",
        "inputs.npz      the reference's values of the tensors that it starts from, by name",
        "expected.npz    the reference's values of the tensors that it ends in, by name",
        f"The reference:  {_REFERENCES[engine]}",
        "",
        _in_tensorrt(part) if engine else _ON_CPU,
    ]
    (folder / "README.txt").write_text("\n".join(lines), encoding="utf-8")
    files = ("model.onnx", "inputs.npz", "expected.npz", "README.txt")
    return Reduced(run, contained, tuple(f"{FOLDER}/{name}/{file}" for file in files), nodes, part.why)


def _in_tensorrt(part: Part) -> str:
    """Return the commands that build and run a part; a shape is given for each input, as the batch is dynamic."""
    shapes = ",".join(f"'{name}':{'x'.join(map(str, value.shape))}" for name, value in part.inputs.items())
    inputs = ",".join(f"'{name}':{at}.bin" for at, name in enumerate(part.inputs))
    return _IN_TENSORRT.format(shapes=f'--shapes="{shapes}"', inputs=f'"{inputs}"')
