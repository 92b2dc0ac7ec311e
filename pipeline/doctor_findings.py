"""What the doctor finds, as the JSON line holds it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from export.driver import Device

OK, WARN, BAD = "ok", "--", "!!"


@dataclass(frozen=True)
class Package:
    """A package that a requirements file pins; None where it is not installed."""

    here: str | None
    pinned: str
    state: str


@dataclass(frozen=True)
class Library:
    """A flavour of TensorRT.

    Attributes:
        version: None where it is not here.
        why: it is not here.
        builds_without_gpu: whether it needs none to build.
        unproven: what nobody tried of this version; "" for nothing.
        unsupported: GPUs of this machine that it does not support, with what does.
        runs: whether what it builds runs here.
        builds: whether it builds here.
    """

    version: str | None
    why: str = ""
    builds_without_gpu: bool = False
    unproven: str = ""
    unsupported: tuple[str, ...] = ()
    runs: bool = False
    builds: bool = False


@dataclass(frozen=True)
class Driver:
    """NVIDIA's driver, and the packages that want a newer one."""

    available: bool
    reason: str
    version: str | None
    cuda: str | None
    too_old_for: tuple[str, ...]
    devices: tuple[Device, ...]


@dataclass(frozen=True)
class OnnxRuntimeCuda:
    """Whether ONNX Runtime computes on the GPU."""

    active: bool
    why_not: str


@dataclass(frozen=True)
class StageFinding:
    """What a stage can do here, or needs."""

    state: str
    text: str = ""


@dataclass(frozen=True)
class Findings:
    """The state of a machine; ``conflict``: two packages that break each other are both here."""

    machine: Mapping[str, str]
    packages: Mapping[str, Package]
    conflict: bool
    driver: Driver
    tensorrt: Mapping[str, Library]
    onnxruntime_cuda: OnnxRuntimeCuda
    stages: Mapping[str, StageFinding]
    mend: tuple[str, ...]

    @property
    def is_broken(self) -> bool:
        """Whether anything is marked !!, that is missing or in conflict."""
        states = [one.state for one in self.packages.values()] + [one.state for one in self.stages.values()]
        return self.conflict or BAD in states
