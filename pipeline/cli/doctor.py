"""Show what is installed on this machine, what each stage can do with it, and the commands that fix what is missing."""

import platform
import shutil
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from export.files import ROOT
from export.records import to_json
from export.tensorrt.driver import Device, DriverStatus, driver_status, is_checked, no_support, untested_note
from export.tensorrt.library import find_tensorrt, why_missing
from pipeline.artifacts.machine import describe_cpu, version_of
from pipeline.cli.remedies import driver_lines, packages_newer_than_driver, tensorrt_lines, what_few_need
from pipeline.runners.onnxruntime import why_not
from pipeline.terminal.command_line import module_command
from pipeline.terminal.starting import NEWEST, OLDEST, OLDEST_FOR_A_BUNDLE
from pipeline.workflow.environment import refuses_all

PYTHONS = "{}.{} to {}.{}".format(*OLDEST, *NEWEST)
OK, WARN, BAD = "ok", "--", "!!"


@dataclass(frozen=True)
class Package:
    """A package that a requirements file pins.

    Attributes:
        here: the installed version; None where it is not installed.
        pinned: what the requirements file asks for.
        state: `OK`, `WARN` (another version), or `BAD` (missing).
    """

    here: str | None
    pinned: str
    state: str


@dataclass(frozen=True)
class Library:
    """A flavour of TensorRT.

    Attributes:
        version: None where it is not installed.
        why: why it is not installed. Defaults to "".
        builds_without_gpu: whether it builds engines without a GPU.
        unproven: what was never tested with this version; "" for nothing.
        unsupported: the GPUs of this machine that it does not support, and what supports them.
        runs: whether the engines that it builds run here.
        builds: whether it can build engines here.
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
    """NVIDIA's driver, and the packages that need a newer one."""

    available: bool
    reason: str
    version: str | None
    cuda: str | None
    too_old_for: tuple[str, ...]
    devices: tuple[Device, ...]


@dataclass(frozen=True)
class OnnxRuntimeCuda:
    """Whether ONNX Runtime computes on the GPU; ``why_not`` is "" where it does."""

    active: bool
    why_not: str


@dataclass(frozen=True)
class StageFinding:
    """What a stage can do here, or what it lacks."""

    state: str
    text: str = ""


@dataclass(frozen=True)
class Findings:
    """The state of a machine; ``conflict``: two packages that break each other are both installed."""

    machine: Mapping[str, str]
    packages: Mapping[str, Package]
    conflict: bool
    driver: Driver
    tensorrt: Mapping[str, Library]
    onnxruntime_cuda: OnnxRuntimeCuda
    stages: Mapping[str, StageFinding]
    optional: Mapping[str, StageFinding]
    remedies: tuple[str, ...]

    @property
    def is_broken(self) -> bool:
        """Whether anything is marked !!: missing or in conflict."""
        return self.conflict or BAD in [
            *(package.state for package in self.packages.values()),
            *(stage.state for stage in self.stages.values()),
        ]


def doctor() -> dict[str, object]:
    """Print the state of this machine.

    Returns:
        dict[str, object]: the same for the JSON line; "exit" is 2 where anything is marked !!, else 0.
    """
    driver = driver_status()
    newer = packages_newer_than_driver(driver, version_of)
    packages = _packages(ROOT / _requirements())
    if not _for_a_bundle():
        packages |= _packages(ROOT / "requirements-legacy.txt")
    conflict = bool(version_of("onnxruntime-gpu") and version_of("onnxruntime"))
    tensorrt = {name: _tensorrt(name, driver) for name in ("tensorrt", "rtx")}
    stages = _stages(packages, bool(driver), tensorrt)
    if _for_a_bundle():
        stages |= _bundle_stages(bool(driver), tensorrt)
    no_cuda = why_not("cuda") if driver else driver.reason
    findings = Findings(
        machine=_machine(),
        packages=packages,
        conflict=conflict,
        driver=Driver(
            bool(driver), driver.reason, driver.driver_version, driver.cuda_version, tuple(newer), driver.devices
        ),
        tensorrt=tensorrt,
        onnxruntime_cuda=OnnxRuntimeCuda(not no_cuda, no_cuda),
        stages=stages,
        optional={
            name: StageFinding(WARN if lacks else OK, lacks) for name, lacks in what_few_need(version_of).items()
        },
        remedies=(*_remedies(packages, conflict, stages["build"], driver), *driver_lines(driver, newer)),
    )
    print(_text(findings, newer))
    return to_json(findings) | {"exit": 2 if findings.is_broken else 0}


def _text(findings: Findings, newer: Mapping[str, int]) -> str:
    driver, no_cuda = findings.driver, findings.onnxruntime_cuda.why_not
    gpu = [
        f"[{OK}] driver {driver.version or 'of an unknown version'}, CUDA {driver.cuda}",
        *(
            f"[{WARN}] {package} is for CUDA {cuda}, this driver for CUDA {driver.cuda} at most"
            for package, cuda in newer.items()
        ),
        *(
            f"[{OK}] {device.name}, compute capability {device.compute_capability}, {device.memory >> 20} MiB"
            for device in driver.devices
        ),
        f"[{WARN if no_cuda else OK}] ONNX Runtime on CUDA{f': {no_cuda}' if no_cuda else ''}",
    ]
    conflict = f"[{BAD}] onnxruntime and onnxruntime-gpu are both installed and break each other"
    sections = {
        "machine": [f"{name:<14} {value}" for name, value in findings.machine.items()],
        f"packages against {_requirements()}": [
            *(
                f"[{package.state}] {name:<28} {package.here or 'missing':<14} pinned {package.pinned}"
                for name, package in findings.packages.items()
            ),
            *([conflict] if findings.conflict else []),
        ],
        "GPU": gpu if driver.available else [f"[{WARN}] {driver.reason}"],
        "TensorRT": [line for name, library in findings.tensorrt.items() for line in _library_lines(name, library)],
        "stages": [f"[{stage.state}] {name:<10} {stage.text}" for name, stage in findings.stages.items()],
        "besides": [f"[{way.state}] {name:<10} {way.text}" for name, way in findings.optional.items()],
        "to fix": findings.remedies,
    }
    return "\n\n".join("\n  ".join([title, *lines]) for title, lines in sections.items() if lines)


