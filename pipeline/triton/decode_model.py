"""Decodes image files for Triton's Python backend, as `pipeline.data.decode` does for everything else.

`python -m pipeline triton-repo` copies this file into the repository as ``model.py``, with the modules that it imports
beside it in ``CODE``. It needs numpy, Pillow and simplejpeg in the server's Python, and nothing else of this project.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils

CODE = "decoding"  # the folder of the modules
PROBE = "probe.jpg"  # a picture whose pixels are known


class TritonPythonModel:
    """A model with the input ``files``, BYTES (N, 1), and the output ``images``, UINT8 (N, height, width, 3)."""

    def initialize(self, args: dict[str, str]) -> None:
        """Read how images are decoded, and decode a picture whose pixels are known.

        Raises:
            TritonModelException: a package is missing, or this machine decodes to other pixels.
        """
        here = Path(__file__).resolve().parent
        sys.path.insert(0, str(here / CODE))
        try:
            from export.errors import ImageError
            from pipeline.data.decode import DecodeSpec
        except ModuleNotFoundError as error:
            raise _no_package(error) from error

        config = json.loads(args["model_config"])
        given = {key: value["string_value"] for key, value in config["parameters"].items()}
        spec = json.loads(given["decode"])
        self._decode = DecodeSpec(**{**spec, "size": tuple(spec["size"])})
        self._largest_file = int(given["largest_file"])
        self._refusal = ImageError
        self._input, self._output = config["input"][0]["name"], config["output"][0]["name"]
        try:
            pixels = self._decode.pixels((here / PROBE).read_bytes())
        except ModuleNotFoundError as error:
            raise _no_package(error) from error
        if hashlib.sha256(pixels.tobytes()).hexdigest() != given["probe_sha256"]:
            raise pb_utils.TritonModelException(
                f"Expected {PROBE} to decode to the pixels that the model was verified with. Received: other pixels. "
                "Install the versions of Pillow and simplejpeg that README.md of the repository names."
            )

    def execute(self, requests: Sequence[Any]) -> list[Any]:
        """Return a response for each request; a bad image is an error of its own request alone."""
        return [self._respond(request) for request in requests]

    def _respond(self, request: Any) -> Any:
        files = pb_utils.get_input_tensor_by_name(request, self._input).as_numpy().reshape(-1)
        pixels = np.empty((len(files), *self._decode.size, 3), np.uint8)
        for index, content in enumerate(files):
            try:
                pixels[index] = self._decode.decode(bytes(content), largest_file=self._largest_file).pixels
            except self._refusal as error:
                return _refused(f"image {index} of {len(files)}: {error.status}: {error}")
            except MemoryError:
                return _refused(
                    f"image {index} of {len(files)}: too_large: more than fits into the memory that is left"
                )
        return pb_utils.InferenceResponse(output_tensors=[pb_utils.Tensor(self._output, pixels)])


def _refused(reason: str) -> Any:
    """A response that clients see as an error of theirs, where the server's version can tell."""
    code = getattr(pb_utils.TritonError, "INVALID_ARG", None)
    error = pb_utils.TritonError(reason) if code is None else pb_utils.TritonError(reason, code)
    return pb_utils.InferenceResponse(output_tensors=[], error=error)


def _no_package(error: ModuleNotFoundError) -> Exception:
    refused: Exception = pb_utils.TritonModelException(
        f"Expected the package {error.name} in the server's Python. Received: none. Install what README.md of the "
        "repository names."
    )
    return refused
