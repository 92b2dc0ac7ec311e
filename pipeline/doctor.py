"""What is here, what each stage can do with it, and the command that mends what is missing."""

from __future__ import annotations

import platform
import shutil
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from export.capabilities import find_tensorrt, why_missing
from export.driver import DriverStatus, driver_status
from export.machine import describe_cpu
from export.machine import version_of as _installed
from export.versions import is_checked, no_support, unproven
from pipeline.environment import refuses_all
from pipeline.manifest import ROOT
from pipeline.mending import driver_lines, newer_than_driver, python_line, tensorrt_lines
from pipeline.runners.providers import why_not
from pipeline.starting import OLDEST_FOR_A_BUNDLE

SUPPORTED = ((3, 11), (3, 14))
OK, WARN, BAD = "ok", "--", "!!"


def doctor() -> dict[str, Any]:
    """Print the state of this machine; the result holds the same for the JSON line.

    The exit status is 2 where anything is marked !!, that is missing or in conflict, else 0.
    """
    gpu_requirements = _installed("onnxruntime-gpu") is not None
    requirements = "requirements-gpu.txt" if gpu_requirements else "requirements.txt"
    if _for_a_bundle():
        requirements = "requirements-jetson.txt"
    machine = _machine()
    packages = _packages(ROOT / requirements)
    if not _for_a_bundle():
        packages |= _packages(ROOT / "requirements-legacy.txt")
    conflict = gpu_requirements and _installed("onnxruntime") is not None
    driver = driver_status()
    tensorrt = {name: _tensorrt(name, driver) for name in ("tensorrt", "rtx")}
    stages = _stages(packages, bool(driver), tensorrt)
    if _for_a_bundle():
        stages |= _bundle_stages(bool(driver), tensorrt)
    no_cuda = why_not("cuda") if driver else driver.reason
    newer = newer_than_driver(driver, _installed)

    print("machine")
    for name, value in machine.items():
        print(f"  {name:<14} {value}")
    print(f"\npackages against {requirements}")
    for name, entry in packages.items():
        print(f"  [{entry['state']}] {name:<28} {entry['here'] or 'missing':<14} pinned {entry['pinned']}")
    if conflict:
        print(f"  [{BAD}] onnxruntime and onnxruntime-gpu are both installed and break each other")
    print("\nGPU")
    if driver:
        print(f"  [{OK}] driver {driver.driver_version or 'of a version it does not tell'}, CUDA {driver.cuda_version}")
        for package, cuda in newer.items():
            print(f"  [{WARN}] {package} is for CUDA {cuda}, this driver for CUDA {driver.cuda_version} at most")
        for device in driver.devices:
            print(f"  [{OK}] {device.name}, compute capability {device.compute_capability}, {device.memory >> 20} MiB")
        print(f"  [{WARN if no_cuda else OK}] ONNX Runtime on CUDA{f': {no_cuda}' if no_cuda else ''}")
    else:
        print(f"  [{WARN}] {driver.reason}")
    print("\nTensorRT")
    for name, entry in tensorrt.items():
        print(f"  [{OK if entry['version'] else WARN}] {name:<10} {_standing(entry)}")
        for line in entry["unsupported"]:
            print(f"  [{WARN}] {name:<10} {line}")
    print("\nstages")
    for name, entry in stages.items():
        print(f"  [{entry['state']}] {name:<10} {entry['text']}")
    mend = _mend(packages, conflict, stages, driver, requirements, newer)
    if mend:
        print("\nto mend\n" + "\n".join(f"  {line}" for line in mend))
    states = [entry["state"] for entry in (*packages.values(), *stages.values())]
    return {
        "machine": machine,
        "packages": packages,
        "conflict": conflict,
        "driver": {
            "available": bool(driver),
            "reason": driver.reason,
            "version": driver.driver_version,
            "cuda": driver.cuda_version,
            "too_old_for": list(newer),
            "devices": [asdict(device) for device in driver.devices],
        },
        "tensorrt": tensorrt,
        "onnxruntime_cuda": {"active": not no_cuda, "why_not": no_cuda},
        "stages": stages,
        "mend": mend,
        "exit": 2 if conflict or BAD in states else 0,
    }


def _machine() -> dict[str, str]:
    note = "" if _python_fits() else f"  (expected {_pythons()})"
    if _for_a_bundle():
        note = f"  (for what runs a bundle; training and exporting need {_pythons()})"
    return {
        "python": platform.python_version() + note,
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "cpu": describe_cpu(),
        "disk free": f"{shutil.disk_usage(Path.cwd()).free / 1e9:.0f} GB",
    }


def _python_fits() -> bool:
    return SUPPORTED[0] <= sys.version_info[:2] < SUPPORTED[1]


def _for_a_bundle() -> bool:
    """Whether this Python is for running bundles alone, as JetPack's is."""
    return OLDEST_FOR_A_BUNDLE <= sys.version_info[:2] < SUPPORTED[0]


def _pythons() -> str:
    (major, first), (_, end) = SUPPORTED
    return f"{major}.{first} to {major}.{end - 1}"


def _packages(requirements: Path) -> dict[str, dict[str, Any]]:
    from packaging.requirements import Requirement

    found: dict[str, dict[str, Any]] = {}
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
        found[requirement.name] = {"here": here, "pinned": str(requirement.specifier), "state": state}
    return found


