"""What several stages declare alike."""

from __future__ import annotations

from pipeline.inputs import Optional, Required
from pipeline.layout import ONNX, TENSORRT8

# Those for TensorRT 8.6 are there where the recipe asked for them.
ONNX_FILES: tuple[Required | Optional, ...] = (*map(Required, ONNX.values()), *map(Optional, TENSORRT8.values()))
ENGINES = (Optional("build/*/*.plan"), Optional("build/*/*.json"))
