"""What several stages declare alike."""

from __future__ import annotations

from pipeline import layout
from pipeline.inputs import Input, Optional, Required

# Those for TensorRT 8.6 are there where the recipe asked for them.
ONNX_FILES: tuple[Input, ...] = (*map(Required, layout.ONNX.values()), *map(Optional, layout.TENSORRT8.values()))
ENGINES: tuple[Input, ...] = tuple(map(Optional, layout.ENGINES))
