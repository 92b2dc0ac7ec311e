"""What the doctor says of machines of every kind: each line, the JSON, the exit status and the advice."""

from __future__ import annotations

import json
import re
import sys
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from export.tensorrt.driver import Device, DriverStatus, supports
from pipeline.cli import doctor, remedies
from pipeline.cli.commands import main
from pipeline.terminal import command_line

COMMON = "keras==3.0\ntf2onnx==1.0  # a comment\nonnx==1.0\nmatplotlib==3.0\njinja2==3.0\n\n# nothing\n"
FILES = {
    "requirements-common.txt": COMMON,
    "requirements.txt": "-r requirements-common.txt\ntensorflow-cpu==2.0 ; python_version >= '3'\nonnxruntime==1.5\n"
    "tensorflow==2.0 ; python_version < '3'\ncuda-bindings==13.0\n",
    "requirements-gpu.txt": "-r requirements-common.txt\ntensorflow==2.0\nonnxruntime-gpu==1.5\n"
    "tensorrt>=10.12,<12\ncuda-bindings>=12.9,<14\n",
    "requirements-legacy.txt": "tf_keras==2.0\n",
    "requirements-jetson.txt": "numpy==2.2\ncuda-bindings==12.9  # for CUDA 12\n",
}
CPU = {
    **{"keras": "3.0", "tf2onnx": "1.0", "onnx": "1.0", "matplotlib": "3.0", "jinja2": "3.0", "tensorflow-cpu": "2.0"},
    **{"onnxruntime": "1.5", "cuda-bindings": "13.0", "tf_keras": "2.0"},
}
GPU = {name: version for name, version in CPU.items() if name not in ("tensorflow-cpu", "onnxruntime")} | {
    **{"tensorflow": "2.0", "onnxruntime-gpu": "1.5", "tensorrt": "10.13"}
}
NO_DRIVER = DriverStatus(False, "no NVIDIA driver (its library libcuda is not on this machine)")
TWO_GPUS = DriverStatus(
    True, "", "580.95", "13.0", (Device("Big GPU", "9.0", 141 << 30), Device("Small GPU", "8.9", 24 << 30))
)


HOPPER, ORIN, VOLTA = (
    DriverStatus(True, "", "580.95", "13.0", (Device(f"A {capability}", capability, 8 << 30),))
    for capability in ("9.0", "8.7", "7.0")
)


class _TensorRT:
    def __init__(self, version: str, alone: bool) -> None:
        self.version, self.builds_without_gpu = version, alone

    def supports(self, compute_capability: str) -> bool | None:
        return supports("rtx" if self.builds_without_gpu else "tensorrt", self.version, compute_capability)


RTX, FULL = _TensorRT("1.7.1", True), _TensorRT("10.13.0", False)


@dataclass
class Said:
    """What the doctor said."""

    lines: list[str]
    result: dict[str, Any]
    status: int

    def line(self, name: str) -> str:
        """The one marked line about a thing, without spaces that align."""
        (found,) = [line for line in self.lines if re.match(rf"  \[..\] {re.escape(name)}( |$)", line)]
        return " ".join(found.split())

    @property
    def remedies(self) -> list[str]:
        return self.lines[self.lines.index("to fix") + 1 :] if "to fix" in self.lines else []


@dataclass
class Machine:
    """A machine that the doctor looks at."""

    packages: dict[str, str] = field(default_factory=lambda: dict(CPU))
    driver: DriverStatus = NO_DRIVER
    tensorrt: dict[str, _TensorRT] = field(default_factory=lambda: {"rtx": RTX})
    python: tuple[int, int] = (3, 12)
    jetpack: bool = False
    no_cuda: str = "this ONNX Runtime has no CUDA"


