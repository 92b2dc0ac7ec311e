"""Stands for TensorRT 10.3, as JetPack 6 has it: it builds "engines" and runs them on the fake GPU.

What an ONNX file computes it cannot know. ``ORIN_REFERENCE`` names a ``reference.npz``: of a picture in there an engine
gives Keras' logits, of any other picture the means of its channels. A plan says for which sizes it was built.
"""

import functools
import os
from typing import Any

import cuda.bindings.runtime as runtime
import numpy as np

from tests.fakes import gpu

_gpu = gpu.FakeTensorRT(runtime, version="10.3.0")  # type: ignore[arg-type]


@functools.cache
def _answers() -> tuple[np.ndarray, np.ndarray]:
    with np.load(os.environ["ORIN_REFERENCE"], allow_pickle=False) as file:
        return file["pixels"], file["logits"]


def _means(pixels: np.ndarray) -> np.ndarray:
    return pixels.mean((1, 2), dtype=np.float64).astype(np.float32)


def _answer(results: dict[str, np.ndarray]) -> None:
    """Put Keras' logits in the place of the means of the pictures that it was asked about."""
    pixels, logits = _answers()
    known = {mean.tobytes(): row for mean, row in zip(_means(pixels), logits)}
    assert len(known) == len(pixels), "two pictures have the same means"
    unknown = np.zeros(logits.shape[1], np.float32)
    answers = np.stack([known.get(mean.tobytes(), unknown) for mean in results["logits"]])
    exp = np.exp(answers - answers.max(1, keepdims=True))
    results |= {"logits": answers, "probabilities": exp / exp.sum(1, keepdims=True)}


_gpu.spoil = _answer


class OnnxParser(_gpu.module.OnnxParser):  # type: ignore[misc, name-defined]
    def parse_from_file(self, path: str) -> bool:
        pixels, logits = _answers()
        _gpu.size, _gpu.classes = pixels.shape[1:3], logits.shape[1]
        return super().parse_from_file(path) and os.path.getsize(path) > 0


def __getattr__(name: str) -> Any:
    return getattr(_gpu.module, name)
