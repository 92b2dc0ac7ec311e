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
from export.records import to_json
from export.tensorrt.driver import Device, DriverStatus
from pipeline.artifacts.machine import Gpu, GpuSnapshot


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
    text = json.dumps(to_json(found))
    assert found.cpu.model
    assert found.cpu.cores >= found.cpu.usable_cores >= 1
    assert found.python == platform.python_version()
    assert found.packages["numpy"] == np.__version__
    assert platform.system() in found.os
    for private in (platform.node(), str(Path.home()), os.getcwd()):
        assert len(private) < 3 or private not in text
    user = getpass.getuser()
    assert user == "root" or user not in text.split('"')


def test_gpus_with_nvml(monkeypatch: pytest.MonkeyPatch) -> None:
    pynvml = nvml(2)
    use(monkeypatch, pynvml, 2)
    found = machine()
    assert (found.driver_version, found.cuda_version) == ("580.95.05", "13.0")
    assert found.gpus[1] == Gpu("GPU 1", "9.0", 1 << 37, power_limit_w=700.001, pcie_generation=5, pcie_width=16)
    assert pynvml.running == 0


def test_hidden_gpus_are_not_mixed_up(monkeypatch: pytest.MonkeyPatch) -> None:
    use(monkeypatch, nvml(4), 1)  # CUDA_VISIBLE_DEVICES hides three
    assert machine().gpus == (Gpu("GPU 0", "9.0", 1 << 37),)


def test_a_snapshot_says_none_where_the_gpu_says_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    pynvml = nvml()
    use(monkeypatch, pynvml, 1)
    assert gpu_snapshot() == (GpuSnapshot(1980, 3201, 41, 123.456, 17, memory_used_bytes=1 << 30),)
    assert pynvml.running == 0


def test_without_the_package_or_the_driver_there_is_no_snapshot(monkeypatch: pytest.MonkeyPatch) -> None:
    use(monkeypatch, None, 0)
    assert gpu_snapshot() == ()
    assert machine().gpus == ()
    broken = nvml()

    def refuse() -> None:
        raise NVMLError("Driver Not Loaded")

    broken.nvmlInit = refuse  # type: ignore[attr-defined]
    use(monkeypatch, broken, 0)
    assert gpu_snapshot() == ()


# --- nvidia-smi, where nvidia-ml-py is not installed ---


def smi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    (tmp_path / "nvidia-smi").write_text(f"#!/bin/sh\n{script}\n")
    (tmp_path / "nvidia-smi").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")


def test_without_nvml_the_drivers_own_tool_is_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    use(monkeypatch, None, 2)
    asked = tmp_path / "asked"
    answer = "1980, 3201, 58, 612.34, 99, 2048\\n345, 3201, [N/A], [Not Supported], 0, 0"
    smi(tmp_path, monkeypatch, f"echo \"$*\" > {asked}; printf '{answer}\\n'")
    first, second = gpu_snapshot(tmp_path)
    assert first == GpuSnapshot(1980, 3201, 58, 612.34, 99, memory_used_bytes=2 << 30)
    assert (second.sm_clock_mhz, second.temperature_c, second.power_w) == (345, None, None)
    fields = "clocks.sm,clocks.mem,temperature.gpu,power.draw,utilization.gpu,memory.used"
    assert asked.read_text() == f"--query-gpu={fields} --format=csv,noheader,nounits\n"
    use(monkeypatch, None, 0)
    assert gpu_snapshot(tmp_path) == (), "without a driver it is not asked"


@pytest.mark.parametrize(
    "script", ["exit 6", "echo 'No devices were found'", "printf '\\377, 1, 2, 3, 4, 5'", "exec sleep 5"]
)
def test_a_tool_that_fails_tells_nothing(script: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    use(monkeypatch, None, 1)
    monkeypatch.setattr(telemetry, "SMI_PATIENCE", 0.5)
    smi(tmp_path, monkeypatch, script)
    assert gpu_snapshot(tmp_path) == ()


# --- a Jetson, which has no NVML ---

HWMON = "sys/bus/i2c/drivers/ina3221/1-0040/hwmon/hwmon4"


def jetson(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text + "\n")
    return root


def rail(hwmon: str, channel: int, label: str, millivolts: str, milliamperes: str) -> dict[str, str]:
    values = {f"in{channel}_label": label, f"in{channel}_input": millivolts, f"curr{channel}_input": milliamperes}
    return {f"{hwmon}/{name}": value for name, value in values.items()}


ORIN = {
    "sys/class/devfreq/17000000.gpu/cur_freq": "1300500000",
    "sys/class/devfreq/15340000.vic/cur_freq": "729600000",
    "sys/class/thermal/thermal_zone0/type": "cpu-thermal",
    "sys/class/thermal/thermal_zone0/temp": "51250",
    "sys/class/thermal/thermal_zone1/type": "gpu-thermal",
    "sys/class/thermal/thermal_zone1/temp": "48718",
    **rail(HWMON, 1, "VDD_IN", "19000", "700"),
    **rail(HWMON, 2, "VDD_GPU_SOC", "18976", "250"),
    "sys/devices/platform/gpu.0/load": "873",
}


def test_a_jetson_tells_in_sys(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    use(monkeypatch, None, 1)
    assert gpu_snapshot(jetson(tmp_path, ORIN)) == (
        GpuSnapshot(sm_clock_mhz=1300, temperature_c=49, power_w=4.744, gpu_load_percent=87, power_rail="VDD_GPU_SOC"),
    )


def test_an_older_jetpack_has_other_names(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    use(monkeypatch, None, 1)
    root = jetson(
        tmp_path,
        {
            "sys/class/devfreq/17000000.ga10b/cur_freq": "306000000",
            "sys/class/thermal/thermal_zone3/type": "GPU-therm",
            "sys/class/thermal/thermal_zone3/temp": "40500",
            "sys/devices/gpu.0/load": "0",
            **rail(HWMON, 1, "VDD_IN", "5000", "1200"),
        },
    )
    told = GpuSnapshot(sm_clock_mhz=306, temperature_c=40, power_w=6.0, power_rail="VDD_IN", gpu_load_percent=0)
    assert gpu_snapshot(root) == (told,)


def test_a_jetson_that_tells_little_is_not_made_up(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    use(monkeypatch, None, 1)
    root = jetson(
        tmp_path,
        {
            "sys/class/devfreq/17000000.gpu/cur_freq": "not a number",
            "sys/class/thermal/thermal_zone0/type": "gpu-thermal",  # asleep: no temp
            **rail(HWMON, 1, "VDD_CPU", "5000", "1200"),
            **rail(HWMON, 2, "VDD_GPU_SOC", "5000", ""),
        },
    )
    assert gpu_snapshot(root) == (GpuSnapshot(),)


def test_other_machines_with_a_devfreq_are_no_jetson(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    use(monkeypatch, None, 0)
    mali = {**ORIN, "sys/class/devfreq/fb000000.gpu/cur_freq": "800000000"}
    del mali["sys/class/devfreq/17000000.gpu/cur_freq"]
    assert gpu_snapshot(jetson(tmp_path, mali)) == ()


def test_nvml_comes_first(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    use(monkeypatch, nvml(), 1)
    (found,) = gpu_snapshot(jetson(tmp_path, ORIN))
    assert found.sm_clock_mhz == 1980
    assert found.power_rail is None
