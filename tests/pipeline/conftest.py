"""What the tests of the report share."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

from pipeline.artifacts import manifest
from pipeline.reporting import charts

if TYPE_CHECKING:
    from tests.pipeline.report_artifacts import Artifacts


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    """Without what takes most of the time and is tested elsewhere: plots, versions of packages, a disk that syncs."""
    if "real_plots" not in request.fixturenames:
        monkeypatch.setattr(charts, "training_curves", lambda _: ("<svg></svg>", "<svg></svg>"))
    monkeypatch.setattr(manifest, "tool_versions", lambda: {"numpy": np.__version__})
    monkeypatch.setattr(os, "fsync", lambda _: None)


@pytest.fixture
def real_plots() -> None: ...


@pytest.fixture
def artifacts(tmp_path: Path, quick: None) -> Artifacts:
    """A recipe's artifacts, to change and then to `write`."""
    # Not above: the tests for a GPU are collected where what this needs is not installed.
    from tests.pipeline.report_artifacts import Artifacts

    return Artifacts(tmp_path)
