"""Commands that install what the doctor finds missing, and packages that need a newer driver than this machine's."""

import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from export.tensorrt.driver import Device, DriverStatus, supporting, supports, supports_advised, version_numbers
from pipeline.terminal.command_line import module_command, pipeline_command, unpack_command

JETPACK = Path("/etc/nv_tegra_release")  # on every Jetson

# Packages for CUDA 13, from which version on: TensorRT 11 dropped CUDA 12. Those whose name or version does not show
# their CUDA are left out.
_CUDA_13_SINCE: Mapping[str, tuple[int, ...]] = {
    **dict.fromkeys(("tensorrt-cu13", "tensorrt-cu13-libs", "tensorrt-rtx-cu13-libs"), ()),
    "tensorrt": (11,),
    "onnxruntime-gpu": (1, 31),
}
_OF_JETPACK = "sudo apt install python3-libnvinfer        (JetPack's TensorRT; this Python must see system packages)"
_TENSORRT = ("tensorrt ", "tensorrt-cu13")
_OF_CUDA_13 = "tensorrt tensorrt-cu13 tensorrt-cu13-libs tensorrt-cu13-bindings"


def packages_newer_than_driver(driver: DriverStatus, installed: Callable[[str], str | None]) -> dict[str, int]:
    """Return the packages for a newer CUDA than the driver runs.

    Args:
        driver: the driver of this machine.
        installed: returns the version of a package, None where it is not installed.

    Returns:
        dict[str, int]: package with its version, and the major version of CUDA that it needs; empty where there is no
        driver, or its CUDA version is unknown.
    """
    supported = version_numbers(driver.cuda_version or "")
    if not driver or not supported:
        return {}
    needed: dict[str, int] = {}
    if numbers := version_numbers(bindings := installed("cuda-bindings") or ""):
        needed[f"cuda-bindings {bindings}"] = numbers[0]
    for name, since in _CUDA_13_SINCE.items():
        version = installed(name)
        if version is not None and version_numbers(version) >= since:
            needed[f"{name} {version}"] = 13
    return {package: cuda for package, cuda in needed.items() if cuda > supported[0]}


def driver_lines(driver: DriverStatus, newer: Mapping[str, int]) -> list[str]:
    """Say what to do about packages that are too new for the driver; nothing for a GPU that no TensorRT supports.

    Args:
        driver: the driver of this machine.
        newer: those packages, from `newer_than_driver`.
    """
    if not newer or not supporting(driver.devices[0].compute_capability):
        return []
    of_12 = version_numbers(driver.cuda_version or "")[0] == 12
    needed = any(package.startswith(("cuda-bindings ", *_TENSORRT)) for package in newer)
    rtx = any(package.startswith("tensorrt-rtx-") for package in newer)  # requirements.txt has it for CUDA 13 only
    older = [_for_cuda_12(newer)] if of_12 and needed and not rtx else []
    if JETPACK.exists():  # the driver comes with the system
        return older
    return [
        f"install a newer NVIDIA driver, one for CUDA {max(newer.values())}        (nvidia-smi shows which CUDA)",
        *(f"or, to run engines with this one: {line}" for line in older),
    ]


def _for_cuda_12(newer: Mapping[str, int]) -> str:
    install = module_command("pip", "install", "cuda-bindings==12.9.*")
    if not any(package.startswith(_TENSORRT) for package in newer):
        return install
    return f"{module_command('pip')} uninstall -y {_OF_CUDA_13} && {install} 'tensorrt-cu12>=10.12,<11'"


def tensorrt_lines(driver: DriverStatus, for_a_bundle: bool) -> list[str]:
    """Say how to get a TensorRT that builds engines: on this machine, or on one with a GPU.

    Args:
        driver: the driver of this machine.
        for_a_bundle: whether this Python can only run bundles.
    """
    if for_a_bundle:
        return _tensorrt_for_a_bundle(driver.devices[:1])
    if driver:
        return [_tensorrt_for(driver.devices[0])]
    return [
        "build on Linux x86-64, where requirements.txt installs TensorRT-RTX, or on a GPU machine:",
        f"  {pipeline_command('bundle', '-c', 'RECIPE')}   here, then on that machine:",
        f"  {unpack_command('RECIPE.bundle.tar')}",
    ]


def _tensorrt_for_a_bundle(gpus: Sequence[Device]) -> list[str]:
    if JETPACK.exists():
        return [_OF_JETPACK, "  it does if created with: python3.10 -m venv --system-site-packages .venv"]
    if gpus and not supporting(gpus[0].compute_capability):
        return [_tensorrt_for(gpus[0])]
    pip = module_command("pip", "install")
    if gpus and supports("tensorrt", "8.6.0", gpus[0].compute_capability) is False:
        return [f"{pip} 'tensorrt>=10.12,<12'        (for {gpus[0].name})"]
    needs = "" if gpus else "; it needs an NVIDIA GPU and its driver"
    return [f"{pip} tensorrt==8.6.0 'nvidia-cudnn-cu12<9'        (TensorRT 8.6, on x86-64{needs})"]


def _tensorrt_for(gpu: Device) -> str:
    """Say how to install the TensorRT that a GPU needs."""
    if JETPACK.exists():
        return _OF_JETPACK
    versions = supporting(gpu.compute_capability)
    if not versions:
        return f"no known TensorRT supports {gpu.name}: ONNX Runtime runs the ONNX files"
    if not supports_advised(gpu.compute_capability):
        return f"install {versions}: later ones do not support {gpu.name}"
    return "make install-gpu        (installs TensorRT for this GPU)"


def what_few_need(installed: Callable[[str], str | None]) -> dict[str, str]:
    """Return what serving and clusters lack here, with the command that installs it; "" where they lack nothing.

    Args:
        installed: returns the version of a package, None where it is not installed.
    """

    def lacks(file: str, *names: str) -> str:
        return "" if all(map(installed, names)) else f"{module_command('pip')} install -r {file}"

    of_clusters = "requirements-distributed.txt"
    java = "" if _has_java() else "needs Java 17 or later: none in JAVA_HOME or on the PATH"
    return {
        "serve": lacks("requirements-serve.txt", "fastapi", "uvicorn", "httptools", "prometheus-client"),
        "Ray": lacks(of_clusters, "ray"),
        "Spark": lacks(of_clusters, "pyspark", "pandas") or java,
    }


def _has_java() -> bool:
    home = os.environ.get("JAVA_HOME")
    return (Path(home) / "bin" / "java").exists() if home else shutil.which("java") is not None
