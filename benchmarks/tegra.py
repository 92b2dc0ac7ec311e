"""What a Jetson's GPU is doing, read from /sys: it has no NVML. Standard library only, Python 3.10 syntax.

Which files there are differs between boards and releases of JetPack, so that whatever is not found stays None. The
names are those that others read on boards with JetPack 5 and 6; this code was never run on one.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from pipeline.machine import GpuSnapshot

ROOT = Path("/")
# Names below /sys/class/devfreq of Tegra's own GPUs: JetPack 6 says gpu at Tegra's address, earlier ones the chip.
_GPU = re.compile(r"17000000\.gpu|[0-9a-f]+\.(ga10b|gv11b|gp10b|gm20b)")
_ZONE = re.compile(r"gpu[-_]therm(al)?", re.IGNORECASE)
# Power rails of Xavier, AGX Orin and Orin NX or Nano; the last one is the whole module.
_RAILS = ("GPU", "VDD_GPU_SOC", "VDD_CPU_GPU_CV", "VDD_IN")
_LOADS = ("sys/devices/platform/gpu.0/load", "sys/devices/gpu.0/load")


def tegra_snapshot(root: Path = ROOT) -> GpuSnapshot | None:
    """Read clock, temperature, power and load of a Jetson's GPU.

    Args:
        root: of the file system. Defaults to "/".

    Returns:
        GpuSnapshot | None: None where /sys shows no GPU of a Jetson.
    """
    device = _device(root)
    if device is None:
        return None
    rail, power = _power(root)
    return GpuSnapshot(
        sm_clock_mhz=_scaled(_number(device / "cur_freq"), 1e6),
        temperature_c=_scaled(_temperature(root), 1000),
        power_w=power,
        gpu_load_percent=_scaled(_load(root, device), 10),
        power_rail=rail,
    )


def _device(root: Path) -> Path | None:
    found = (path for path in _matching(root, "sys/class/devfreq/*") if _GPU.fullmatch(path.name))
    return next(found, None)


def _temperature(root: Path) -> int | None:
    """Thousandths of a degree Celsius."""
    for zone in _matching(root, "sys/class/thermal/thermal_zone*"):
        if _ZONE.fullmatch(_text(zone / "type")):
            return _number(zone / "temp")
    return None


def _power(root: Path) -> tuple[str | None, float | None]:
    """The rail closest to the GPU alone that tells voltage (mV) and current (mA), and its power in watts."""
    watts: dict[str, float] = {}
    for label in _matching(root, "sys/bus/i2c/drivers/ina3221/*/hwmon/hwmon*/in*_label"):
        channel = label.name.removeprefix("in").removesuffix("_label")
        millivolts, milliamperes = (_number(label.with_name(f"{what}{channel}_input")) for what in ("in", "curr"))
        if millivolts is not None and milliamperes is not None:
            watts[_text(label)] = millivolts * milliamperes / 1e6
    return next(((rail, watts[rail]) for rail in _RAILS if rail in watts), (None, None))


def _load(root: Path, device: Path) -> int | None:
    """Thousandths."""
    for path in (device / "device" / "load", *(root / name for name in _LOADS)):
        if (found := _number(path)) is not None:
            return found
    return None


def _matching(root: Path, pattern: str) -> Iterator[Path]:
    try:
        yield from sorted(root.glob(pattern))
    except OSError:
        return


def _scaled(value: int | None, by: float) -> int | None:
    return None if value is None else round(value / by)


def _number(path: Path) -> int | None:
    try:
        return int(_text(path))
    except ValueError:
        return None


def _text(path: Path) -> str:
    """What a file says; "" where it says nothing, as a sensor of a part that sleeps."""
    try:
        return path.read_text(encoding="ascii").strip()
    except (OSError, ValueError):
        return ""
