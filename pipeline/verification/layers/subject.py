"""An ONNX file whose layers are compared, and sessions that give some of its tensors Keras' values."""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from onnx import ModelProto

from export.errors import RunnerError
from export.onnx_passes.cut import cut, given, with_outputs
from export.ort_session import open_session
from export.tensorrt.sidecar import Precision
from pipeline.artifacts.tensor_changes import TensorChange


@dataclass(frozen=True)
class Subject:
    """A file.

    Args:
        run: Name of its run, see `pipeline.artifacts.parity_report.run_name`.
        precision: "fp32", "fp16" or "int8".
        model: Its graph, which takes uint8 pixels (N, height, width, 3).
        changes: Tensor -> what it holds in place of Keras' values. Defaults to none.
    """

    run: str
    precision: Precision
    model: ModelProto
    changes: Mapping[str, TensorChange] = field(default_factory=dict)

    def inputs(self, pixels: np.ndarray) -> Mapping[str, np.ndarray]:
        """Return the inputs of the file for some pixels."""
        return {self.model.graph.input[0].name: pixels}

    @property
    def batch(self) -> int | None:
        """The batch size that the file is fixed to; None if it takes any."""
        shape = self.model.graph.input[0].type.tensor_type.shape
        return (shape.dim[0].dim_value or None) if shape.dim else None

    def keras_value(self, tensor: str, value: np.ndarray) -> np.ndarray:
        """Return the values of a tensor as Keras has them, in the layout of the file; the same array if unchanged."""
        return self.changes[tensor].keras_value(value) if tensor in self.changes else value

    def file_value(self, tensor: str, value: np.ndarray) -> np.ndarray:
        """Return Keras' values as a tensor holds them, in the layout of the file; the same array if unchanged."""
        return self.changes[tensor].file_value(value) if tensor in self.changes else value


class Session(Protocol):
    """What computes tensors of a file."""

    def run(self, inputs: Mapping[str, np.ndarray], values: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Return the tensors by name, see `FedSession.run`."""


OpenSession = Callable[[ModelProto, Collection[str], Sequence[str]], Session]  # arguments of `FedSession`


class FedSession:
    """A session of a model that reads given values in place of some tensors, and returns others.

    Args:
        model: The file's graph.
        fed: Tensors whose readers get what is given.
        outputs: Tensors to return.

    Attributes:
        reads: Those of `fed` that the outputs need.
        inputs: Inputs of the file that the outputs need.

    Raises:
        RunnerError: ONNX Runtime does not load the graph.
    """

    def __init__(self, model: ModelProto, fed: Collection[str], outputs: Sequence[str]) -> None:
        graph = with_outputs(cut(model, [*fed]) if fed else model, outputs)
        try:
            # A plan of all activations at once costs more memory than it saves time.
            self._session: Any = open_session(graph, exact=True, memory_pattern=False, spinning=False)
        except Exception as error:  # ONNX Runtime's own exceptions share no public base
            raise RunnerError(f"Expected a graph that ONNX Runtime loads. Received: {error}") from error
        self._types = {item.name: item.type for item in self._session.get_inputs()}
        self._outputs = [item.name for item in self._session.get_outputs()]
        self.reads = tuple(name for name in fed if given(name) in self._types)
        self.inputs = tuple(set(self._types) - {given(name) for name in self.reads})

    def run(self, inputs: Mapping[str, np.ndarray], values: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Return the tensors by name.

        Args:
            inputs: Inputs of the file; those that nothing needs are ignored.
            values: Value of each tensor of `reads`, in any float type.

        Raises:
            RunnerError: The graph does not run on them.
        """
        feeds = {name: value for name, value in inputs.items() if name in self._types}
        for name in self.reads:
            half = self._types[given(name)] == "tensor(float16)"
            with np.errstate(over="ignore"):  # what FP16 cannot hold is infinite there
                feeds[given(name)] = values[name].astype(np.float16 if half else np.float32, copy=False)
        try:
            return dict(zip(self._outputs, self._session.run(self._outputs, feeds)))
        except Exception as error:  # ONNX Runtime's own exceptions share no public base
            raise RunnerError(f"Expected a graph that runs on the test images. Received: {error}") from error
