"""The sidecar: a JSON file beside each plan that says what it is, for which TensorRT and GPU, made from what.

Standard library only, Python 3.10 syntax.
"""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal, get_args

from export.errors import ProjectError
from export.files import digest_of, replacing_files
from export.records import read_record, to_json

SCHEMA = 2
INPUT = "images"  # uint8, (N, height, width, 3)
OUTPUTS = ("logits", "probabilities")  # float32, (N, classes)
TOP_OUTPUTS = ("top_probabilities", "top_classes")  # float32 and int32, (N, k), best first; with export.top_k only
REBUILD = "python -m pipeline build -c RECIPE --force"


Precision = Literal["fp32", "fp16", "int8"]
PRECISIONS: Final[tuple[Precision, ...]] = get_args(Precision)  # in the order of every list and table
LARGEST_BATCH = 65_536  # more is a slip of the keyboard
BATCH_RULE = f"1 <= min <= opt <= max <= {LARGEST_BATCH:,}"


def keeps_batch_rule(smallest: int, best: int, largest: int) -> bool:
    """Whether these can be the batch sizes of an engine, see `BATCH_RULE`."""
    return 1 <= smallest <= best <= largest <= LARGEST_BATCH


@dataclass(frozen=True)
class BatchProfile:
    """The batch sizes an engine takes, in images: from ``min`` to ``max``, tuned for ``opt``."""

    min: int
    opt: int
    max: int

    def __post_init__(self) -> None:
        sizes = (self.min, self.opt, self.max)
        whole = all(isinstance(size, int) and not isinstance(size, bool) for size in sizes)
        if not (whole and keeps_batch_rule(*sizes)):
            raise ProjectError(
                f"Expected batch sizes {BATCH_RULE}. Received: min={self.min!r}, opt={self.opt!r}, max={self.max!r}. "
                "Correct the recipe's profile."
            )

    def takes(self, batch: int) -> bool:
        """Whether a batch runs as it is: neither in pieces nor filled up."""
        return self.min <= batch <= self.max


