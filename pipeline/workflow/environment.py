"""Facts about this machine that decide a stage's result: which TensorRT, which GPU, which runtime.

Facts about this machine that decide a stage's result: which TensorRT, which GPU.

Facts about this machine that decide what runs a model; `environment` has those that decide what is built.
"""

from collections.abc import Sequence

from export.tensorrt.driver import AMPERE, Device, as_numbers, driver_status, no_support, supports_advised
from export.tensorrt.library import FLAVOURS, INSTALL, TensorRT, find_tensorrt, why_missing
from pipeline.recipe.schema import Recipe
from pipeline.runners.onnxruntime import BACKENDS, is_installed, why_not


def choose_tensorrt(flavour: str) -> tuple[TensorRT | None, str]:
    """The TensorRT to build with here, or None and why.

    ``auto`` takes the full TensorRT where it is installed and supports the GPU that is there, else TensorRT-RTX.
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
        elif not trt.builds_without_gpu and trt.supports(driver.devices[0].compute_capability) is False:
            reasons.append(f"{name} {trt.version}: {_no_support(name, driver.devices[0])}")
        else:
            return trt, ""
    return None, "; ".join(reasons)


def why_not_here(trt: TensorRT, targets: Sequence[str] = ()) -> str:
    """Say that engines of a TensorRT run on no GPU of this machine, and why; "" where they may run on one.

    Args:
        trt: the library.
        targets: GPUs to build for. Defaults to none: to those that TensorRT-RTX takes then, Turing (7.5) is none.
    """
    devices = driver_status().devices
    what = f"what {trt.flavour} {trt.version} builds here does not run on this machine."
    if refuses_all(trt, devices):
        return f"{what} {_no_support(trt.flavour, devices[0])}"
    if trt.targets and devices and not targets and all(as_numbers(one.compute_capability) < AMPERE for one in devices):
        return (
            f"{what} Its GPU has to be named as a target: --set 'build.targets=[\"{devices[0].compute_capability}\"]'"
        )
    return ""


def refuses_all(trt: TensorRT, devices: Sequence[Device]) -> bool:
    """Whether a TensorRT supports none of the GPUs, of which there is one or more."""
    return bool(devices) and all(trt.supports(one.compute_capability) is False for one in devices)


def _no_support(flavour: str, device: Device) -> str:
    """Say what a TensorRT does not support, and what to install where that is known."""
    said = f"{no_support(flavour, device.compute_capability)} ({device.name}, {device.compute_capability})"
    return f"{said}: {INSTALL['tensorrt']}" if supports_advised(device.compute_capability) else said


def machine_environment(flavour: str) -> dict[str, object]:
    """The TensorRT and the GPU of this machine, which decide what engines are built."""
    trt, _ = choose_tensorrt(flavour)
    return {"tensorrt": f"{trt.flavour} {trt.version}" if trt else None, "gpu": describe_gpu()}


def installed_tensorrts() -> dict[str, str]:
    """Version of each TensorRT that is installed, by its flavour: whichever built an engine is to run it."""
    return {flavour: trt.version for flavour in FLAVOURS if (trt := find_tensorrt(flavour)) is not None}


def describe_gpu() -> str | None:
    """Name and compute capability of the first GPU, None without one."""
    devices = driver_status().devices
    return f"{devices[0].name} (compute capability {devices[0].compute_capability})" if devices else None


def runtime_environment(settings: Recipe) -> dict[str, object]:
    """The GPU, each TensorRT, ONNX Runtime and its CUDA provider, and the permission to run what engines bring.

    A permission is no setting that gives other numbers, but an engine that was refused for want of it has none at all.

    Args:
        settings: its part ``runtime``.
    """
    there = {
        BACKENDS["cpu"]: "installed" if is_installed() else "",
        BACKENDS["cuda"]: "" if why_not("cuda") else "active",
        "runtime.host_code": "permitted" if settings.runtime.host_code else "",
    }
    facts: dict[str, object] = {"gpu": describe_gpu(), "tensorrt": None, **installed_tensorrts()}
    return facts | {name: what for name, what in there.items() if what}
