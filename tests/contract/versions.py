"""The fake of every TensorRT version, for tests that run the same code on each."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from export.tensorrt import build
from export.tensorrt.driver import Device, DriverStatus
from tests.contract.names import read_table
from tests.fakes.cuda import FakeRuntime
from tests.fakes.engine import install
from tests.fakes.gpu import FakeTensorRT

every_version = pytest.mark.parametrize("version", list(read_table()))
GPU = DriverStatus(True, "", "580.95.05", "13.1", (Device("Fake GPU", "8.9", 1 << 30),))


def kind_of(version: str) -> dict[str, Any]:
    """The arguments of `FakeTensorRT` for a column of ``names.txt``."""
    kind = "rtx" if version.startswith("rtx") else "8" if version.startswith("8.") else "10"
    number = version.removeprefix("rtx")
    return {"kind": kind, "version": number if number.count(".") > 1 else f"{number}.0"}


def gpu_of(version: str) -> FakeTensorRT:
    """A fake that nothing else knows of."""
    return FakeTensorRT(FakeRuntime(), **kind_of(version))


def install_version(monkeypatch: pytest.MonkeyPatch, version: str) -> FakeTensorRT:
    """Put a fake in the place of the real one: where engines are built and where they run."""
    monkeypatch.setattr(build, "driver_status", lambda: GPU)
    return install(monkeypatch, **kind_of(version))


def onnx_file(folder: Path, precision: str) -> Path:
    """A file whose name tells the fake parser what it holds, with nothing in it that is read."""
    path = folder / f"model.{precision}.onnx"
    path.write_bytes(b"\x08\x08")  # ir_version: a message that is whole
    return path
