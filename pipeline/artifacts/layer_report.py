"""The record of the layers stage, ``layers/layers.json``: every Keras layer's output against its tensor in each file.

Standard library only, Python 3.10 syntax.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from export.records import read_record
from export.tensorrt.sidecar import Precision

SCHEMA = 1
REMEDY = "Run the layers stage again: python -m pipeline verify -c RECIPE --layers."


@dataclass(frozen=True)
class LayerRow:
    """One Keras layer in one file.

    Attributes:
        layer: Name of the Keras layer; a layer that is called again has the suffix " (call 2)".
        tensor: Name of the tensor in the file.
        sqnr_db: SQNR of the tensor against Keras' output in dB; None where both are equal, or not all is finite.
        own_sqnr_db: The same where the layer is fed with Keras' values: its own error; None as above.
        cosine: Mean cosine similarity over the images; None where not all is finite.
        finite: Whether all values are finite.
        saturated: Share of Keras' values that the tensor cuts off: beyond the range of the INT8 scale that reads it, or
            beyond FP16's largest number; None where it has neither.
        range_used: Largest absolute value of Keras' output over the largest that the scale, or FP16, represents; None
            without either.
        largest: Largest absolute value of Keras' output.
        own_finite: Whether all values are finite where the layer is fed with Keras' values.
    """

    layer: str
    tensor: str
    sqnr_db: float | None
    own_sqnr_db: float | None
    cosine: float | None
    finite: bool
    saturated: float | None
    range_used: float | None
    largest: float
    own_finite: bool = True


@dataclass(frozen=True)
class LayerRun:
    """The layers of one file on one backend, in the order of the model.

    Attributes:
        run: Run, see `pipeline.artifacts.parity_report.run_name`.
        precision: "fp32", "fp16" or "int8".
        threshold_db: SQNR below which a layer's own error is too large.
        rows: Layers in the order of the model.
        first_below: First layer whose own error is too large; "" if there is none.
        seconds: Time that it took.
        note: What this run does and does not show; "" where there is nothing to say.
    """

    run: str
    precision: Precision
    threshold_db: float
    rows: tuple[LayerRow, ...]
    first_below: str
    seconds: float
    note: str = ""


@dataclass(frozen=True)
class Reduced:
    """The smallest sub-model that still fails, as files.

    Attributes:
        run: Run that fails.
        layers: Keras layers that it contains, in order.
        files: Names of the files in the stage's folder: the model, its inputs, the expected outputs, how to run it.
        nodes: Number of nodes of the sub-model.
        why: What is wrong with its outputs, as a sentence.
    """

    run: str
    layers: tuple[str, ...]
    files: tuple[str, ...]
    nodes: int
    why: str


@dataclass(frozen=True)
class HalfArithmetic:
    """Logits of a file with FP16 parts, computed in FP16, which ONNX Runtime's CPU kernels do in FP32.

    Attributes:
        run: Run whose file it is.
        images: Number of images.
        sqnr_db: SQNR of the logits against Keras' in dB; None where both are equal, or not all are finite.
        relative_error: Largest difference from Keras' logits over their largest absolute value; None where not all
            are finite.
        agreement: Share of the images with Keras' top class.
        finite: Whether all logits are finite.
        cpu_sqnr_db: SQNR of the logits against ONNX Runtime's in dB; None as above, or where those are not finite.
        seconds: Time that it took.
        how: What was computed in FP16, and what was not, as a sentence.
    """

    run: str
    images: int
    sqnr_db: float | None
    relative_error: float | None
    agreement: float
    finite: bool
    cpu_sqnr_db: float | None
    seconds: float
    how: str


@dataclass(frozen=True)
class LayerReport:
    """Every Keras layer against its tensors.

    Attributes:
        subjects: sha256 by name of the files that were compared, and of Keras' model.
        images: Number of images.
        kinds: Keras class of each layer that has a tensor, by name, in the order of the model.
        without_tensor: Layers that have no tensor of their own, by name, each with the reason, such as "folded into
            conv1_bn".
        runs: One for each file and backend.
        reduced: Smallest failing sub-models, if they were asked for.
        half: Files with FP16 parts in true FP16 arithmetic, on a few images.
        peak_mib: Peak memory of the process in MiB.
        schema: Version of this file format.
    """

    subjects: Mapping[str, str]
    images: int
    kinds: Mapping[str, str]
    without_tensor: Mapping[str, str]
    runs: tuple[LayerRun, ...]
    reduced: tuple[Reduced, ...] = ()
    half: tuple[HalfArithmetic, ...] = ()
    peak_mib: float | None = None
    schema: int = SCHEMA


def read_layers(path: Path) -> LayerReport:
    """Read the record of the layers stage.

    Raises:
        ProjectError: It is missing, damaged or of another schema; with the file and the key.
    """
    return read_record(LayerReport, path, remedy=REMEDY, what="layer report")
