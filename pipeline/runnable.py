"""What runs a recipe's files on this machine: asked where nothing does, so that the true reason is said."""

from __future__ import annotations

import sys
from pathlib import Path

from export.capabilities import FLAVOURS, find_tensorrt, why_missing
from export.driver import DriverStatus
from export.errors import ProjectError
from export.sidecar import read_sidecar
from export.versions import no_support, supports
from pipeline.artifacts import Artifacts
from pipeline.layout import ONNX, TENSORRT8
from pipeline.plans import engines
from pipeline.runners.onnxruntime import is_installed as onnxruntime_is_installed
from pipeline.words import count, listed


def why_nothing_runs(artifacts: Artifacts, driver: DriverStatus) -> str:
    """Why none of a recipe's files can be run on this machine; "" where one may be, or where there is none.

    Args:
        artifacts: of the recipe.
        driver: of this machine.
    """
    files, plans = _onnx_files(artifacts), engines(artifacts)
    if files and onnxruntime_is_installed():
        return ""
    reasons = [why_not_opened(artifacts.path(plan), driver) for plan in plans]
    if "" in reasons:
        return ""
    if driver and plans and find_tensorrt("tensorrt") is None:  # which runs its own engines, and builds them here
        reasons.insert(0, _missing("tensorrt"))
    return listed(dict.fromkeys([*reasons, *(["no ONNX Runtime"] if files else [])]), separator="; ")


def why_not_opened(plan: Path, driver: DriverStatus) -> str:
    """Why nothing here opens an engine; "" where something may.

    Args:
        plan: the engine.
        driver: of this machine.
    """
    if not driver:
        return driver.reason
    try:
        sidecar = read_sidecar(plan)
    except ProjectError:
        return ""  # what is wrong with it is said where it is opened
    flavour, here = sidecar.flavour, driver.devices[0].compute_capability
    if flavour not in FLAVOURS or find_tensorrt(flavour) is not None:
        return ""
    unsupported = supports(flavour, sidecar.tensorrt_version, here) is False
    return no_support(flavour, here) if unsupported else _missing(flavour)


def files_to_run(artifacts: Artifacts) -> str:
    """How many of a recipe's files there are to be run, and where: "the 3 engines and 3 ONNX files below …"."""
    counted = {"engine": len(engines(artifacts)), "ONNX file": len(_onnx_files(artifacts))}
    return f"the {' and '.join(count(number, noun) for noun, number in counted.items() if number)} below {artifacts}"


def _onnx_files(artifacts: Artifacts) -> list[str]:
    return [name for name in (*ONNX.values(), *TENSORRT8.values()) if artifacts.has(name)]


def _missing(flavour: str) -> str:
    what = "TensorRT" if flavour == "tensorrt" else f"TensorRT of the flavour {flavour}"
    hidden = flavour == "tensorrt" and sys.prefix != sys.base_prefix
    jetpack = "; an environment made with --system-site-packages sees that" if hidden else ""
    return f"no {what} ({why_missing().get(flavour, 'not installed')}{jetpack})"
