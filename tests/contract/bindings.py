"""The real Python bindings of TensorRT versions, imported without their libraries.

The bindings wheels are small, but link to libraries of hundreds of megabytes. Stubs that define the C symbols which
the bindings want are enough to import them and read their names; no call would work.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from export.files import ROOT

CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "keras-resnet-to-tensorrt" / "bindings"
LARGE = "ALLOW_LARGE_DOWNLOADS"


class Unavailable(Exception):
    """These bindings cannot be read here; the message says why."""


@dataclass(frozen=True)
class Bindings:
    """Where the bindings of one version come from."""

    version: str
    requirement: str
    module: str = "tensorrt_bindings"
    newest_python: tuple[int, int] = (3, 13)
    megabytes: int = 2


ALL = (
    Bindings("8.6.0", "tensorrt==8.6.0", "tensorrt", (3, 10), 819),  # libraries and bindings in one
    Bindings("8.6.1", "tensorrt_bindings==8.6.1", newest_python=(3, 11)),
    Bindings("10.0", "tensorrt_cu12_bindings==10.0.1"),
    Bindings("10.1", "tensorrt_cu12_bindings==10.1.0"),
    Bindings("10.2", "tensorrt_cu12_bindings==10.2.0.post1"),
    Bindings("10.3", "tensorrt_cu12_bindings==10.3.0"),
    Bindings("10.4", "tensorrt_cu12_bindings==10.4.0"),
    Bindings("10.5", "tensorrt_cu12_bindings==10.5.0"),
    Bindings("10.6", "tensorrt_cu12_bindings==10.6.0.post2"),
    Bindings("10.7", "tensorrt_cu12_bindings==10.7.0.post1"),
    Bindings("10.8", "tensorrt_cu12_bindings==10.8.0.43"),
    Bindings("10.9", "tensorrt_cu12_bindings==10.9.0.34"),
    Bindings("10.10", "tensorrt_cu12_bindings==10.10.0.31"),
    Bindings("10.11", "tensorrt_cu12_bindings==10.11.0.33"),
    Bindings("10.12", "tensorrt_cu12_bindings==10.12.0.36"),
    Bindings("10.13", "tensorrt_cu12_bindings==10.13.3.9.post1"),
    Bindings("10.14", "tensorrt_cu12_bindings==10.14.1.48.post1"),
    Bindings("10.15", "tensorrt_cu12_bindings==10.15.1.29"),
    Bindings("10.16", "tensorrt_cu12_bindings==10.16.1.11"),
    Bindings("11.0", "tensorrt_cu13_bindings==11.0.0.114"),
    Bindings("11.1", "tensorrt_cu13_bindings==11.1.0.106"),
    Bindings("11.2", "tensorrt_cu13_bindings==11.2.1.2"),
    Bindings("11.3", "tensorrt_cu13_bindings==11.3.0.99"),
    Bindings("11.4", "tensorrt_cu13_bindings==11.4.0.106"),
    Bindings("rtx1.7.1", "tensorrt_rtx_cu13_bindings==1.7.1.116", "tensorrt_rtx_bindings"),
)


def read(bindings: Bindings) -> dict[str, Any]:
    """Fetch and read one version: "version", "names" and "capabilities" of `read_bindings.py`.

    Raises:
        Unavailable: no network, no compiler, no Python that the wheel is for, another platform.
    """
    if sys.platform != "linux" or os.uname().machine != "x86_64":
        raise Unavailable("the wheels are for Linux on x86-64")
    python = find_python(bindings.newest_python)
    folder = _fetch(bindings, python)
    return read_installed(bindings.module, str(python), folder)


def read_installed(module: str, python: str = sys.executable, folder: Path | None = None) -> dict[str, Any]:
    """Read a module that ``python`` can import, with the help of ``folder``, where it is given."""
    script = Path(__file__).with_name("read_bindings.py")
    environment = dict(os.environ)
    if folder is not None:
        environment["LD_LIBRARY_PATH"] = str(folder / "stubs")
    command = [python, "-I", str(script), str(ROOT), module, *([str(folder)] if folder else [])]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{module} does not import: {done.stderr[-2000:]}"
    return json.loads(done.stdout)


def find_python(newest: tuple[int, int]) -> Path:
    """Find an interpreter from 3.10 to ``newest``: this one, if it is not newer."""
    if sys.version_info[:2] <= newest:
        return Path(sys.executable)
    for minor in range(newest[1], 9, -1):
        name = f"python3.{minor}"
        installed = sorted(Path.home().glob(f".pyenv/versions/3.{minor}.*/bin/{name}"))
        for found in filter(None, (shutil.which(name), *installed)):
            if subprocess.run([found, "-c", ""], capture_output=True, check=False).returncode == 0:
                return Path(found)
    raise Unavailable(f"needs CPython 3.10 to 3.{newest[1]}, and none is on the PATH")


def _fetch(bindings: Bindings, python: Path) -> Path:
    """Give a folder with the bindings and, in stubs/, what they link to."""
    asked = subprocess.run(
        [python, "-c", "import sys; print('%d.%d' % sys.version_info[:2])"], capture_output=True, text=True, check=True
    )
    minor = asked.stdout.strip()
    target = CACHE / f"{bindings.requirement.replace('==', '-')}-py{minor}"
    if target.is_dir():
        return target
    if bindings.megabytes > 100 and not os.environ.get(LARGE):
        raise Unavailable(f"{bindings.requirement} is a download of {bindings.megabytes} MB; {LARGE}=1 allows it")
    missing = [tool for tool in ("cc", "nm", "readelf") if shutil.which(tool) is None]
    if missing:
        raise Unavailable(f"the stub libraries need {', '.join(missing)} (Debian: apt install gcc)")
    CACHE.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=CACHE) as temporary:
        folder = Path(temporary) / "content"
        with zipfile.ZipFile(_download(bindings, minor, Path(temporary))) as wheel:
            for name in wheel.namelist():
                if name.endswith(".py") or re.search(r"/tensorrt\w*\.so$", name):  # not the libraries
                    wheel.extract(name, folder)
        _make_stubs(next(folder.glob("*/tensorrt*.so")), folder / "stubs")
        os.replace(folder, target)
    return target


def _download(bindings: Bindings, minor: str, folder: Path) -> Path:
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
    command += ["--only-binary=:all:", "--python-version", minor, "--dest", str(folder), bindings.requirement]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=500)
    if done.returncode != 0:
        last = [line for line in done.stderr.splitlines() if line.startswith("ERROR")] or [done.stderr[-300:]]
        raise Unavailable(f"pip download {bindings.requirement}: {last[-1]}")
    return next(folder.glob("*.whl"))


def _make_stubs(extension: Path, folder: Path) -> None:
    """Write the libraries that an extension module links to, with all the symbols that it leaves undefined."""
    folder.mkdir()
    dynamic = subprocess.run(["readelf", "-d", extension], capture_output=True, text=True, check=True).stdout
    symbols = subprocess.run(["nm", "-D", "-u", extension], capture_output=True, text=True, check=True).stdout
    # Those of the C and C++ libraries carry a version behind an @, the interpreter's begin with Py.
    wanted = re.findall(r"^\s*U ((?!_?Py)[^@\s]+)$", symbols, re.MULTILINE)
    source = folder / "stub.c"
    source.write_text("".join(f"void *{name}(void) {{ return 0; }}\n" for name in wanted))
    for library in re.findall(r"\[(lib(?:nv|tensorrt)[^\]]+)\]", dynamic):
        subprocess.run(["cc", "-shared", "-fPIC", "-o", folder / library, source], check=True)
