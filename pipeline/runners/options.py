"""How engines are run: the recipe's section ``runtime``. Python 3.10 syntax, standard library only."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class RuntimeOptions:
    """``runtime:`` - how TensorRT engines are run."""

    cuda: Literal["auto", "bindings", "pycuda"] = "auto"  # pycuda: in the context that the program brings; no graphs
    device: int = 0  # index of the GPU
    graphs: bool = True  # a CUDA graph for each batch size that comes again, where the CUDA package has graphs
    contexts: int = 1  # execution contexts that larger input is dealt to, each with its own stream and memory
