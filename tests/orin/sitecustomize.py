"""Makes any Python with this folder on its path the Python of a Jetson Orin with JetPack 6, as far as ours can tell.

There is nothing but the standard library, what `requirements-jetson.txt` names, and the TensorRT and CUDA beside this
file; a driver lists one GPU of compute capability 8.7, and there is no NVML. Only Linux's /sys and /proc stay those of
the machine it runs on. ``ORIN_WITHOUT`` names a package that is not there either. ``ORIN_LOADED`` names a folder,
where each process leaves the names of the modules it loaded.
"""

import atexit
import ctypes
import os
import sys
from collections.abc import Iterator
from typing import Any

OURS = ("export", "pipeline", "benchmarks", "tests")
# What the packages are imported as, and what they are called.
IMPORTED = {"numpy", "PIL", "yaml", "filelock", "packaging", "tqdm", "cuda", "tensorrt", "simplejpeg", "pyarrow"}
IMPORTED -= {os.environ.get("ORIN_WITHOUT")}
INSTALLED = ("numpy", "pillow", "pyyaml", "filelock", "packaging", "tqdm", "simplejpeg", "pyarrow")


class Installed:
    """A finder that finds no other package, as if it were not installed: it is not refused, it is not there."""

    def __init__(self, finder: Any) -> None:
        self.finder = finder

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
        top = name.partition(".")[0]
        known = top in sys.stdlib_module_names or top in IMPORTED or top in OURS
        return self.finder.find_spec(name, path, target) if known else None

    def find_distributions(self, *given: Any) -> Iterator[Any]:
        if hasattr(self.finder, "find_distributions"):
            for one in self.finder.find_distributions(*given):
                if one.metadata["Name"].lower() in INSTALLED:
                    yield one


def load_library(name: Any, *given: Any, **more: Any) -> Any:
    if name == "libcuda.so.1":
        return orin_driver()
    if name == "libnvidia-ml.so.1":
        raise OSError("libnvidia-ml.so.1: cannot open shared object file: No such file or directory")
    return real_library(name, *given, **more)


def orin_driver() -> Any:
    from tests.fakes.gpu import FakeDriver

    class Orin(FakeDriver):
        def cuDriverGetVersion(self, out: Any) -> int:
            out._obj.value = 12060
            return 0

        def cuDeviceGetName(self, out: Any, size: int, device: Any) -> int:
            out.value = b"Orin"
            return 0

        def cuDeviceTotalMem_v2(self, out: Any, device: Any) -> int:
            out._obj.value = 30 << 30
            return 0

        def cuDeviceGetAttribute(self, out: Any, attribute: int, device: Any) -> int:
            out._obj.value = {75: 8, 76: 7}[attribute]
            return 0

    return Orin()


def tell_loaded() -> None:
    with open(os.path.join(os.environ["ORIN_LOADED"], str(os.getpid())), "w", encoding="utf-8") as file:
        file.write("\n".join(sys.modules))


atexit.register(tell_loaded)
real_library = ctypes.CDLL
ctypes.CDLL = load_library  # type: ignore[misc, assignment]
sys.meta_path[:] = [Installed(finder) for finder in sys.meta_path]
