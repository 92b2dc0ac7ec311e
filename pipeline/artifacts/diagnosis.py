"""What the verify stage found out beside the verdict, ``verify/diagnosis.json``: hints, and how files are decoded.

Standard library only, Python 3.10 syntax.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from export.records import read_record
from pipeline.artifacts.parity_report import REMEDY

SCHEMA = 1
# What may be wrong; "unknown": the layer may be known, but no cause explains it.
Cause = Literal[
    "channel order", "mean missing", "preprocessing", "resize", "softmax twice", "activation", "logits scaled",
    "class order", "fixed batch", "batch dependence", "repeated row", "not finite", "overflow", "saturation",
    "layer scale", "weights", "padding", "pooling", "epsilon", "wiring", "training mode", "attribute", "calibration",
    "stale engine", "unknown",
]  # fmt: skip


@dataclass(frozen=True)
class Hint:
    """Why a comparison failed, as far as it can be computed.

    Attributes:
        run: The run at fault, see `run_name`.
        reference: The other end of the hop at fault: Keras' file, or the run that the file was made from.
        cause: What is wrong.
        text: The same in plain words, one or two sentences.
        evidence: The numbers that show it, as a sentence.
        remedy: What to do, as a sentence.
        layer: Keras layer where it is; "" where it is in none, or unknown.
    """

    run: str
    reference: str
    cause: Cause
    text: str
    evidence: str
    remedy: str
    layer: str = ""


@dataclass(frozen=True)
class Decoding:
    """One kind of image file, loaded as this project loads it and as Keras does.

    Attributes:
        kind: Such as "JPEG, grey" or "PNG, 16 bit".
        files: Number of files of this kind that were compared.
        equal: Whether all pixels are equal.
        most: Largest difference of a value in grey levels, 0 to 255.
        share: Share of the values that differ.
        relative_error: Largest difference of a logit over the largest logit; None where no model was run.
        rule: This project's rule for the kind, as a sentence; "" where both agree.
        required: Whether the pixels have to be equal: 8-bit RGB and grey values that stand upright in the file.
        step: Where the first difference is: in decoding the file, or in resizing what was decoded; "" where both agree.
    """

    kind: str
    files: int
    equal: bool
    most: int
    share: float
    relative_error: float | None = None
    rule: str = ""
    required: bool = False
    step: Literal["", "decoding", "resizing"] = ""


@dataclass(frozen=True)
class Diagnosis:
    """What explains a verdict.

    Attributes:
        parity_sha256: Digest of the ``parity.json`` that it belongs to.
        hints: Causes of the failed comparisons, the first hop first; empty after a pass.
        decoding: Kinds of files in the test images, and how their decoding compares with Keras'; empty if unknown.
        schema: Version of this file format.
    """

    parity_sha256: str
    hints: tuple[Hint, ...] = ()
    decoding: tuple[Decoding, ...] = ()
    schema: int = SCHEMA


def read_diagnosis(path: Path) -> Diagnosis:
    """Read a diagnosis.

    Raises:
        ProjectError: It is missing, damaged or of another schema; with the file and the key.
    """
    return read_record(Diagnosis, path, remedy=REMEDY, what="diagnosis")
