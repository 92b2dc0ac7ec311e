"""What is said of the machine is found out in one place."""

from __future__ import annotations

import builtins
import io
import os
from typing import Any

import numpy as np
import pytest

from benchmarks import command, telemetry
from pipeline.artifacts import machine
from pipeline.cli import doctor
from pipeline.recipe.schema import Recipe

CPUINFO = "processor\t: 0\nmodel name\t: A CPU\nflags\t\t: fpu avx2 amx_int8\n\nprocessor\t: 1\nmodel name\t: Another\n"


@pytest.fixture
def info(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.open

    def opened(path: Any, *args: Any, **kwargs: Any) -> Any:
        return io.StringIO(CPUINFO) if path == "/proc/cpuinfo" else real(path, *args, **kwargs)

    monkeypatch.setattr(builtins, "open", opened)
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {0, 3}, raising=False)


def test_the_first_processor_is_described_alike_everywhere(info: None) -> None:
    described = machine.describe_cpu()
    assert (described.model, described.usable_cores) == ("A CPU", 2)
    assert described.features == ("avx2", "amx_int8")
    assert telemetry.machine().cpu == described
    assert (
        command.STAGE.environment(Recipe("toy"))["cpu"]
        == doctor._machine()["cpu"]
        == str(machine.describe_cpu())
        == "A CPU, 2 cores"
    )


def test_versions_of_what_is_installed() -> None:
    assert machine.versions_of(("numpy", "no-such-package")) == {"numpy": np.__version__}
    assert machine.version_of("no-such-package") is None