@dataclass(frozen=True)
class TensorInfo:
    """An input or output of an engine.

    Attributes:
        name: such as "images".
        dtype: numpy's name of the type.
        shape: -1 for the batch.
        mode: "input" or "output".
        profile: of the input: its shape at the smallest, best and largest batch.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    mode: Literal["input", "output", ""] = ""
    profile: Mapping[str, tuple[int, ...]] | None = None


@dataclass(frozen=True)
class Layer:
    """One layer of an engine: its name, the Keras layers it does the work of, its kind and the type it computes in."""

    name: str
    layers: tuple[str, ...]
    kind: str
    precision: str


@dataclass(frozen=True)
class AskedLayers:
    """What was asked of the convolutions: numbers by type, and the type by ONNX node."""

    precision: str
    convolutions: Mapping[str, int]
    layers: Mapping[str, str]


@dataclass(frozen=True)
class FoundLayers:
    """What an engine's layers are; see `export.tensorrt.layers.summarize_layers`.

    Attributes:
        count: layers; None where the inspector's answer could not be read.
        reason: why not, or why types that depend on the batch are missing.
        by_kind: kind to number.
        by_precision: type to number: "int8", "fp16", "fp32", ... or "unknown".
        convolutions: the same, of the convolutions alone.
        convolution_layers: ONNX node to type.
        int8_outputs: of the convolutions that run in INT8: type that they write to number, without those that cannot
            be told; None where none can. Fused ones write "int8".
        reformats: names of the layers that only change a format.
        layers: all of them.
    """

    count: int | None
    reason: str | None = None
    by_kind: Mapping[str, int] = field(default_factory=dict)
    by_precision: Mapping[str, int] = field(default_factory=dict)
    convolutions: Mapping[str, int] = field(default_factory=dict)
    convolution_layers: Mapping[str, str] = field(default_factory=dict)
    int8_outputs: Mapping[str, int] | None = None
    reformats: tuple[str, ...] = ()
    layers: tuple[Layer, ...] = ()


@dataclass(frozen=True)
class Sidecar:
    """What an engine is.

    Attributes:
        flavour: "tensorrt" or "rtx".
        tensorrt_version: of the library that built it.
        compute_capability: of the GPU it was built on, such as "8.9"; None where ``targets`` say it, or by default.
        targets: compute capabilities it was built for, TensorRT-RTX only.
        precision: "fp32", "fp16" or "int8".
        onnx_sha256: of the file it was built from.
        plan_sha256: of the plan.
        plan_bytes: size of the plan.
        profile: its batch sizes.
        tensors: inputs and outputs.
        options: how it was built, see `export.tensorrt.options.described`.
        runs_on: GPUs, for people.
        gpu: where it was built; None: on a machine without one.
        driver_version: there.
        cuda_version: there.
        onnx_file: what it was built from, relative to the folder two above the plan's.
        variant: which of several engines of this precision.
        classes: names of the outputs.
        preprocessing: what the graph does to pixels, see `export.preprocessing`.
        metadata: what else the ONNX file said.
        seconds: the build took.
        network_layers: kind to number, as parsed.
        asked: types that were asked of the convolutions.
        found: types that the engine has; where it was not loaded, as the builder listed them, or None.
        layers_reason: why it was not.
        warnings: where the engine differs from what was asked for, or is probably slow.
    """

    flavour: str
    tensorrt_version: str
    compute_capability: str | None
    targets: tuple[str, ...]
    precision: str
    onnx_sha256: str
    plan_sha256: str
    plan_bytes: int
    profile: BatchProfile
    tensors: tuple[TensorInfo, ...]
    options: Mapping[str, Any]
    schema: int = SCHEMA
    runs_on: str | None = None
    gpu: str | None = None
    driver_version: str | None = None
    cuda_version: str | None = None
    onnx_file: str | None = None
    variant: str | None = None
    classes: tuple[str, ...] | None = None
    preprocessing: Mapping[str, Any] | None = None
    metadata: Mapping[str, Any] = field(default_factory=dict)
    seconds: float | None = None
    network_layers: Mapping[str, int] = field(default_factory=dict)
    asked: AskedLayers | None = None
    found: FoundLayers | None = None
    layers_reason: str | None = None
    warnings: tuple[str, ...] = ()


def sidecar_path(plan_path: str | os.PathLike[str]) -> Path:
    """Give the path of a plan's sidecar: ``fp16.plan`` has ``fp16.json``."""
    return Path(plan_path).with_suffix(".json")


def home_of(plan_path: Path) -> Path:
    """Give the folder two above a plan's, which is that of a recipe's artifacts; the root where it lies no deeper."""
    above = plan_path.resolve().parents
    return above[min(2, len(above) - 1)]


def sha256_file(path: str | os.PathLike[str]) -> str:
    """Return the sha256 of a file as 64 hexadecimal digits, read in pieces of 1 MiB."""
    with open(path, "rb") as file:
        return digest_of(file)


def write_plan(plan_path: Path, plan: Any, sidecar: Sidecar) -> None:
    """Write a plan and its sidecar; a crash at any moment leaves the old pair, the new, or one that is refused.

    Args:
        plan_path: where the plan goes; its folder is made.
        plan: the serialised engine, anything with the buffer protocol.
        sidecar: what `read_sidecar` is to return.

    Raises:
        ProjectError: the disk refused; nothing half-written is left.
    """
    target = sidecar_path(plan_path)
    text = json.dumps(to_json(sidecar), indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    try:
        with replacing_files(plan_path, target) as (new_plan, new_sidecar):
            new_plan.write_bytes(plan)
            new_sidecar.write_bytes(text.encode())
    except OSError as error:
        raise ProjectError(
            f"Expected to write {plan_path.name} and {target.name} in {plan_path.parent}. Received: {error}. "
            "Free space there or correct the permissions, then build again."
        ) from error


def read_sidecar(plan_path: str | os.PathLike[str]) -> Sidecar:
    """Read a plan's sidecar.

    Raises:
        ProjectError: it is missing, not JSON, of another schema, or lacks something; with the file and the key.
    """
    path = sidecar_path(plan_path)
    remedy = f"A plan without a whole sidecar is not loaded; rebuild it: {REBUILD}."
    if not path.is_file():
        remedy = f"Copy it along: it lies beside the plan where that was built. Or rebuild it: {REBUILD}."
    return read_record(Sidecar, path, remedy=remedy, what="sidecar")
