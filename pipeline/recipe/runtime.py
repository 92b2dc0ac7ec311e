"""Runtime options of engines: the recipe's section ``runtime``. Standard library only, Python 3.10 syntax."""

from dataclasses import dataclass
from typing import Annotated, Literal, get_args

from export.errors import RunnerError
from pipeline.recipe.limits import at_least, within

CudaPackage = Literal["auto", "bindings", "pycuda"]
DEVICE = at_least(0, "a whole number from 0 on")
CONTEXTS = within(1, 64, "a number from 1 to 64")


@dataclass(frozen=True)
class RuntimeOptions:
    """``runtime:`` - how TensorRT engines are run."""

    cuda: Annotated[
        CudaPackage,
        "`bindings` (cuda-bindings) or `pycuda`, for programs with a PyCUDA context: `requirements-pycuda.txt`, "
        "no graphs",
    ] = "auto"
    device: Annotated[int, DEVICE, "index of the GPU"] = 0
    graphs: Annotated[
        bool, "a CUDA graph for each batch size that recurs (cuda-bindings; TensorRT-RTX captures its own)"
    ] = True
    contexts: Annotated[
        int, CONTEXTS, "execution contexts that share larger input, each with its own stream and memory"
    ] = 1
    host_code: Annotated[
        bool,
        "engines built as version_compatible contain code for the CPU; true permits it in any engine (in your own "
        "it is permitted if your recipe builds them so)",
    ] = False

    def __post_init__(self) -> None:
        for name, value, fits, expected in (
            ("cuda", self.cuda, self.cuda in get_args(CudaPackage), f"one of {', '.join(get_args(CudaPackage))}"),
            ("device", self.device, _whole(self.device) and DEVICE.holds(self.device), DEVICE.expected),
            ("host_code", self.host_code, isinstance(self.host_code, bool), "true or false"),
            ("graphs", self.graphs, isinstance(self.graphs, bool), "true or false"),
            ("contexts", self.contexts, _whole(self.contexts) and CONTEXTS.holds(self.contexts), CONTEXTS.expected),
        ):
            if not fits:
                raise RunnerError(f"Expected runtime.{name} as {expected}. Received: {value!r}. Correct it.")


def _whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
