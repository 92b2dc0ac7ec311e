"""Facts about this machine that decide a stage's result: which TensorRT, which GPU."""

from __future__ import annotations

from typing import Any

from export.capabilities import TensorRT, find_tensorrt, why_missing
from export.driver import driver_status


def choose_tensorrt(flavour: str) -> tuple[TensorRT | None, str]:
    """The TensorRT to build with here, or None and why.

    ``auto`` takes the full TensorRT where it is installed and a GPU is there, else TensorRT-RTX.
    """
    driver = driver_status()
    wanted = ("tensorrt", "rtx") if flavour == "auto" else (flavour,)
    reasons = []
    for name in wanted:
        trt = find_tensorrt(name)
        if trt is None:
            reasons.append(f"{name}: {why_missing().get(name, 'not installed')}")
        elif not trt.builds_without_gpu and not driver.available:
            reasons.append(f"{name} {trt.version} builds on a GPU only, and there is {driver.reason}")
        else:
            return trt, ""
    return None, "; ".join(reasons)


def machine_environment() -> dict[str, Any]:
    """The TensorRT and the GPU of this machine, which decide what an engine is good for."""
    trt, _ = choose_tensorrt("auto")
    return {"tensorrt": f"{trt.flavour} {trt.version}" if trt else None, "gpu": describe_gpu()}


def describe_gpu() -> str | None:
    """Name and compute capability of the first GPU, None without one."""
    devices = driver_status().devices
    return f"{devices[0].name} (compute capability {devices[0].compute_capability})" if devices else None
