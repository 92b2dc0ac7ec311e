"""Layers of engines: graphs of the file that an engine was built from, built and run by the same TensorRT.

A plan shows its outputs alone. So engines are built in which the tensors of all layers are marked as outputs, and, to
find the smallest part that fails, engines of parts. A marked tensor is computed, and what would be fused across it is
not: a fault of such a fusion shows in the parts that hold the whole of it, and not in the table of layers.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from onnx import ModelProto, helper

from export.errors import DeviceUnavailableError, ProjectError
from export.files import temporary_folder
from export.onnx_passes.cut import cut, given, with_outputs
from export.onnx_passes.file import save_model
from export.tensorrt.driver import driver_status
from export.tensorrt.library import TensorRT, find_tensorrt, why_missing
from export.tensorrt.part import build_part
from export.words import count
from pipeline.recipe.runtime import RuntimeOptions
from pipeline.runners.cuda.api import CudaApi
from pipeline.runners.cuda.open import find_cuda
from pipeline.runners.tensorrt.part import run_part
from pipeline.verification.layers.reduce import Judge, Values, what_is_wrong

log = logging.getLogger(__name__)

NOTE = (
    "an engine of the same file in which the tensors of all layers are outputs, so what TensorRT fuses across them in "
    "the engine that serves is not fused here"
)


@dataclass(frozen=True)
class GraphBuilder:
    """A TensorRT that builds graphs, and the GPU that runs them.

    Attributes:
        trt: The library.
        cuda: The CUDA.
        device: Index of the GPU.
        gpu: Its name.
        work: Path beside which temporary files go.
    """

    trt: TensorRT
    cuda: CudaApi
    device: int
    gpu: str
    work: Path

    @property
    def versions(self) -> dict[str, str]:
        """What a bug report says of it."""
        return {self.trt.flavour: self.trt.version, "GPU": self.gpu}

    def run(self, model: ModelProto, precision: str, inputs: Values) -> dict[str, np.ndarray]:
        """Build an engine of a graph for the shapes of some inputs, and run it once.

        Raises:
            ProjectError: TensorRT refused the graph, or it does not run.
        """
        types = {
            info.name: helper.tensor_dtype_to_np_dtype(info.type.tensor_type.elem_type)
            for info in (*model.graph.input, *model.graph.output)
        }
        fed = {info.name: np.ascontiguousarray(inputs[info.name], types[info.name]) for info in model.graph.input}
        with temporary_folder(self.work) as folder, self.cuda.scope(self.device):
            source = save_model(model, folder / f"{precision}.onnx")
            plan = build_part(source, {name: value.shape for name, value in fed.items()}, precision, self.trt)
            outputs = {info.name: types[info.name] for info in model.graph.output}
            return run_part(self.trt, self.cuda, plan, fed, outputs)


def open_builder(flavour: str, options: RuntimeOptions, work: Path) -> GraphBuilder:
    """Return the TensorRT and the GPU of this machine.

    Args:
        flavour: "tensorrt" or "rtx", as that of the engine whose layers are asked for.
        options: Which GPU and CUDA.
        work: Path beside which temporary files go.

    Raises:
        DeviceUnavailableError: There is no such GPU or TensorRT here, with the reason.
    """
    status = driver_status()  # first: some versions of TensorRT crash without a driver
    if not status or not 0 <= options.device < len(status.devices):
        reason = status.reason or f"{count(len(status.devices), 'GPU')} and runtime.device {options.device}"
        raise DeviceUnavailableError(f"Expected an NVIDIA GPU. Received: {reason}.", reason=reason)
    trt = find_tensorrt(flavour)
    if trt is None:
        reason = f"no TensorRT of the flavour {flavour} here"
        raise DeviceUnavailableError(
            f"Expected TensorRT of the flavour {flavour}. Received: {why_missing().get(flavour, 'none')}.",
            reason=reason,
        )
    return GraphBuilder(trt, find_cuda(options.cuda), options.device, status.devices[options.device].name, work)


class FedEngine:
    """An engine that reads given values in place of some tensors, as `subject.FedSession` is a session.

    Args:
        builder: Builds and runs it, once for each run.
        precision: "fp32", "fp16" or "int8".
        model: The file's graph.
        fed: Tensors whose readers get what is given.
        outputs: Tensors to return.
    """

    def __init__(
        self, builder: GraphBuilder, precision: str, model: ModelProto, fed: Collection[str], outputs: Sequence[str]
    ) -> None:
        self._builder, self._precision = builder, precision
        self._model = with_outputs(cut(model, [*fed]) if fed else model, outputs)
        names = {info.name for info in self._model.graph.input}
        self.reads = tuple(name for name in fed if given(name) in names)

    def run(self, inputs: Mapping[str, np.ndarray], values: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Return the tensors by name, see `subject.FedSession.run`."""
        fed = {given(name): values[name] for name in self.reads}
        return self._builder.run(self._model, self._precision, {**inputs, **fed})


def judge_on_engine(builder: GraphBuilder, precision: str, threshold_db: float) -> Judge:
    """Return a judge that builds an engine of a part.

    Args:
        builder: Builds and runs it.
        precision: "fp32", "fp16" or "int8".
        threshold_db: SQNR below which an output is wrong.
    """

    def judge(part: ModelProto, inputs: Values, expected: Values) -> str:
        try:
            values = builder.run(part, precision, inputs)
        except ProjectError as error:  # a part that TensorRT does not build or run shows no wrong value
            log.debug("a part does not run: %s", error)
            return ""
        return what_is_wrong(values, expected, threshold_db)

    return judge
