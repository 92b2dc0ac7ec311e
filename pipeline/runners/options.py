"""How engines are run: the recipe's section ``runtime``. Python 3.10 syntax, standard library only."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from pipeline.errors import RunnerError

CudaPackage = Literal["auto", "bindings", "pycuda"]


@dataclass(frozen=True)
class RuntimeOptions:
    """``runtime:`` - how TensorRT engines are run."""

    cuda: CudaPackage = "auto"  # pycuda: in the context that the program brings; no graphs
    device: int = 0  # index of the GPU
    graphs: bool = True  # a CUDA graph for each batch size that comes again, where the CUDA package has graphs
    contexts: int = 1  # execution contexts that larger input is dealt to, each with its own stream and memory
    host_code: bool = False  # engines built as version_compatible bring code for the CPU; true lets it run

    def __post_init__(self) -> None:
        for name, value, fits, expected in (
            ("cuda", self.cuda, self.cuda in get_args(CudaPackage), f"one of {', '.join(get_args(CudaPackage))}"),
            ("device", self.device, _whole(self.device) and self.device >= 0, "a whole number from 0 on"),
            ("host_code", self.host_code, isinstance(self.host_code, bool), "true or false"),
            ("graphs", self.graphs, isinstance(self.graphs, bool), "true or false"),
            ("contexts", self.contexts, _whole(self.contexts) and 1 <= self.contexts <= 64, "a number from 1 to 64"),
        ):
            if not fits:
                raise RunnerError(f"Expected runtime.{name} as {expected}. Received: {value!r}. Correct it.")


def _whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
