"""Facts about this machine that decide a stage's result: its TensorRT, its GPU and its runtimes."""

from collections.abc import Sequence

from export.tensorrt.driver import AMPERE, Device, driver_status, no_support, supports_advised, version_numbers
from export.tensorrt.library import FLAVOURS, INSTALL, TensorRT, find_tensorrt, why_missing
from pipeline.recipe.schema import Recipe
from pipeline.runners.onnxruntime import BACKENDS, is_installed, why_not


def choose_tensorrt(flavour: str) -> tuple[TensorRT | None, str]:
    """Choose the TensorRT to build with on this machine; None and the reason if there is none.

    Args:
        flavour: "tensorrt", "rtx", or "auto": TensorRT if it is installed and supports the GPU, else TensorRT-RTX.
    """
    driver = driver_status()
    reasons = []
    for name in ("tensorrt", "rtx") if flavour == "auto" else (flavour,):
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


def explain_no_gpu(trt: TensorRT, targets: Sequence[str] = ()) -> str:
    """Explain why engines of a TensorRT run on no GPU of this machine; "" if they may run on one.

    Args:
        trt: The library.
        targets: GPUs to build for. Defaults to none: TensorRT-RTX then builds for Ampere and later, not for Turing.
    """
    devices = driver_status().devices
    what = f"what {trt.flavour} {trt.version} builds here does not run on this machine."
    if refuses_all(trt, devices):
        return f"{what} {_no_support(trt.flavour, devices[0])}"
    if (
        trt.targets
        and devices
        and not targets
        and all(version_numbers(gpu.compute_capability) < AMPERE for gpu in devices)
    ):
        return (
            f"{what} Its GPU has to be named as a target: --set 'build.targets=[\"{devices[0].compute_capability}\"]'"
        )
    return ""


def refuses_all(trt: TensorRT, devices: Sequence[Device]) -> bool:
    """Return whether there are GPUs and a TensorRT supports none of them."""
    return bool(devices) and all(trt.supports(gpu.compute_capability) is False for gpu in devices)


def _no_support(flavour: str, device: Device) -> str:
    """Explain which GPU a TensorRT does not support, and what to install if that is known."""
    reason = f"{no_support(flavour, device.compute_capability)} ({device.name}, {device.compute_capability})"
    return f"{reason}: {INSTALL['tensorrt']}" if supports_advised(device.compute_capability) else reason


def machine_environment(flavour: str) -> dict[str, object]:
    """Return the TensorRT and the GPU of this machine, which decide which engines are built."""
    trt, _ = choose_tensorrt(flavour)
    return {"tensorrt": f"{trt.flavour} {trt.version}" if trt else None, "gpu": describe_gpu()}


def installed_tensorrts() -> dict[str, str]:
    """Return the version of each installed TensorRT by flavour; an engine needs the flavour that built it."""
    return {flavour: trt.version for flavour in FLAVOURS if (trt := find_tensorrt(flavour)) is not None}


def describe_gpu() -> str | None:
    """Return the name and compute capability of the first GPU; None without one."""
    devices = driver_status().devices
    return f"{devices[0].name} (compute capability {devices[0].compute_capability})" if devices else None


def runtime_environment(settings: Recipe) -> dict[str, object]:
    """Return the GPU, each TensorRT, ONNX Runtime and its CUDA provider, and the permission to run engines' host code.

    The permission does not change any numbers, but an engine that is refused without it has none.

    Args:
        settings: The recipe; only ``runtime`` is read.
    """
    optional = {
        BACKENDS["cpu"]: "installed" if is_installed() else "",
        BACKENDS["cuda"]: "" if why_not("cuda") else "active",
        "runtime.host_code": "permitted" if settings.runtime.host_code else "",
    }
    facts: dict[str, object] = {"gpu": describe_gpu(), "tensorrt": None, **installed_tensorrts()}
    return facts | {name: state for name, state in optional.items() if state}
