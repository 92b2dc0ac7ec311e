"""What the bench records: changes on the same images with their intervals, and what was skipped, by reason."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from benchmarks.int8.record import Gain, Measured, Row, Table, finite, gain, read_table, skipped
from benchmarks.telemetry import machine
from export.errors import ProjectError
from export.records import to_json
from pipeline.artifacts.files import write_json
from tests.benchmarks.int8.small_network import network


def same(number: int) -> tuple[np.ndarray, np.ndarray]:
    return np.ones(number, bool), np.ones(number, bool)


def test_a_change_of_every_image_is_seen_below_the_spread_between_images() -> None:
    random = np.random.default_rng(0)
    before = random.normal(25, 5, 200)  # dB: the spread between images is ten times the change
    found = gain(before, before - 0.5 + random.normal(0, 0.2, 200), same(200))
    assert found.median_db == pytest.approx(-0.5, abs=0.05)
    assert found.interval_db[0] < found.median_db < found.interval_db[1] < -0.4
    assert found.worse
    assert not gain(before, before + random.normal(0, 0.2, 200), same(200)).worse


def test_the_interval_of_the_median_covers_it_as_often_as_it_says() -> None:
    random = np.random.default_rng(1)
    covered = 0
    for _ in range(400):
        low, high = gain(np.zeros(60), random.exponential(1.0, 60) - math.log(2), same(60)).interval_db
        covered += low <= 0 <= high
    assert 0.93 < covered / 400 < 0.99


def test_images_that_are_lost_make_it_worse_although_the_median_is_equal() -> None:
    before = np.full(100, 20.0)
    was, now = same(100)
    now[:8] = False
    found = gain(before, before, (was, now))
    assert found.agreement == pytest.approx(-0.08)
    assert found.agreement_interval[0] < -0.08 < found.agreement_interval[1] < 0
    assert found.worse
    assert not gain(before, before, (now, was)).worse


def test_equal_logits_before_and_after_are_no_change() -> None:
    found = gain(np.full(9, np.inf), np.full(9, np.inf), same(9))
    assert (found.median_db, found.interval_db) == (0.0, (0.0, 0.0))
    assert gain(np.full(9, np.inf), np.full(9, 30.0), same(9)).worse


def test_what_is_skipped_is_grouped_by_its_reason_whatever_node_it_is() -> None:
    report = {
        "shift": {
            "used": True,
            "after": {},
            "refused": {
                "a": {"kind": "Conv reads it with padding", "node": "x/Conv"},
                "b": {"kind": "Conv reads it with padding", "node": "y/Conv"},
            },
        },
        "rounding": {"used": False, "after": {}, "skipped": {"c": "it stays in float"}},
        "bias_correction": None,
    }
    assert skipped(report, shifting=True) == {
        "no shift: Conv reads it with padding": ("a", "b"),
        "it does not help on held-out images": ("rounding",),
        "no second-order rounding: it stays in float": ("c",),
    }


@pytest.mark.parametrize(
    ("refused", "shifting", "expected"),
    [
        ({}, False, {}),
        ({}, True, {"no quantized tensor is behind a ReLU": ("shift",)}),
        ({"a": {"kind": "why", "node": ""}}, True, {"no shift: why": ("a",)}),
    ],
)
def test_a_shift_that_was_not_tried_did_not_fail_to_help(
    refused: dict[str, dict[str, str]], shifting: bool, expected: dict[str, tuple[str, ...]]
) -> None:
    assert skipped({"shift": {"used": False, "after": None, "refused": refused}}, shifting) == expected


def test_what_is_written_is_read_again(tmp_path: Path) -> None:
    change = Gain(0.5, (0.25, 0.75), 0.0, (-0.01, 0.01))
    row = Row(
        step="shift", top1_agreement=0.99, agreement_interval=(0.97, 1.0), lost=1, gained=0, method="mse",
        int8_convolutions=2, convolutions=3, kept=("conv",), skipped={"why": ("a",)}, gains={"before": change},
        seconds=1.5, sqnr_db=finite(math.inf), worst_db=finite(3.0),
    )  # fmt: skip
    assert (row.sqnr_db, row.worst_db) == (None, 3.0)
    table = Table(photographs="noise", machine=machine(), networks=(Measured(network(), (row,)),))
    path = tmp_path / "t.json"
    write_json(path, to_json(table))
    assert read_table(path) == table
    path.write_text(path.read_text().replace('"lost"', '"won"'))
    with pytest.raises(ProjectError, match="Name another file with --output"):
        read_table(path)
