"""What is here, what each stage can do with it, and the command that mends what is missing."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
import shutil
import sys
from pathlib import Path
from typing import Any

from export.capabilities import find_tensorrt, why_missing
from export.driver import driver_status
from pipeline.manifest import ROOT

SUPPORTED = ((3, 11), (3, 14))
OK, WARN, BAD = "ok", "--", "!!"


def doctor() -> dict[str, Any]:
    """Print the state of this machine; the result holds the same for the JSON line."""
    gpu_requirements = _installed("onnxruntime-gpu") is not None
    requirements = "requirements-gpu.txt" if gpu_requirements else "requirements.txt"
    machine = _machine()
    packages = _packages(ROOT / requirements) | _packages(ROOT / "requirements-legacy.txt")
    conflict = gpu_requirements and _installed("onnxruntime") is not None
    driver = driver_status()
    tensorrt = {name: _tensorrt(name) for name in ("tensorrt", "rtx")}
    stages = _stages(packages, bool(driver), tensorrt)

    print("machine")
    for name, value in machine.items():
        print(f"  {name:<14} {value}")
    print(f"\npackages against {requirements}")
    for name, entry in packages.items():
        print(f"  [{entry['state']}] {name:<28} {entry['here'] or 'missing':<14} pinned {entry['pinned']}")
    if conflict:
        print(f"  [{BAD}] onnxruntime and onnxruntime-gpu are both installed and break each other: pip uninstall both, "
              "then install one requirements file")  # fmt: skip
    print("\nGPU")
    if driver:
        print(f"  [{OK}] driver {driver.driver_version}, CUDA {driver.cuda_version}")
        for device in driver.devices:
            print(f"  [{OK}] {device.name}, compute capability {device.compute_capability}, {device.memory >> 20} MiB")
    else:
        print(f"  [{WARN}] {driver.reason}")
    print("\nTensorRT")
    for name, entry in tensorrt.items():
        print(f"  [{OK if entry['version'] else WARN}] {name:<10} {entry['version'] or entry['why']}")
    print("\nstages")
    for name, entry in stages.items():
        print(f"  [{entry['state']}] {name:<10} {entry['text']}")
    mend = _mend(packages, conflict, stages)
    if mend:
        print("\nto mend\n" + "\n".join(f"  {line}" for line in mend))
    return {
        "machine": machine,
        "packages": packages,
        "driver": {"available": bool(driver), "reason": driver.reason, "version": driver.driver_version},
        "tensorrt": tensorrt,
        "stages": stages,
        "mend": mend,
        "exit": 0 if all(entry["state"] != BAD for entry in stages.values()) and not conflict else 2,
    }


def _machine() -> dict[str, str]:
    low, high = SUPPORTED
    supported = low <= sys.version_info[:2] < high
    note = "" if supported else f"  (expected {low[0]}.{low[1]} to {high[0]}.{high[1] - 1})"
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {
        "python": platform.python_version() + note,
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "cpu": f"{_cpu_model()}, {cores} cores",
        "disk free": f"{shutil.disk_usage(Path.cwd()).free / 1e9:.0f} GB",
    }


def _cpu_model() -> str:
    try:
        found = re.search(r"model name\s*:\s*(.+)", Path("/proc/cpuinfo").read_text())
    except OSError:
        found = None
    return found[1] if found else platform.processor() or "unknown"


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
        fits = here is not None and requirement.specifier.contains(here, prereleases=True)
        state = OK if fits else WARN if here else BAD
        found[requirement.name] = {"here": here, "pinned": str(requirement.specifier), "state": state}
    return found


def _installed(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _tensorrt(flavour: str) -> dict[str, Any]:
    trt = find_tensorrt(flavour)
    if trt is None:
        return {"version": None, "why": why_missing().get(flavour, "not installed"), "builds_without_gpu": False}
    return {"version": trt.version, "why": "", "builds_without_gpu": trt.builds_without_gpu}


def _stages(
    packages: dict[str, dict[str, Any]], driver: bool, tensorrt: dict[str, dict[str, Any]]
) -> dict[str, dict[str, str]]:
    def has(*names: str) -> bool:
        return all(any(p == n or p.startswith(f"{n}-") for p, e in packages.items() if e["here"]) for n in names)

    def entry(state: str, text: str) -> dict[str, str]:
        return {"state": state, "text": text}

    keras = has("tensorflow", "keras")
    runtime = has("onnxruntime", "onnx")
    builders = [n for n, e in tensorrt.items() if e["version"] and (driver or e["builds_without_gpu"])]
    runners = [n for n, e in tensorrt.items() if e["version"] and driver and has("cuda-bindings")]
    return {
        "train": entry(OK, "on the GPU" if driver else "on the CPU") if keras else entry(BAD, "needs tensorflow"),
        "export": entry(OK, "") if keras and has("tf2onnx") else entry(BAD, "needs tensorflow and tf2onnx"),
        "quantize": entry(OK, "") if runtime else entry(BAD, "needs onnx and onnxruntime"),
        "build": entry(OK, f"with {builders[0]}") if builders else entry(WARN, "no engine can be built here"),
        "verify": entry(OK, "Keras, ONNX files" + (", engines" if runners else "; engines need a GPU"))
        if runtime
        else entry(BAD, "needs onnxruntime"),
        "benchmark": entry(OK, "Keras, ONNX Runtime" + (", engines" if runners else "; engines need a GPU"))
        if runtime
        else entry(BAD, "needs onnxruntime"),
        "infer": entry(OK, "with TensorRT" if runners else "with ONNX Runtime")
        if runtime
        else entry(BAD, "needs onnxruntime"),
        "report": entry(OK, "") if has("matplotlib") else entry(BAD, "needs matplotlib"),
    }


def _mend(packages: dict[str, dict[str, Any]], conflict: bool, stages: dict[str, dict[str, str]]) -> list[str]:
    lines = []
    if conflict or any(entry["state"] == BAD for entry in packages.values()):
        lines.append("make install        (on a GPU machine: make install-gpu)")
    if stages["build"]["state"] == WARN:
        lines.append("build on Linux x86-64, where requirements.txt brings TensorRT-RTX, or on a GPU machine:")
        lines.append("  python -m pipeline bundle   here, then   make install-gpu && python -m pipeline unpack   there")
    return lines
