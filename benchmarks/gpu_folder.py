"""What a visit to a GPU reads of the folder of artifacts: Keras' answers, the recipe's thresholds, what was altered.

Python 3.10 syntax, numpy alone.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np

from export.bounded_json import parse_json
from export.errors import ProjectError
from export.records import read_record
from pipeline.artifacts import Artifacts
from pipeline.files import sha256_file
from pipeline.float_noise import noise_of
from pipeline.layout import KERAS, ONNX, PARITY, REFERENCE
from pipeline.manifest import INDEX, BundleIndex, as_recorded
from pipeline.npz_files import read_arrays
from pipeline.parity import Reference
from pipeline.parity_report import read_parity
from pipeline.recipe import VerifyThresholds


def read_reference(artifacts: Path) -> Reference:
    """Read Keras' answers, which the verify stage of another machine wrote.

    Raises:
        ProjectError: they are not there, or are not such a file.
    """
    path = artifacts / REFERENCE
    try:
        held = read_arrays(path, ("meta", "pixels", "labels", "logits"), "Keras' answers")
        meta = parse_json(held["meta"].tobytes(), "meta")
        _refuse_other_arrays(held["pixels"], held["labels"], held["logits"])
        if not isinstance(sha256 := meta["model_sha256"], str):
            raise ValueError(f"the model's sha256 is {sha256!r:.80}")
        return Reference(KERAS, sha256, held["pixels"], held["labels"], held["logits"], noise_of(meta))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ProjectError(
            f"Expected Keras' answers in {path}. Received: {error}. Run the recipe's verify stage, then bring its "
            "artifacts here: python -m pipeline bundle."
        ) from error


def as_verified(artifacts: Path) -> bool:
    """Whether Keras' answers are the very file that the verify stage wrote.

    Others are taken too, as a visit may bring fewer images to travel lighter, and the evidence says so.
    """
    return as_recorded(Artifacts(artifacts), REFERENCE)


def _refuse_other_arrays(pixels: np.ndarray, labels: np.ndarray, logits: np.ndarray) -> None:
    """Refuse what no verify stage writes before a GPU spends its time on it."""
    images = len(pixels) if pixels.ndim == 4 else 0
    if not (
        images > 0
        and pixels.shape[3] == 3
        and pixels.dtype == np.uint8
        and labels.shape == (images,)
        and np.issubdtype(labels.dtype, np.integer)
        and logits.ndim == 2
        and len(logits) == images
        and logits.size > 0
        and np.issubdtype(logits.dtype, np.floating)
    ):
        shapes = ", ".join(f"{name} {one.dtype} {one.shape}" for name, one in
                           (("pixels", pixels), ("labels", labels), ("logits", logits)))  # fmt: skip
        raise ValueError(f"images, classes and answers that do not go together: {shapes}")


def read_thresholds(artifacts: Path) -> VerifyThresholds:
    """Read what the recipe asked of each precision, from the verdict of its verify stage; without one the defaults.

    Raises:
        ProjectError: the verdict is damaged.
    """
    asked = read_parity(artifacts / PARITY).thresholds if has_verdict(artifacts) else {}
    return VerifyThresholds(**{name: limits for name, limits in asked.items() if name in ONNX})


def has_verdict(artifacts: Path) -> bool:
    """Whether the verify stage's verdict is there, and with it what the recipe asks of each precision."""
    return (artifacts / PARITY).is_file()


def altered_files(artifacts: Path, names: Iterable[str]) -> tuple[str, ...]:
    """Those of some files that are not as the bundle recorded them; where its index is not there, none is known.

    Tar compares nothing, as `python -m pipeline unpack` does.

    Raises:
        ProjectError: the index is damaged, or a file cannot be read.
    """
    path = artifacts / INDEX
    if not path.is_file():
        return ()
    remedy = f"Unpack the bundle again, or delete {INDEX} to go on with files that are compared with nothing."
    recorded = read_record(BundleIndex, path, remedy=remedy, what="index of a bundle").files
    try:
        return tuple(
            name for name in names if name not in recorded or recorded[name].sha256 != sha256_file(artifacts / name)
        )
    except OSError as error:
        raise ProjectError(
            f"Expected to read {error.filename}. Received: {error.strerror}. Copy it again, or let it be read."
        ) from error
