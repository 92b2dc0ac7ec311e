"""Inputs that several stages declare."""

from pipeline.artifacts import paths
from pipeline.artifacts.inputs import Input, Optional, Required

# Those for TensorRT 8.6 exist only where the recipe asks for them.
ONNX_FILES: tuple[Input, ...] = (*map(Required, paths.ONNX.values()), *map(Optional, paths.TENSORRT8.values()))
ENGINES: tuple[Input, ...] = tuple(map(Optional, paths.ENGINES))
