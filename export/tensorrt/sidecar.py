"""Read and write the sidecar: a JSON file beside each plan with its source, TensorRT version, GPU and layers.

The module needs Python 3.10 and the standard library alone.
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
LARGEST_BATCH = 65_536  # more is a typing error
BATCH_RULE = f"1 <= min <= opt <= max <= {LARGEST_BATCH:,}"


def keeps_batch_rule(smallest: int, best: int, largest: int) -> bool:
    """Tell whether batch sizes fit together, see `BATCH_RULE`."""
    return 1 <= smallest <= best <= largest <= LARGEST_BATCH


@dataclass(frozen=True)
class BatchProfile:
    """The batch sizes an engine takes, in images: from ``min`` to ``max``, tuned for ``opt``."""

    min: int
    opt: int
    max: int

    def __post_init__(self) -> None:
        sizes = (self.min, self.opt, self.max)
        if not (all(type(size) is int for size in sizes) and keeps_batch_rule(*sizes)):  # a bool is not a size
            raise ProjectError(
                f"Expected batch sizes {BATCH_RULE}. Received: min={self.min!r}, opt={self.opt!r}, max={self.max!r}. "
                "Correct the recipe's profile."
            )

    def takes(self, batch: int) -> bool:
        """Tell whether a batch runs unchanged: neither split nor padded."""
        return self.min <= batch <= self.max


@dataclass(frozen=True)
class TensorInfo:
    """An input or output of an engine.

    Attributes:
        name: such as "images".
        dtype: numpy's name of the type.
        shape: with -1 for the batch.
        mode: "input" or "output".
        profile: the input's shapes at the batch sizes "min", "opt" and "max"; None for an output.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    mode: Literal["input", "output", ""] = ""
    profile: Mapping[str, tuple[int, ...]] | None = None


@dataclass(frozen=True)
class Layer:
    """One layer of an engine: its name, the Keras layers that it implements, its kind and the type it computes in."""

    name: str
    layers: tuple[str, ...]
    kind: str
    precision: str


@dataclass(frozen=True)
class RequestedLayers:
    """What was requested of the convolutions.

    Attributes:
        precision: "fp32", "fp16" or "int8".
        convolutions: type to number of convolutions.
        layers: ONNX node of each convolution to its type.
        activations: ONNX node of each convolution with an activation behind it, or behind a residual Add, to the
            activation's node. A Relu and the Clip of a shifted one count alike.
    """

    precision: str
    convolutions: Mapping[str, int]
    layers: Mapping[str, str]
    activations: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class EngineLayers:
    """The layers of an engine; see `export.tensorrt.layers.summarize_layers`.

    Attributes:
        count: number of layers; None where the inspector's answer could not be read.
        reason: why it could not be read, or why types that depend on the batch are missing; None where all is known.
        by_kind: kind to number of layers.
        by_precision: type to number of layers: "int8", "fp16", "fp32", ... or "unknown".
        convolutions: type to number of convolutions.
        convolution_layers: ONNX node of each convolution to its type.
        int8_outputs: output type to number, of the convolutions that run in INT8, without those whose output type is
            unknown; None where all are unknown. Fused ones write "int8".
        fused_activations: ONNX nodes of the convolutions whose layer computes the activation behind them too.
        reformats: names of the layers that only change a format.
        layers: all layers.
    """

    count: int | None
    reason: str | None = None
    by_kind: Mapping[str, int] = field(default_factory=dict)
    by_precision: Mapping[str, int] = field(default_factory=dict)
    convolutions: Mapping[str, int] = field(default_factory=dict)
    convolution_layers: Mapping[str, str] = field(default_factory=dict)
    int8_outputs: Mapping[str, int] | None = None
    fused_activations: tuple[str, ...] = ()
    reformats: tuple[str, ...] = ()
    layers: tuple[Layer, ...] = ()


@dataclass(frozen=True)
class Sidecar:
    """Description of an engine.

    Attributes:
        flavour: "tensorrt" or "rtx".
        tensorrt_version: of the library that built it.
        compute_capability: of the GPU it was built on, such as "8.9"; None for TensorRT-RTX, see ``targets``.
        targets: compute capabilities it was built for, TensorRT-RTX only; empty: the library's default.
        precision: "fp32", "fp16" or "int8".
        onnx_sha256: sha256 of the file it was built from.
        plan_sha256: sha256 of the plan.
        plan_bytes: size of the plan.
        profile: batch sizes.
        tensors: inputs and outputs.
        options: how it was built, see `export.tensorrt.options.options_record`.
        runs_on: GPUs that it runs on, for display.
        gpu: name of the GPU where it was built; None: on a machine without one.
        driver_version: of that machine's driver.
        cuda_version: the newest CUDA that this driver runs.
        onnx_file: the file it was built from, relative to the folder two above the plan's.
        variant: name of the batch profile, where there are several engines of this precision.
        classes: names of the classes.
        preprocessing: how the graph preprocesses pixels, see `export.preprocessing`.
        metadata: the other metadata of the ONNX file.
        seconds: duration of the build.
        network_layers: kind to number of layers, as parsed.
        asked: types requested of the convolutions.
        found: the engine's layers; where it was not loaded, as the builder listed them, or None.
        layers_reason: why it was not loaded.
        warnings: where the engine differs from the request, or is probably slow.
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
    asked: RequestedLayers | None = None
    found: EngineLayers | None = None
    layers_reason: str | None = None
    warnings: tuple[str, ...] = ()


def sidecar_path(plan_path: str | os.PathLike[str]) -> Path:
    """Return the path of a plan's sidecar: ``fp16.json`` for ``fp16.plan``."""
    return Path(plan_path).with_suffix(".json")


def artifacts_folder(plan_path: Path) -> Path:
    """Return the folder two above a plan's, which is that of a recipe's artifacts, or the root of a shorter path."""
    parents = plan_path.resolve().parents
    return parents[min(2, len(parents) - 1)]


def sha256_file(path: str | os.PathLike[str]) -> str:
    """Return the sha256 of a file as 64 hexadecimal digits, read in pieces of 1 MiB."""
    with open(path, "rb") as file:
        return digest_of(file)


def write_plan(plan_path: Path, plan: Any, sidecar: Sidecar) -> None:
    """Write a plan and its sidecar; a crash at any moment leaves the old pair, the new one, or one that is refused.

    Args:
        plan_path: file to write the plan to; its folder is created.
        plan: the serialised engine, anything with the buffer protocol.
        sidecar: description of the plan.

    Raises:
        ProjectError: the files cannot be written; no partial file is left.
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
        ProjectError: it is missing, not JSON, of another schema, or incomplete; with the file and the key.
    """
    path = sidecar_path(plan_path)
    remedy = (
        "A plan without a whole sidecar is not loaded; rebuild it"
        if path.is_file()
        else "Copy it along: it lies beside the plan where that was built. Or rebuild it"
    )
    return read_record(Sidecar, path, remedy=f"{remedy}: {REBUILD}.", what="sidecar")