def _library_lines(name: str, library: Library) -> list[str]:
    unproven = f", {library.unproven}" if library.unproven else ""
    return [
        f"[{OK if library.version else WARN}] {name:<10} {library.version or library.why}{unproven}",
        *(f"[{WARN}] {name:<10} {line}" for line in library.unsupported),
    ]


def _requirements() -> str:
    """Return the requirements file for this machine."""
    if _for_a_bundle():
        return "requirements-jetson.txt"
    return "requirements-gpu.txt" if version_of("onnxruntime-gpu") else "requirements.txt"


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
    """Return whether this Python can only run bundles, as JetPack's."""
    return OLDEST_FOR_A_BUNDLE <= sys.version_info[:2] < OLDEST


def _packages(requirements: Path) -> dict[str, Package]:
    from packaging.requirements import Requirement

    packages: dict[str, Package] = {}
    for line in requirements.read_text(encoding="utf-8").splitlines():
        text = line.partition("#")[0].strip()
        if text.startswith("-r "):
            packages |= _packages(requirements.parent / text[3:].strip())
        if not text or text.startswith("-"):
            continue
        requirement = Requirement(text)
        if requirement.marker is not None and not requirement.marker.evaluate():
            continue
        here = version_of(requirement.name)
        if requirement.name == "tensorrt" and here is None:
            here = version_of("tensorrt-cu12") or version_of("tensorrt-cu13")  # "tensorrt" only installs one of them
        fits = here is not None and (
            requirement.specifier.contains(here, prereleases=True)
            # older than what is advised, as JetPack's own
            or (requirement.name == "tensorrt" and is_checked("tensorrt", here))
        )
        state = OK if fits else WARN if here else BAD
        packages[requirement.name] = Package(here, str(requirement.specifier), state)
    return packages


def _tensorrt(flavour: str, driver: DriverStatus) -> Library:
    """Describe a flavour of TensorRT: whether it builds here, and whether its engines run here."""
    trt = find_tensorrt(flavour)
    if trt is None:
        return Library(None, why_missing().get(flavour, "not installed"))
    return Library(
        version=trt.version,
        builds_without_gpu=trt.builds_without_gpu,
        unproven=untested_note(flavour, trt.version),
        unsupported=tuple(
            f"{gpu.name}, compute capability {gpu.compute_capability}: {no_support(flavour, gpu.compute_capability)}"
            for gpu in driver.devices
            if trt.supports(gpu.compute_capability) is False
        ),
        runs=bool(driver) and not refuses_all(trt, driver.devices),
        builds=trt.builds_without_gpu or (bool(driver) and not refuses_all(trt, driver.devices[:1])),
    )


def _stages(packages: Mapping[str, Package], driver: bool, tensorrt: Mapping[str, Library]) -> dict[str, StageFinding]:
    installed = [name for name, package in packages.items() if package.here]

    def with_all(text: str, *names: str) -> StageFinding:
        missing = " and ".join(
            name for name in names if not any(f"{package}-".startswith(f"{name}-") for package in installed)
        )
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
    """Return what an engine needs to run and this machine lacks; "" if it has all."""
    present = {
        "a GPU": driver,
        "TensorRT": any(library.version for library in tensorrt.values()),
        "a TensorRT that supports this GPU": any(library.runs for library in tensorrt.values()),
        "cuda-bindings": version_of("cuda-bindings") or version_of("pycuda"),
    }
    return next((need for need, is_present in present.items() if not is_present), "")


def _bundle_stages(driver: bool, tensorrt: Mapping[str, Library]) -> dict[str, StageFinding]:
    """Return all stages but `build` on a machine for bundles: it runs engines, and has neither Keras nor ONNX files."""
    missing = _engines_need(driver, tensorrt)
    engines = StageFinding(WARN, f"engines need {missing}") if missing else StageFinding(OK, "engines")
    elsewhere = StageFinding(WARN, "not here; a bundle holds its result from another machine")
    return {
        **dict.fromkeys(("train", "export", "quantize", "report"), elsewhere),
        **dict.fromkeys(("verify", "benchmark", "infer"), engines),
    }


def _remedies(packages: Mapping[str, Package], conflict: bool, build: StageFinding, driver: DriverStatus) -> list[str]:
    lines = []
    pip = module_command("pip")
    if not _python_fits() and not _for_a_bundle():
        lines.append(f"make install VENV=.venv-new PYTHON=python3.12        (any Python {PYTHONS})")
    if conflict:
        lines.append(f"{pip} uninstall -y onnxruntime onnxruntime-gpu, and then")
    if conflict or any(package.state != OK for package in packages.values()):
        legacy = "" if _for_a_bundle() else f" && {pip} install --no-deps -r requirements-legacy.txt"
        lines.append(f"{pip} install -r {_requirements()}{legacy}")
    return lines + (tensorrt_lines(driver, _for_a_bundle()) if build.state == WARN else [])
