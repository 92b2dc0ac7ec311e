"""What is here, what each stage can do with it, and the command that mends what is missing."""

import platform
import shutil
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from export.files import ROOT
from export.records import to_json
from export.tensorrt.driver import Device, DriverStatus, driver_status, is_checked, no_support, unproven
from export.tensorrt.library import find_tensorrt, why_missing
from pipeline.artifacts.machine import describe_cpu
from pipeline.artifacts.machine import version_of as _installed
from pipeline.cli.remedies import driver_lines, newer_than_driver, python_line, tensorrt_lines
from pipeline.runners.onnxruntime import why_not
from pipeline.terminal.starting import NEWEST, OLDEST, OLDEST_FOR_A_BUNDLE
from pipeline.workflow.environment import refuses_all

PYTHONS = "{}.{} to {}.{}".format(*OLDEST, *NEWEST)
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


def doctor() -> dict[str, object]:
    """Print the state of this machine; the result holds the same for the JSON line.

    The exit status is 2 where anything is marked !!, that is missing or in conflict, else 0.
    """
    status = driver_status()
    newer = newer_than_driver(status, _installed)
    findings = _find(status, newer)
    print(_text(findings, newer))
    return to_json(findings) | {"exit": 2 if findings.is_broken else 0}


def _find(driver: DriverStatus, newer: Mapping[str, int]) -> Findings:
    packages = _packages(ROOT / _requirements())
    if not _for_a_bundle():
        packages |= _packages(ROOT / "requirements-legacy.txt")
    conflict = bool(_installed("onnxruntime-gpu") and _installed("onnxruntime"))
    tensorrt = {name: _tensorrt(name, driver) for name in ("tensorrt", "rtx")}
    stages = _stages(packages, bool(driver), tensorrt)
    if _for_a_bundle():
        stages |= _bundle_stages(bool(driver), tensorrt)
    no_cuda = why_not("cuda") if driver else driver.reason
    return Findings(
        machine=_machine(),
        packages=packages,
        conflict=conflict,
        driver=Driver(
            bool(driver), driver.reason, driver.driver_version, driver.cuda_version, tuple(newer), driver.devices
        ),
        tensorrt=tensorrt,
        onnxruntime_cuda=OnnxRuntimeCuda(not no_cuda, no_cuda),
        stages=stages,
        mend=(*_mend(packages, conflict, stages["build"], driver), *driver_lines(driver, newer)),
    )


def _text(findings: Findings, newer: Mapping[str, int]) -> str:
    driver, no_cuda = findings.driver, findings.onnxruntime_cuda.why_not
    gpu = [
        f"[{OK}] driver {driver.version or 'of a version it does not tell'}, CUDA {driver.cuda}",
        *(
            f"[{WARN}] {package} is for CUDA {cuda}, this driver for CUDA {driver.cuda} at most"
            for package, cuda in newer.items()
        ),
        *(
            f"[{OK}] {one.name}, compute capability {one.compute_capability}, {one.memory >> 20} MiB"
            for one in driver.devices
        ),
        f"[{WARN if no_cuda else OK}] ONNX Runtime on CUDA{f': {no_cuda}' if no_cuda else ''}",
    ]
    both = f"[{BAD}] onnxruntime and onnxruntime-gpu are both installed and break each other"
    sections = {
        "machine": [f"{name:<14} {value}" for name, value in findings.machine.items()],
        f"packages against {_requirements()}": [
            *(
                f"[{one.state}] {name:<28} {one.here or 'missing':<14} pinned {one.pinned}"
                for name, one in findings.packages.items()
            ),
            *([both] if findings.conflict else []),
        ],
        "GPU": gpu if driver.available else [f"[{WARN}] {driver.reason}"],
        "TensorRT": [line for name, library in findings.tensorrt.items() for line in _library_lines(name, library)],
        "stages": [f"[{one.state}] {name:<10} {one.text}" for name, one in findings.stages.items()],
        "to mend": findings.mend,
    }
    parts = ("\n  ".join([title, *lines]) for title, lines in sections.items() if lines)
    return "\n\n".join(parts)


def _library_lines(name: str, library: Library) -> list[str]:
    standing = (library.version or library.why) + (f", {library.unproven}" if library.unproven else "")
    return [
        f"[{OK if library.version else WARN}] {name:<10} {standing}",
        *(f"[{WARN}] {name:<10} {line}" for line in library.unsupported),
    ]


def _requirements() -> str:
    """The file that says what should be here."""
    if _for_a_bundle():
        return "requirements-jetson.txt"
    return "requirements-gpu.txt" if _installed("onnxruntime-gpu") else "requirements.txt"


def _machine() -> dict[str, str]:
    note = "" if _python_fits() else f"  (expected {PYTHONS})"
    if _for_a_bundle():
        note = f"  (for what runs a bundle; training and exporting need {PYTHONS})"
    return {
        "python": platform.python_version() + note,
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "cpu": str(describe_cpu()),
        "disk free": f"{shutil.disk_usage(Path.cwd()).free / 1e9:.0f} GB",
    }


def _python_fits() -> bool:
    return OLDEST <= sys.version_info[:2] <= NEWEST


def _for_a_bundle() -> bool:
    """Whether this Python is for running bundles alone, as JetPack's is."""
    return OLDEST_FOR_A_BUNDLE <= sys.version_info[:2] < OLDEST


