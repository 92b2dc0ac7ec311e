import getpass
import json
import os
import platform
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks import telemetry
from benchmarks.telemetry import gpu_snapshot, machine
from export.driver import Device, DriverStatus


class NVMLError(Exception):
    pass


def nvml(gpus: int = 1) -> types.ModuleType:
    made = types.ModuleType("pynvml")
    made.running = 0  # type: ignore[attr-defined]

    def start() -> None:
        made.running += 1  # type: ignore[attr-defined]

    def stop() -> None:
        made.running -= 1  # type: ignore[attr-defined]

    def refused(handle: int) -> Any:
        raise NVMLError("Not Supported")

    vars(made).update(
        NVML_CLOCK_SM=1,
        NVML_CLOCK_MEM=2,
        NVML_TEMPERATURE_GPU=0,
        nvmlInit=start,
        nvmlShutdown=stop,
        nvmlDeviceGetCount=lambda: gpus,
        nvmlDeviceGetHandleByIndex=lambda index: index,
        nvmlDeviceGetClockInfo=lambda handle, which: {1: 1980, 2: 3201}[which],
        nvmlDeviceGetTemperature=lambda handle, which: 41,
        nvmlDeviceGetPowerUsage=lambda handle: 123456,
        nvmlDeviceGetUtilizationRates=lambda handle: types.SimpleNamespace(gpu=17),
        nvmlDeviceGetMemoryInfo=lambda handle: types.SimpleNamespace(used=1 << 30),
        nvmlDeviceGetCurrentClocksThrottleReasons=refused,
        nvmlDeviceGetEnforcedPowerLimit=lambda handle: 700000 + handle,
        nvmlDeviceGetMaxPcieLinkGeneration=lambda handle: 5,
        nvmlDeviceGetMaxPcieLinkWidth=lambda handle: 16,
    )
    return made


def use(monkeypatch: pytest.MonkeyPatch, pynvml: types.ModuleType | None, devices: int) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", pynvml)
    listed = tuple(Device(f"GPU {index}", "9.0", 1 << 37) for index in range(devices))
    status = DriverStatus(bool(devices), "", "580.95.05", "13.0", listed)
    monkeypatch.setattr(telemetry, "driver_status", lambda: status)


def test_the_machine_is_described_and_nobody_is_named() -> None:
    found = machine()
    text = json.dumps(found)
    assert found["cpu"]["model"]
    assert found["cpu"]["cores"] >= found["cpu"]["usable_cores"] >= 1
    assert found["python"] == platform.python_version()
    assert found["packages"]["numpy"] == np.__version__
    assert platform.system() in found["os"]
    for private in (platform.node(), str(Path.home()), os.getcwd()):
        assert len(private) < 3 or private not in text
    user = getpass.getuser()
    assert user == "root" or user not in text.split('"')


def test_gpus_with_nvml(monkeypatch: pytest.MonkeyPatch) -> None:
    pynvml = nvml(2)
    use(monkeypatch, pynvml, 2)
    found = machine()
    assert (found["driver_version"], found["cuda_version"]) == ("580.95.05", "13.0")
    assert found["gpus"][1] == {
        "name": "GPU 1",
        "compute_capability": "9.0",
        "memory_bytes": 1 << 37,
        "power_limit_w": 700.001,
        "pcie_generation": 5,
        "pcie_width": 16,
    }
    assert pynvml.running == 0


def test_hidden_gpus_are_not_mixed_up(monkeypatch: pytest.MonkeyPatch) -> None:
    use(monkeypatch, nvml(4), 1)  # CUDA_VISIBLE_DEVICES hides three
    assert [set(gpu) for gpu in machine()["gpus"]] == [{"name", "compute_capability", "memory_bytes"}]


def test_a_snapshot_says_none_where_the_gpu_says_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    pynvml = nvml()
    use(monkeypatch, pynvml, 1)
    assert gpu_snapshot() == [
        {
            "sm_clock_mhz": 1980,
            "memory_clock_mhz": 3201,
            "temperature_c": 41,
            "power_w": 123.456,
            "gpu_load_percent": 17,
            "memory_used_bytes": 1 << 30,
            "throttle_reasons": None,
        }
    ]
    assert pynvml.running == 0


def test_without_the_package_or_the_driver_there_is_no_snapshot(monkeypatch: pytest.MonkeyPatch) -> None:
    use(monkeypatch, None, 0)
    assert gpu_snapshot() == []
    assert machine()["gpus"] == []
    broken = nvml()

    def refuse() -> None:
        raise NVMLError("Driver Not Loaded")

    broken.nvmlInit = refuse  # type: ignore[attr-defined]
    use(monkeypatch, broken, 0)
    assert gpu_snapshot() == []
