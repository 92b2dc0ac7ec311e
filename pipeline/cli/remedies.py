"""The lines that mend what the doctor finds missing, and packages that want a newer driver than the one here."""

import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from export.tensorrt.driver import Device, DriverStatus, as_numbers, supporting, supports, supports_advised
from pipeline.terminal.command_line import unpack_command

JETPACK = Path("/etc/nv_tegra_release")  # on every Jetson

# The CUDA of packages whose name or number tells it: 11 dropped TensorRT for CUDA 12. Others are passed over.
_CUDA_13_SINCE: Mapping[str, tuple[int, ...]] = {
    **dict.fromkeys(("tensorrt-cu13", "tensorrt-cu13-libs", "tensorrt-rtx-cu13-libs"), ()),
    "tensorrt": (11,),
    "onnxruntime-gpu": (1, 31),
}
_OF_JETPACK = "sudo apt install python3-libnvinfer        (JetPack's TensorRT; this Python must see system packages)"
_TENSORRT = ("tensorrt ", "tensorrt-cu13")
_OF_CUDA_13 = "tensorrt tensorrt-cu13 tensorrt-cu13-libs tensorrt-cu13-bindings"


def newer_than_driver(driver: DriverStatus, installed: Callable[[str], str | None]) -> dict[str, int]:
    """Packages for a newer CUDA than the driver runs.

    Args:
        driver: what the driver says; where there is none, or it tells no CUDA, nothing is known.
        installed: gives the version of a package, None where it is not there.

    Returns:
        dict[str, int]: package with its version, and the major version of CUDA that it needs.
    """
    here = as_numbers(driver.cuda_version or "")
    if not driver or not here:
        return {}
    needed: dict[str, int] = {}
    bindings = installed("cuda-bindings")
    if bindings is not None and as_numbers(bindings):
        needed[f"cuda-bindings {bindings}"] = as_numbers(bindings)[0]
    for name, since in _CUDA_13_SINCE.items():
        version = installed(name)
        if version is not None and as_numbers(version) >= since:
            needed[f"{name} {version}"] = 13
    return {package: cuda for package, cuda in needed.items() if cuda > here[0]}


def driver_lines(driver: DriverStatus, newer: Mapping[str, int]) -> list[str]:
    """What to do about packages that are too new for the driver; nothing for a GPU that no TensorRT supports."""
    if not newer or not supporting(driver.devices[0].compute_capability):
        return []
    of_12 = as_numbers(driver.cuda_version or "")[0] == 12
    needed = any(package.startswith(("cuda-bindings ", *_TENSORRT)) for package in newer)
    rtx = any(package.startswith("tensorrt-rtx-") for package in newer)  # requirements.txt has it for CUDA 13 alone
    older = _for_cuda_12(newer) if of_12 and needed and not rtx else ""
    if JETPACK.exists():  # the driver comes with the system
        return [older] if older else []
    lines = [f"install a newer NVIDIA driver, one for CUDA {max(newer.values())}        (nvidia-smi says which CUDA)"]
    return lines + ([f"or, to run engines with this one: {older}"] if older else [])


def _for_cuda_12(newer: Mapping[str, int]) -> str:
    install = f"{python_line()} -m pip install 'cuda-bindings==12.9.*'"
    if not any(package.startswith(_TENSORRT) for package in newer):
        return install
    return f"{python_line()} -m pip uninstall -y {_OF_CUDA_13} && {install} 'tensorrt-cu12>=10.12,<11'"


def tensorrt_lines(driver: DriverStatus, for_a_bundle: bool) -> list[str]:
    """What brings a TensorRT that builds: here, or where there is a GPU.

    Args:
        driver: what the driver says.
        for_a_bundle: whether this Python runs bundles alone.
    """
    if driver and not for_a_bundle:
        return [_tensorrt_for(driver.devices[0])]
    if for_a_bundle:
        return _tensorrt_for_a_bundle(driver.devices[:1])
    return [
        "build on Linux x86-64, where requirements.txt brings TensorRT-RTX, or on a GPU machine:",
        f"  {python_line()} -m pipeline bundle -c RECIPE   here, then there:",
        f"  {unpack_command('RECIPE.bundle.tar')}",
    ]


def _tensorrt_for_a_bundle(gpus: Sequence[Device]) -> list[str]:
    if JETPACK.exists():
        return [_OF_JETPACK, "  which sees it when made so: python3.10 -m venv --system-site-packages .venv"]
    if gpus and not supporting(gpus[0].compute_capability):
        return [_tensorrt_for(gpus[0])]
    pip = f"{python_line()} -m pip install"
    if gpus and supports("tensorrt", "8.6.0", gpus[0].compute_capability) is False:
        return [f"{pip} 'tensorrt>=10.12,<12'        (for {gpus[0].name})"]
    needs = "" if gpus else "; it needs an NVIDIA GPU and its driver"
    return [f"{pip} tensorrt==8.6.0 'nvidia-cudnn-cu12<9'        (TensorRT 8.6, on x86-64{needs})"]


def _tensorrt_for(gpu: Device) -> str:
    """What brings the TensorRT that a GPU needs."""
    if JETPACK.exists():
        return _OF_JETPACK
    wanted = supporting(gpu.compute_capability)
    if not wanted:
        return f"no TensorRT that is known supports {gpu.name}: ONNX Runtime runs the ONNX files"
    if not supports_advised(gpu.compute_capability):
        return f"install {wanted}: later ones do not support {gpu.name}"
    return "make install-gpu        (brings TensorRT for this GPU)"


def python_line() -> str:
    """This interpreter, as it is typed here."""
    python = Path(sys.executable)
    return shlex.quote(str(python.relative_to(Path.cwd()) if python.is_relative_to(Path.cwd()) else python))