def _packages(requirements: Path) -> dict[str, Package]:
    from packaging.requirements import Requirement

    found: dict[str, Package] = {}
    for line in requirements.read_text(encoding="utf-8").splitlines():
        text = line.partition("#")[0].strip()
        if text.startswith("-r "):
            found |= _packages(requirements.parent / text[3:].strip())
        if not text or text.startswith("-"):
            continue
        requirement = Requirement(text)
        if requirement.marker is not None and not requirement.marker.evaluate():
            continue
        here = _installed(requirement.name)
        if requirement.name == "tensorrt" and here is None:
            here = _installed("tensorrt-cu12") or _installed("tensorrt-cu13")  # what it stands for
        fits = here is not None and requirement.specifier.contains(here, prereleases=True)
        if requirement.name == "tensorrt" and here is not None:
            fits = fits or is_checked("tensorrt", here)  # older than what is advised, as JetPack's own
        state = OK if fits else WARN if here else BAD
        found[requirement.name] = Package(here, str(requirement.specifier), state)
    return found


def _tensorrt(flavour: str, driver: DriverStatus) -> Library:
    """What is known of a flavour; whether it builds here, and whether what it builds runs here."""
    trt = find_tensorrt(flavour)
    if trt is None:
        return Library(None, why_missing().get(flavour, "not installed"))
    return Library(
        version=trt.version,
        builds_without_gpu=trt.builds_without_gpu,
        unproven=unproven(flavour, trt.version),
        unsupported=tuple(
            f"{one.name}, compute capability {one.compute_capability}: {no_support(flavour, one.compute_capability)}"
            for one in driver.devices
            if trt.supports(one.compute_capability) is False
        ),
        runs=bool(driver) and not refuses_all(trt, driver.devices),
        builds=trt.builds_without_gpu or (bool(driver) and not refuses_all(trt, driver.devices[:1])),
    )


def _stages(packages: Mapping[str, Package], driver: bool, tensorrt: Mapping[str, Library]) -> dict[str, StageFinding]:
    def has(*names: str) -> bool:
        return all(any(p == n or p.startswith(f"{n}-") for p, one in packages.items() if one.here) for n in names)

    def with_all(text: str, *names: str) -> StageFinding:
        missing = " and ".join(name for name in names if not has(name))
        return StageFinding(BAD, f"needs {missing}") if missing else StageFinding(OK, text)

    builders = [name for name, library in tensorrt.items() if library.builds]
    missing = _engines_need(driver, tensorrt)
    engines = f"; engines need {missing}" if missing else ", engines"
    on_gpu = (
        "on the GPU, if TensorFlow finds the CUDA libraries" if driver and "tensorflow" in packages else "on the CPU"
    )
    if not builders:
        build = StageFinding(WARN, "no engine can be built here")
    elif driver and not tensorrt[builders[0]].runs:
        build = StageFinding(WARN, f"with {builders[0]}, which does not support this GPU: for others")
    else:
        build = StageFinding(OK, f"with {builders[0]}")
    keras, runtime = ("tensorflow", "keras"), ("onnx", "onnxruntime")
    return {
        "train": with_all(on_gpu, *keras),
        "export": with_all("", *keras, "tf2onnx"),
        "quantize": with_all("", *runtime),
        "build": build,
        "verify": with_all(f"Keras, ONNX files{engines}", *runtime),
        "benchmark": with_all(f"Keras, ONNX Runtime{engines}", *runtime),
        "infer": with_all("with ONNX Runtime" if missing else "with TensorRT", *runtime),
        "report": with_all("", "matplotlib", "jinja2"),
    }


def _engines_need(driver: bool, tensorrt: Mapping[str, Library]) -> str:
    """What an engine needs to run and this machine has not; "" if it has all."""
    here = {
        "a GPU": driver,
        "TensorRT": any(library.version for library in tensorrt.values()),
        "a TensorRT that supports this GPU": any(library.runs for library in tensorrt.values()),
        "cuda-bindings": _installed("cuda-bindings") or _installed("pycuda"),
    }
    return next((need for need, is_here in here.items() if not is_here), "")


def _bundle_stages(driver: bool, tensorrt: Mapping[str, Library]) -> dict[str, StageFinding]:
    """The stages but `build` on a machine that runs bundles alone: it has engines, and neither Keras nor ONNX files."""
    missing = _engines_need(driver, tensorrt)
    engines = StageFinding(WARN, f"engines need {missing}") if missing else StageFinding(OK, "engines")
    elsewhere = StageFinding(WARN, "not here; a bundle brings what it made elsewhere")
    return {
        **dict.fromkeys(("train", "export", "quantize", "report"), elsewhere),
        **dict.fromkeys(("verify", "benchmark", "infer"), engines),
    }


def _mend(packages: Mapping[str, Package], conflict: bool, build: StageFinding, driver: DriverStatus) -> list[str]:
    lines = []
    pip = f"{python_line()} -m pip"
    if not _python_fits() and not _for_a_bundle():
        lines.append(f"make install VENV=.venv-new PYTHON=python3.12        (any Python {PYTHONS})")
    if conflict:
        lines.append(f"{pip} uninstall -y onnxruntime onnxruntime-gpu, and then")
    if conflict or any(package.state != OK for package in packages.values()):
        legacy = "" if _for_a_bundle() else f" && {pip} install --no-deps -r requirements-legacy.txt"
        lines.append(f"{pip} install -r {_requirements()}{legacy}")
    return lines + (tensorrt_lines(driver, _for_a_bundle()) if build.state == WARN else [])
