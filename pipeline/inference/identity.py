"""What decides the rows of a run: rows of another identity are never continued."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from typing import Final

from pipeline import __version__
from pipeline.inference.classify import Settings
from pipeline.inference.output.record import Value
from pipeline.serving.candidates import ON_GPU
from pipeline.serving.select_model import Selection

THREADS: Final = "threads of ONNX Runtime"


def identity_of(
    inputs_digest: str, card_digest: str, choice: Selection, settings: Settings, threads: int
) -> dict[str, Value]:
    """Return what decides the rows, by its name in words.

    Args:
        inputs_digest: of the plan.
        card_digest: sha256 of the model card.
        choice: the file that answers.
        settings: how images are classified.
        threads: of ONNX Runtime on the CPU.
    """
    return {
        "the inputs": inputs_digest,
        "the file that answers": choice.run_name,
        "its bytes": choice.digest(),
        "the model card": card_digest,
        "the batch size": settings.batch_size,
        "the threshold": settings.threshold,
        "--keep-damaged": settings.keep_damaged,
        "infer.max_file_mib": settings.largest_file // 2**20,
        THREADS: 0 if choice.backend in ON_GPU else threads,
        "versions": ", ".join(_versions(choice.backend)),
    }


def _versions(backend: str) -> Iterator[str]:
    """Yield the versions of what makes the rows; an engine's is in its sidecar."""
    yield __version__
    names = ["pillow", "simplejpeg", "pillow-heif"]
    if backend != "tensorrt":
        names += ["onnxruntime", "onnxruntime-gpu"]
    for name in names:
        with contextlib.suppress(PackageNotFoundError):
            yield f"{name} {version(name)}"
