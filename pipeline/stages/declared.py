"""What several stages declare alike."""

from pipeline.artifacts import paths
from pipeline.artifacts.inputs import Input, Optional, Required

# Those for TensorRT 8.6 are there where the recipe asked for them.
ONNX_FILES: tuple[Input, ...] = (*map(Required, paths.ONNX.values()), *map(Optional, paths.TENSORRT8.values()))
ENGINES: tuple[Input, ...] = tuple(map(Optional, paths.ENGINES))
