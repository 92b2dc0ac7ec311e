"""What the tests of this folder share."""

from __future__ import annotations

import os

import pytest


@pytest.fixture(autouse=True)
def no_sync(monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk that syncs takes most of the time, and is tested elsewhere."""
    monkeypatch.setattr(os, "fsync", lambda _: None)
