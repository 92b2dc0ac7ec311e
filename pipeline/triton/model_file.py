"""What a file that Triton serves takes and gives: names, types and shapes, read from it and held against the card."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from export.errors import ProjectError
from export.tensorrt.compatibility import check_plan
from export.tensorrt.sidecar import Sidecar
from export.words import listed
from pipeline.models.model_card import ModelCard
from pipeline.runners.open import open_runner
from pipeline.serving.protocol import ANSWERS, PIXELS
from pipeline.serving.select_model import Selection

# The names of types that Triton's ``model_config.proto`` has, by numpy's.
TYPES = {
    "uint8": "TYPE_UINT8",
    "float16": "TYPE_FP16",
    "float32": "TYPE_FP32",
    "int32": "TYPE_INT32",
    "int64": "TYPE_INT64",
}


@dataclass(frozen=True)
class Tensor:
    """A tensor as Triton describes it.

    Attributes:
        name: of the tensor.
        data_type: one of Triton's, such as "TYPE_UINT8".
        dims: its shape without the batch.
    """

    name: str
    data_type: str
    dims: tuple[int, ...]


@dataclass(frozen=True)
class ModelFile:
    """A file that Triton serves.

    Attributes:
        pixels: its input.
        answers: its outputs, in the file's order.
        exact: whether ONNX Runtime has to compute the graph as it stands, for the answers that were verified.
        sidecar: of an engine. Defaults to None: an ONNX file.
    """

    pixels: Tensor
    answers: tuple[Tensor, ...]
    exact: bool = False
    sidecar: Sidecar | None = None


def read_model_file(choice: Selection, card: ModelCard) -> ModelFile:
    """Read what a file takes and gives, and hold it against the card.

    An ONNX file is opened by ONNX Runtime's CPU, whatever serves it; of an engine the sidecar is read, and the plan's
    hash compared.

    Raises:
        ProjectError: the file was made from another model than the card's, or has no such input and outputs.
    """
    file = _read_plan(choice, card) if choice.backend == "tensorrt" else _read_onnx(choice, card)
    outputs = {tensor.name: tensor for tensor in file.answers}
    expected = Tensor(PIXELS, "TYPE_UINT8", (*card.size, 3))
    if file.pixels != expected:
        raise _unfit(choice, f"the input {_shown([expected])}", [file.pixels])
    wanted = [Tensor(name, "TYPE_FP32", (len(card.classes),)) for name in ANSWERS]
    if [outputs.get(tensor.name) for tensor in wanted] != wanted:
        raise _unfit(choice, f"the outputs {_shown(wanted)}", file.answers)
    return file


def _read_plan(choice: Selection, card: ModelCard) -> ModelFile:
    from pipeline.runners.tensorrt.open_engine import tensors_of

    sidecar = check_plan(choice.path)
    card.check_runner(open_runner(choice.path, "tensorrt"), choice.name)  # described by its sidecar, not opened
    pixels, *answers = (
        Tensor(tensor.name, _type(choice, tensor.name, tensor.dtype), tuple(tensor.row))
        for tensor in tensors_of(choice.path, sidecar).values()
    )
    return ModelFile(pixels, tuple(answers), sidecar=sidecar)


def _read_onnx(choice: Selection, card: ModelCard) -> ModelFile:
    import onnx

    with open_runner(choice.path, "onnxruntime", choice.precision) as runner:
        card.check_runner(runner, choice.name)
    graph = onnx.load(choice.path, load_external_data=False).graph

    def tensor(info: onnx.ValueInfoProto) -> Tensor:
        kind = info.type.tensor_type
        batch, *dims = (dim.dim_value for dim in kind.shape.dim)  # 0: any number
        if batch or not math.prod(dims):
            raise ProjectError(
                f"Expected tensors of any batch size and otherwise fixed sizes in {choice.path}. Received: "
                f"{info.name} {[batch, *dims]}, where 0 is any. Export it with this project's export stage."
            )
        return Tensor(
            info.name, _type(choice, info.name, onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type)), tuple(dims)
        )

    weights = {value.name for value in graph.initializer}
    (pixels,) = [tensor(info) for info in graph.input if info.name not in weights]
    # Pad_Fusion is an optimizer that is left out here (export/ort_session.py), and Triton can only leave out all.
    exact = choice.precision == "int8" or any(node.op_type == "Pad" for node in graph.node)
    return ModelFile(pixels, tuple(tensor(info) for info in graph.output), exact)


def _type(choice: Selection, name: str, dtype: np.dtype) -> str:
    if dtype.name not in TYPES:
        raise ProjectError(
            f"Expected a type of {listed(TYPES)} in {choice.path}. Received: {name} of type {dtype.name}."
        )
    return TYPES[dtype.name]


def _unfit(choice: Selection, expected: str, received: Sequence[Tensor]) -> ProjectError:
    return ProjectError(
        f"Expected {expected} in {choice.path}. Received: {_shown(received)}. Export it with this project's export "
        "stage."
    )


def _shown(tensors: Sequence[Tensor]) -> str:
    return listed(f"{tensor.name} {tensor.data_type} {list(tensor.dims)}" for tensor in tensors)