def _tensorrt(flavour: str, driver: DriverStatus) -> dict[str, Any]:
    """What is known of a flavour; whether it builds here, and whether what it builds runs here."""
    trt = find_tensorrt(flavour)
    if trt is None:
        nothing = {"builds_without_gpu": False, "unproven": "", "unsupported": [], "runs": False, "builds": False}
        return {"version": None, "why": why_missing().get(flavour, "not installed"), **nothing}
    alone = trt.builds_without_gpu
    first = driver.devices[:1]
    return {
        "version": trt.version,
        "why": "",
        "builds_without_gpu": alone,
        "unproven": unproven(flavour, trt.version),
        "unsupported": [
            f"{one.name}, compute capability {one.compute_capability}: {no_support(flavour, one.compute_capability)}"
            for one in driver.devices
            if trt.supports(one.compute_capability) is False
        ],
        "runs": bool(driver) and not refuses_all(trt, driver.devices),
        "builds": alone or (bool(driver) and not refuses_all(trt, first)),
    }


def _standing(tensorrt: dict[str, Any]) -> str:
    unproven = tensorrt["unproven"]
    return (tensorrt["version"] or tensorrt["why"]) + (f", {unproven}" if unproven else "")


def _stages(
    packages: dict[str, dict[str, Any]], driver: bool, tensorrt: dict[str, dict[str, Any]]
) -> dict[str, dict[str, str]]:
    def has(*names: str) -> bool:
        return all(any(p == n or p.startswith(f"{n}-") for p, e in packages.items() if e["here"]) for n in names)

    def entry(state: str, text: str) -> dict[str, str]:
        return {"state": state, "text": text}

    def needs(*names: str) -> dict[str, str]:
        return entry(BAD, "needs " + " and ".join(name for name in names if not has(name)))

    found = [name for name, known in tensorrt.items() if known["version"]]
    runs = [name for name in found if tensorrt[name]["runs"]]
    builders = [name for name in found if tensorrt[name]["builds"]]
    missing = _engines_need(driver, tensorrt)
    engines = f"; engines need {missing}" if missing else ", engines"
    on_gpu = (
        "on the GPU, if TensorFlow finds the CUDA libraries" if driver and "tensorflow" in packages else "on the CPU"
    )
    build = entry(OK, f"with {builders[0]}") if builders else entry(WARN, "no engine can be built here")
    if builders and driver and builders[0] not in runs:
        build = entry(WARN, f"with {builders[0]}, which does not support this GPU: for others")
    keras, runtime = ("tensorflow", "keras"), ("onnx", "onnxruntime")
    return {
        "train": entry(OK, on_gpu) if has(*keras) else needs(*keras),
        "export": entry(OK, "") if has(*keras, "tf2onnx") else needs(*keras, "tf2onnx"),
        "quantize": entry(OK, "") if has(*runtime) else needs(*runtime),
        "build": build,
        "verify": entry(OK, f"Keras, ONNX files{engines}") if has(*runtime) else needs(*runtime),
        "benchmark": entry(OK, f"Keras, ONNX Runtime{engines}") if has(*runtime) else needs(*runtime),
        "infer": entry(OK, "with ONNX Runtime" if missing else "with TensorRT") if has(*runtime) else needs(*runtime),
        "report": entry(OK, "") if has("matplotlib") else needs("matplotlib"),
    }


def _engines_need(driver: bool, tensorrt: dict[str, dict[str, Any]]) -> str:
    """What an engine needs to run and this machine has not; "" if it has all."""
    found = [known for known in tensorrt.values() if known["version"]]
    lacking = "a TensorRT that supports this GPU" if found else "TensorRT"
    cuda = _installed("cuda-bindings") or _installed("pycuda")
    runs = any(known["runs"] for known in found)
    return "a GPU" if not driver else lacking if not runs else "" if cuda else "cuda-bindings"


def _bundle_stages(driver: bool, tensorrt: dict[str, dict[str, Any]]) -> dict[str, dict[str, str]]:
    """The stages but `build` on a machine that runs bundles alone: it has engines, and neither Keras nor ONNX files."""
    missing = _engines_need(driver, tensorrt)
    engines = {"state": WARN, "text": f"engines need {missing}"} if missing else {"state": OK, "text": "engines"}
    elsewhere = {"state": WARN, "text": "not here; a bundle brings what it made elsewhere"}
    on_engines = dict.fromkeys(("verify", "benchmark", "infer"), engines)
    return dict.fromkeys(("train", "export", "quantize", "report"), elsewhere) | on_engines


def _mend(
    packages: dict[str, dict[str, Any]],
    conflict: bool,
    stages: dict[str, dict[str, str]],
    driver: DriverStatus,
    requirements: str,
    newer: dict[str, int],
) -> list[str]:
    lines = []
    pip = f"{python_line()} -m pip"
    if not _python_fits() and not _for_a_bundle():
        lines.append(f"make install VENV=.venv-new PYTHON=python3.12        (any Python {_pythons()})")
    if conflict:
        lines.append(f"{pip} uninstall -y onnxruntime onnxruntime-gpu, and then")
    if conflict or any(entry["state"] != OK for entry in packages.values()):
        legacy = "" if _for_a_bundle() else f" && {pip} install --no-deps -r requirements-legacy.txt"
        lines.append(f"{pip} install -r {requirements}{legacy}")
    if stages["build"]["state"] == WARN:
        lines += tensorrt_lines(driver, _for_a_bundle())
    return lines + driver_lines(driver, newer)
