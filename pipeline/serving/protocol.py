"""Names of models and tensors that a client sees, the same on the server of this project and on Triton.

A recipe ``digits`` is two models: ``digits`` takes pixels as the graph does, ``digits_files`` image files. On Triton
the second is an ensemble, whose first step, ``digits_decode``, decodes.
"""

from __future__ import annotations

from typing import Final

from export.tensorrt.sidecar import INPUT, OUTPUTS

VERSION: Final = "1"  # of every model
PIXELS: Final = INPUT  # UINT8, (N, height, width, 3)
FILES: Final = "files"  # BYTES, (N, 1): image files as they are on a disk
ANSWERS: Final = OUTPUTS  # FP32, (N, classes)


def files_model(name: str) -> str:
    """Return the name of the model that takes image files, of that of the recipe."""
    return f"{name}_files"


def decode_model(name: str) -> str:
    """Return the name of the step that decodes, of that of the recipe."""
    return f"{name}_decode"