@pytest.fixture
def ask(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """Ask the doctor about a machine."""
    for name, text in FILES.items():
        (tmp_path / name).write_text(text)

    def say(machine: Machine) -> Said:
        monkeypatch.setattr(doctor, "ROOT", tmp_path)
        monkeypatch.setattr(doctor, "version_of", machine.packages.get)
        monkeypatch.setattr(doctor, "driver_status", lambda: machine.driver)
        monkeypatch.setattr(doctor, "find_tensorrt", machine.tensorrt.get)
        monkeypatch.setattr(doctor, "why_missing", lambda: {"tensorrt": "it needs a GPU", "rtx": "no wheel"})
        monkeypatch.setattr(remedies, "JETPACK", tmp_path if machine.jetpack else tmp_path / "none")
        monkeypatch.setattr(doctor, "why_not", {"cuda": machine.no_cuda}.__getitem__)
        python = SimpleNamespace(version_info=machine.python, executable="/py/python")
        monkeypatch.setattr(doctor, "sys", python)
        monkeypatch.setattr(command_line, "sys", python)
        status = main(["doctor", "--json"])
        *lines, last = capsys.readouterr().out.splitlines()
        return Said(lines, json.loads(last), status)

    return say


PIP = "/py/python -m pip"


def install(requirements: str) -> str:
    return f"  {PIP} install -r {requirements} && {PIP} install --no-deps -r requirements-legacy.txt"


def test_all_is_fine(ask) -> None:
    said = ask(Machine())
    assert (said.status, said.result["exit"], said.result["status"]) == (0, 0, "done")
    assert said.remedies == said.result["remedies"] == []
    assert "packages against requirements.txt" in said.lines
    assert said.line("keras") == "[ok] keras 3.0 pinned ==3.0"
    assert said.line("tensorflow-cpu") == "[ok] tensorflow-cpu 2.0 pinned ==2.0"
    assert said.line("tf_keras") == "[ok] tf_keras 2.0 pinned ==2.0"
    assert set(said.result["packages"]) == set(CPU), "what another platform needs is not asked for"
    assert f"  [--] {NO_DRIVER.reason}" in said.lines
    assert said.line("tensorrt") == "[--] tensorrt it needs a GPU"
    assert said.line("rtx") == "[ok] rtx 1.7.1"
    assert [said.line(name) for name in said.result["stages"]] == [
        "[ok] train on the CPU",
        "[ok] export",
        "[ok] quantize",
        "[ok] build with rtx",
        "[ok] verify Keras, ONNX files; engines need a GPU",
        "[ok] benchmark Keras, ONNX Runtime; engines need a GPU",
        "[ok] infer with ONNX Runtime",
        "[ok] report",
    ]
    assert said.result["driver"] == {
        **{
            "available": False,
            "reason": NO_DRIVER.reason,
            "version": None,
            "cuda": None,
            "too_old_for": [],
            "devices": [],
        }
    }
    assert said.result["tensorrt"]["rtx"] == {
        **{"version": "1.7.1", "why": "", "builds_without_gpu": True, "unproven": "", "unsupported": []},
        **{"builds": True, "runs": False},
    }
    assert said.result["tensorrt"]["tensorrt"] == {
        **{"version": None, "why": "it needs a GPU", "builds_without_gpu": False, "unproven": "", "unsupported": []},
        **{"builds": False, "runs": False},
    }
    assert said.result["conflict"] is False


@pytest.mark.parametrize("java", [True, False])
def test_what_few_need_is_said_and_is_nothing_to_fix(ask, java: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("JAVA_HOME", raising=False)
    monkeypatch.setattr(remedies.shutil, "which", lambda name: "/bin/java" if java and name == "java" else None)
    said = ask(Machine())
    assert said.line("serve") == f"[--] serve {PIP} install -r requirements-serve.txt"
    assert said.line("Ray") == f"[--] Ray {PIP} install -r requirements-distributed.txt"
    assert said.line("Spark") == f"[--] Spark {PIP} install -r requirements-distributed.txt"
    assert said.status == 0
    assert said.remedies == []
    server = {"fastapi": "1", "uvicorn": "1", "httptools": "1", "prometheus-client": "1"}
    said = ask(Machine(CPU | server | {"ray": "2", "pyspark": "4", "pandas": "3"}))
    assert said.line("serve") == "[ok] serve"
    assert said.line("Ray") == "[ok] Ray"
    lacks = "[--] Spark needs Java 17 or later: none in JAVA_HOME or on the PATH"
    assert said.line("Spark") == ("[ok] Spark" if java else lacks)


@pytest.mark.parametrize(
    ("package", "stages"),
    [
        ("tensorflow-cpu", {"train": "needs tensorflow", "export": "needs tensorflow"}),
        ("keras", {"train": "needs keras", "export": "needs keras"}),
        ("tf2onnx", {"export": "needs tf2onnx"}),
        ("onnx", dict.fromkeys(("quantize", "verify", "benchmark", "infer"), "needs onnx")),
        ("onnxruntime", dict.fromkeys(("quantize", "verify", "benchmark", "infer"), "needs onnxruntime")),
        ("matplotlib", {"report": "needs matplotlib"}),
        ("jinja2", {"report": "needs jinja2"}),
        ("tf_keras", {}),
    ],
)
def test_a_package_is_missing(ask, package: str, stages: dict[str, str]) -> None:
    machine = Machine()
    version = machine.packages.pop(package)
    said = ask(machine)
    assert (said.status, said.result["exit"]) == (2, 2)
    assert said.line(package) == f"[!!] {package} missing pinned =={version}"
    assert said.result["packages"][package] == {"here": None, "pinned": f"=={version}", "state": "!!"}
    bad = {name: entry["text"] for name, entry in said.result["stages"].items() if entry["state"] == "!!"}
    assert bad == stages
    assert all(said.line(name) == f"[!!] {name} {text}" for name, text in stages.items())
    assert said.remedies == [install("requirements.txt")]


def test_everything_is_missing(ask) -> None:
    said = ask(Machine({}, tensorrt={}))
    assert said.status == 2
    assert said.result["stages"]["export"]["text"] == "needs tensorflow and keras and tf2onnx"
    assert said.line("rtx") == "[--] rtx no wheel"
    assert said.line("build") == "[--] build no engine can be built here"
    assert said.remedies[0] == install("requirements.txt")
    assert said.remedies[2:] == [
        "    /py/python -m pipeline bundle -c RECIPE   here, then on that machine:",
        "    make install-gpu && .venv-gpu/bin/python -m pipeline unpack RECIPE.bundle.tar",
    ]


def test_another_version_is_said_and_mended_but_no_failure(ask) -> None:
    said = ask(Machine(CPU | {"onnx": "1.1"}))
    assert said.line("onnx") == "[--] onnx 1.1 pinned ==1.0"
    assert said.result["packages"]["onnx"]["state"] == "--"
    assert said.status == 0
    assert said.remedies == [install("requirements.txt")]


def test_two_onnxruntimes_break_each_other(ask) -> None:
    said = ask(Machine(GPU | {"onnxruntime": "1.5"}, TWO_GPUS, {"tensorrt": FULL}))
    assert (said.status, said.result["conflict"]) == (2, True)
    assert "  [!!] onnxruntime and onnxruntime-gpu are both installed and break each other" in said.lines
    assert said.remedies == [
        f"  {PIP} uninstall -y onnxruntime onnxruntime-gpu, and then",
        install("requirements-gpu.txt"),
    ]


def test_a_machine_with_gpus(ask) -> None:
    said = ask(Machine(GPU, TWO_GPUS, {"tensorrt": FULL}))
    assert (said.status, said.remedies) == (0, [])
    assert "packages against requirements-gpu.txt" in said.lines
    (found,) = [line for line in said.lines if line.startswith("  [ok] tensorrt   10.13.0")]
    assert found.endswith("10.13.0, unproven: names checked against the bindings; never built here")
    assert "  [ok] driver 580.95, CUDA 13.0" in said.lines
    assert "  [ok] Big GPU, compute capability 9.0, 144384 MiB" in said.lines
    assert "  [ok] Small GPU, compute capability 8.9, 24576 MiB" in said.lines
    texts = {name: entry["text"] for name, entry in said.result["stages"].items()}
    assert texts["train"] == "on the GPU, if TensorFlow finds the CUDA libraries"
    assert texts["build"] == "with tensorrt"
    assert texts["verify"] == "Keras, ONNX files, engines"
    assert texts["benchmark"] == "Keras, ONNX Runtime, engines"
    assert texts["infer"] == "with TensorRT"
    assert said.result["driver"] == {
        "available": True,
        "reason": "",
        "version": "580.95",
        "cuda": "13.0",
        "too_old_for": [],
        "devices": [
            {"name": "Big GPU", "compute_capability": "9.0", "memory": 141 << 30},
            {"name": "Small GPU", "compute_capability": "8.9", "memory": 24 << 30},
        ],
    }


def test_onnxruntime_on_cuda_is_asked_where_there_is_a_gpu(ask) -> None:
    said = ask(Machine(driver=TWO_GPUS))
    assert said.line("ONNX Runtime on CUDA:") == "[--] ONNX Runtime on CUDA: this ONNX Runtime has no CUDA"
    assert said.result["onnxruntime_cuda"] == {"active": False, "why_not": "this ONNX Runtime has no CUDA"}
    said = ask(Machine(driver=TWO_GPUS, no_cuda=""))
    assert said.line("ONNX Runtime on CUDA") == "[ok] ONNX Runtime on CUDA"
    assert said.result["onnxruntime_cuda"] == {"active": True, "why_not": ""}
    said = ask(Machine(no_cuda=""))
    assert said.result["onnxruntime_cuda"] == {"active": False, "why_not": NO_DRIVER.reason}
    assert not any("CUDA" in line for line in said.lines if "ONNX Runtime on" in line)


def test_a_gpu_without_tensorrt(ask) -> None:
    said = ask(Machine(driver=TWO_GPUS, tensorrt={}))
    assert said.line("build") == "[--] build no engine can be built here"
    assert said.line("verify") == "[ok] verify Keras, ONNX files; engines need TensorRT"
    assert said.line("train") == "[ok] train on the CPU", "tensorflow-cpu stays on the CPU"
    assert said.remedies == ["  make install-gpu        (installs TensorRT for this GPU)"]
    assert said.status == 0


def test_a_gpu_and_tensorrt_without_the_cuda_bindings(ask) -> None:
    packages = {name: version for name, version in GPU.items() if name != "cuda-bindings"}
    said = ask(Machine(packages, TWO_GPUS, {"tensorrt": FULL}))
    assert said.status == 2
    assert said.line("verify") == "[ok] verify Keras, ONNX files; engines need cuda-bindings"
    assert said.line("infer") == "[ok] infer with ONNX Runtime"
    assert said.remedies == [install("requirements-gpu.txt")]
    said = ask(Machine(packages | {"pycuda": "2026.1"}, TWO_GPUS, {"tensorrt": FULL}))
    assert said.line("verify") == "[ok] verify Keras, ONNX files, engines"


def test_rtx_on_a_hopper_builds_for_others_alone(ask) -> None:
    said = ask(Machine(CPU, HOPPER, {"rtx": RTX}))
    instead = "A 9.0, compute capability 9.0: TensorRT-RTX does not support this GPU; build with TensorRT"
    assert "  [ok] rtx        1.7.1" in said.lines
    assert f"  [--] rtx        {instead}" in said.lines
    assert said.line("build") == "[--] build with rtx, which does not support this GPU: for others"
    assert said.line("verify") == "[ok] verify Keras, ONNX files; engines need a TensorRT that supports this GPU"
    assert said.line("infer") == "[ok] infer with ONNX Runtime"
    assert said.remedies == ["  make install-gpu        (installs TensorRT for this GPU)"]
    assert said.result["tensorrt"]["rtx"]["unsupported"] == [instead]
    assert said.status == 0


def test_the_gpu_that_is_supported_counts(ask) -> None:
    """TensorRT-RTX runs on the second one, with runtime.device 1."""
    said = ask(Machine(CPU, TWO_GPUS, {"rtx": RTX}))
    assert any(line.startswith("  [--] rtx        Big GPU") for line in said.lines)
    assert not any("Small GPU, compute capability 8.9: " in line for line in said.lines)
    assert said.line("build") == "[ok] build with rtx"
    assert said.line("infer") == "[ok] infer with TensorRT"


def test_both_flavours_on_a_hopper(ask) -> None:
    said = ask(Machine(GPU, HOPPER, {"tensorrt": FULL, "rtx": RTX}))
    assert said.line("build") == "[ok] build with tensorrt"
    assert said.line("verify") == "[ok] verify Keras, ONNX files, engines"
    assert said.remedies == []


def test_jetpack_brings_its_own_tensorrt(ask) -> None:
    """10.3, older than what pip is told to install."""
    said = ask(Machine(GPU | {"tensorrt": "10.3.0"}, ORIN, {"tensorrt": _TensorRT("10.3.0", False)}, jetpack=True))
    assert said.result["packages"]["tensorrt"]["state"] == "ok"
    (found,) = [line for line in said.lines if line.startswith("  [ok] tensorrt   10.3.0")]
    assert "never built here; its strong typing is complete from 10.12 only" in found
    assert said.result["tensorrt"]["tensorrt"]["unproven"] in found
    assert said.line("build") == "[ok] build with tensorrt"
    assert said.remedies == []
    said = ask(Machine(GPU, ORIN, {}, jetpack=True))
    (advice,) = said.remedies
    assert "apt install python3-libnvinfer" in advice


@pytest.mark.parametrize(("version", "state"), [("8.6.1", "ok"), ("10.0.1", "ok"), ("8.5.3", "--"), ("12.0", "--")])
def test_versions_that_were_looked_at_need_no_mending(ask, version: str, state: str) -> None:
    said = ask(Machine(GPU | {"tensorrt": version}, HOPPER, {"tensorrt": _TensorRT(version, False)}))
    assert said.result["packages"]["tensorrt"]["state"] == state
    assert bool(said.remedies) == (state == "--")


def test_a_gpu_that_is_too_old_for_what_is_advised(ask) -> None:
    said = ask(Machine(GPU, VOLTA, {"tensorrt": FULL}))
    assert said.line("build") == "[--] build no engine can be built here"
    assert any(line.endswith("TensorRT does not support this GPU; build with TensorRT 10.0 to 10.4")
               for line in said.lines)  # fmt: skip
    assert said.remedies == ["  install TensorRT 10.0 to 10.4: later ones do not support A 7.0"]
    older = DriverStatus(True, "", "390", "9.0", (Device("A 3.5", "3.5", 8 << 30),))
    said = ask(Machine(GPU, older, {"tensorrt": FULL}))
    assert said.remedies == ["  no known TensorRT supports A 3.5: ONNX Runtime runs the ONNX files"]


def test_tensorrt_that_needs_a_gpu_builds_nothing_without(ask) -> None:
    said = ask(Machine(tensorrt={"tensorrt": FULL}))
    assert said.line("build") == "[--] build no engine can be built here"
    assert said.remedies[0].startswith("  build on Linux x86-64")
    assert said.status == 0


def test_a_driver_that_does_not_start(ask) -> None:
    reason = "the driver does not start: CUDA_ERROR_NO_DEVICE (100). Check `nvidia-smi`"
    said = ask(Machine(driver=DriverStatus(False, reason, "580.95", "13.0")))
    assert f"  [--] {reason}" in said.lines
    assert said.result["driver"]["reason"] == reason
    assert said.result["driver"]["version"] == "580.95"


@pytest.mark.parametrize(
    ("python", "fits"), [((3, 9), False), ((3, 11), True), ((3, 13), True), ((3, 14), False), ((4, 0), False)]
)
def test_a_python_that_was_not_tried(ask, python: tuple[int, int], fits: bool) -> None:
    said = ask(Machine(python=python))
    assert ("(expected 3.11 to 3.13)" in said.result["machine"]["python"]) == (not fits)
    assert any("(expected 3.11 to 3.13)" in line for line in said.lines) == (not fits)
    expected = "  make install VENV=.venv-new PYTHON=python3.12        (any Python 3.11 to 3.13)"
    assert said.remedies == ([] if fits else [expected])
    assert said.status == 0


def test_the_machine_is_described(ask) -> None:
    said = ask(Machine())
    machine = said.result["machine"]
    assert set(machine) == {"python", "system", "cpu", "disk free"}
    assert machine["python"].startswith(".".join(map(str, sys.version_info[:3])))
    assert machine["cpu"].endswith(" cores")
    assert machine["disk free"].endswith(" GB")
    words = [line.split() for line in said.lines]
    assert all([*name.split(), *value.split()] in words for name, value in machine.items())


# --- a machine that runs bundles alone ---

JETSON = {"numpy": "2.2", "cuda-bindings": "12.9"}


def test_a_python_for_bundles_alone_is_held_against_its_own_requirements(ask) -> None:
    """JetPack 6 has Python 3.10 and a driver that tells no version."""
    orin = DriverStatus(True, "", None, "12.6", (Device("Orin", "8.7", 30 << 30),))
    jetpack = {"tensorrt": _TensorRT("10.3.0", False)}
    said = ask(Machine(packages=dict(JETSON), driver=orin, tensorrt=jetpack, python=(3, 10), jetpack=True))
    assert (said.status, said.remedies) == (0, [])
    assert "packages against requirements-jetson.txt" in said.lines
    assert set(said.result["packages"]) == set(JETSON)
    assert "  [ok] driver of an unknown version, CUDA 12.6" in said.lines
    assert said.result["machine"]["python"].endswith(
        "(for what runs a bundle; training and exporting need 3.11 to 3.13)"
    )
    assert said.line("build") == "[ok] build with tensorrt"
    for stage in ("verify", "benchmark", "infer"):
        assert said.line(stage) == f"[ok] {stage} engines"
    for stage in ("train", "export", "quantize", "report"):
        assert said.line(stage) == f"[--] {stage} not here; a bundle holds its result from another machine"


def test_what_such_a_machine_lacks(ask) -> None:
    said = ask(Machine(packages={"numpy": "2.2"}, driver=ORIN, tensorrt={}, python=(3, 10), jetpack=True))
    assert said.line("infer") == "[--] infer engines need TensorRT"
    assert said.remedies[0] == f"  {PIP} install -r requirements-jetson.txt"
    assert said.remedies[1].startswith("  sudo apt install python3-libnvinfer")
    assert said.remedies[2].endswith("python3.10 -m venv --system-site-packages .venv")


BLACKWELL = DriverStatus(True, "", "580.95", "13.0", (Device("A 12.0", "12.0", 8 << 30),))


@pytest.mark.parametrize(
    ("driver", "line"),
    [
        (HOPPER, "tensorrt==8.6.0 'nvidia-cudnn-cu12<9'        (TensorRT 8.6, on x86-64)"),
        (
            NO_DRIVER,
            "tensorrt==8.6.0 'nvidia-cudnn-cu12<9'        "
            "(TensorRT 8.6, on x86-64; it needs an NVIDIA GPU and its driver)",
        ),
        (BLACKWELL, "'tensorrt>=10.12,<12'        (for A 12.0)"),
    ],
)
def test_what_brings_tensorrt_to_a_python_for_bundles(ask, driver: DriverStatus, line: str) -> None:
    """`make install-gpu` wants a newer Python, and a bundle is not made there."""
    said = ask(Machine(packages=dict(JETSON), driver=driver, tensorrt={}, python=(3, 10)))
    assert said.remedies == [f"  {PIP} install {line}"]


# --- a driver that is older than the packages ---


def of_cuda(version: str, capability: str = "9.0") -> DriverStatus:
    return DriverStatus(True, "", "550.54", version, (Device("A GPU", capability, 8 << 30),))


NEWER = "  install a newer NVIDIA driver, one for CUDA 13        (nvidia-smi shows which CUDA)"
BINDINGS = f"{PIP} install 'cuda-bindings==12.9.*'"


def test_packages_for_a_newer_cuda_than_the_drivers(ask) -> None:
    said = ask(Machine(GPU, of_cuda("12.4"), {"tensorrt": FULL}))
    assert "  [--] cuda-bindings 13.0 is for CUDA 13, this driver for CUDA 12.4 at most" in said.lines
    assert said.result["driver"]["too_old_for"] == ["cuda-bindings 13.0"]
    assert said.remedies == [NEWER, f"  or, to run engines with this one: {BINDINGS}"]
    assert said.status == 0

    packages = GPU | {"tensorrt": "11.4.0", "tensorrt-cu13": "11.4.0", "onnxruntime-gpu": "1.31.1"}
    said = ask(Machine(packages, of_cuda("12.4"), {"tensorrt": FULL}))
    packages_too_new = ["cuda-bindings 13.0", "tensorrt-cu13 11.4.0", "tensorrt 11.4.0", "onnxruntime-gpu 1.31.1"]
    assert said.result["driver"]["too_old_for"] == packages_too_new
    assert (
        f"-m pip uninstall -y tensorrt tensorrt-cu13 tensorrt-cu13-libs tensorrt-cu13-bindings && {BINDINGS}"
        in (said.remedies[-1])
    )
    assert said.remedies[-1].endswith(" 'tensorrt-cu12>=10.12,<11'")


@pytest.mark.parametrize("cuda", ["13.0", "13.2", "14.0", None])
def test_a_driver_that_is_new_enough(ask, cuda: str | None) -> None:
    said = ask(Machine(GPU, DriverStatus(True, "", "580", cuda, HOPPER.devices), {"tensorrt": FULL}))
    assert (said.remedies, said.result["driver"]["too_old_for"]) == ([], [])


def test_packages_for_the_drivers_cuda_are_fine_and_none_is_claimed_to_be_newer(ask) -> None:
    """Up to 1.26 onnxruntime-gpu is for CUDA 12; which of TensorRT 10 is for which, its number does not tell."""
    packages = GPU | {"cuda-bindings": "12.9.1", "onnxruntime-gpu": "1.26.0", "tensorrt": "10.13"}
    assert ask(Machine(packages, of_cuda("12.8"), {"tensorrt": FULL})).result["driver"]["too_old_for"] == []


def test_a_gpu_or_a_driver_that_is_too_old_for_the_other_line(ask) -> None:
    said = ask(Machine(GPU, of_cuda("11.8"), {"tensorrt": FULL}))
    assert said.remedies == [NEWER]


def test_with_tensorrt_rtx_the_driver_alone_mends(ask) -> None:
    """What is pinned beside it is for CUDA 13, too."""
    said = ask(Machine(CPU | {"tensorrt-rtx-cu13-libs": "1.7.1.116"}, of_cuda("12.4", "8.9")))
    assert said.result["driver"]["too_old_for"] == ["cuda-bindings 13.0", "tensorrt-rtx-cu13-libs 1.7.1.116"]
    assert said.remedies == [NEWER]


def test_the_driver_of_a_jetson_comes_with_its_system(ask) -> None:
    packages = JETSON | {"cuda-bindings": "13.0"}
    jetpack = {"tensorrt": _TensorRT("10.3.0", False)}
    said = ask(Machine(packages, of_cuda("12.6", "8.7"), jetpack, python=(3, 10), jetpack=True))
    assert said.remedies[-1] == f"  {BINDINGS}"
    assert NEWER not in said.remedies


def test_tensorrt_of_one_cuda_stands_for_tensorrt(ask) -> None:
    packages = {name: version for name, version in GPU.items() if name != "tensorrt"} | {"tensorrt-cu12": "10.13"}
    said = ask(Machine(packages, TWO_GPUS, {"tensorrt": FULL}))
    assert said.result["packages"]["tensorrt"]["state"] == "ok"
    assert said.remedies == []
