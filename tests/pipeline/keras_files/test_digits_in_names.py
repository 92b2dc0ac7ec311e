"""Digits that are no decimals (a superscript two) and numbers without end are names, wherever names hold numbers."""

from __future__ import annotations

import pytest

from export.tensorrt.driver import version_numbers
from pipeline.keras_files.facts import _is_statistic


@pytest.mark.parametrize(
    ("version", "numbers"),
    [("10.13.0.35", (10, 13, 0, 35)), ("8.²", (8,)), ("8." + "1" * 5000, (8,)), ("9.6b", (9,)), ("", ())],
)
def test_versions(version: str, numbers: tuple[int, ...]) -> None:
    assert version_numbers(version) == numbers


@pytest.mark.parametrize(("index", "statistic"), [("2", True), ("1", False), ("²", False), ("1" * 5000, False)])
def test_numbered_weights(index: str, statistic: bool) -> None:
    assert _is_statistic(index, {}) is statistic
