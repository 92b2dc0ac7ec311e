"""The tables of docs/serving.md are those of the records."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from export.files import ROOT
from tests.result_tables import RESULTS
from tests.serving_tables import PAGE, with_serving_tables

TEXT = (ROOT / PAGE).read_text(encoding="utf-8")


def test_the_page_has_the_numbers_of_the_records() -> None:
    assert with_serving_tables(TEXT, RESULTS) == TEXT, "make result-tables"
    assert TEXT.count("<!-- end of server -->") == TEXT.count("<!-- end of ways -->") == 1


@pytest.mark.parametrize(
    ("file", "change", "shown"),
    [
        ("server.json", ("runs", 0, "wrong", 7), "| 7 | 0 |"),
        ("server.json", ("runs", 0, "latency", "p99_ms", 4321.4), "| 4321 ms |"),
        ("server.json", ("runs", 1, "lost", {"closed": 12, "time": 1}), "| 13 |"),
        ("server.json", ("runs", 2, "memory", "growth_mib", 99.25), "| 99.2 MiB |"),
        ("ways-imagenet.json", ("ways", "Triton ensemble", "same", 321), "| 321 of 500 |"),
        ("ways-imagenet.json", ("ways", "infer", "largest_difference", 0.25), "| 2e-01 |"),
    ],
)
def test_a_number_of_a_record_is_shown(file: str, change: tuple, shown: str, tmp_path: Path) -> None:
    for name in ("server.json", "ways-imagenet.json"):
        (tmp_path / name).write_bytes((RESULTS / name).read_bytes())
    record = json.loads((tmp_path / file).read_text())
    *keys, last, value = change
    part = record
    for key in keys:
        part = part[key]
    part[last] = value
    (tmp_path / file).write_text(json.dumps(record))
    assert shown not in TEXT
    assert shown in with_serving_tables(TEXT, tmp_path)


def test_every_way_agreed_and_no_answer_was_wrong_or_lost() -> None:
    ways = json.loads((RESULTS / "ways-imagenet.json").read_text())["ways"]
    assert len(ways) == 6
    assert all(found["same"] == found["photos"] == 500 for found in ways.values())
    for run in json.loads((RESULTS / "server.json").read_text())["runs"]:
        assert (run["requests"], run["wrong"], run["lost"], run["outcome"]) == (10_000, 0, {}, "passed")
