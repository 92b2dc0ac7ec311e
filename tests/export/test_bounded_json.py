"""JSON out of all proportion is refused in a blink; what Python's own parser accepts otherwise is read the same."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from export.errors import ProjectError
from export.records import MAX_BYTES, MAX_DEPTH, MAX_VALUES, parse_json, read_json_file
from export.tensorrt.sidecar import read_sidecar, sidecar_path
from pipeline.artifacts.files import read_json

PLAIN = st.none() | st.booleans() | st.integers(-(2**64), 2**64) | st.floats(allow_nan=False) | st.text(max_size=9)


@given(st.recursive(PLAIN, lambda inner: st.lists(inner) | st.dictionaries(st.text(max_size=5), inner), max_leaves=20))
def test_reads_what_python_reads(value: object) -> None:
    text = json.dumps(value)
    if "Infinity" not in text:
        assert parse_json(text, "a.json") == parse_json(text.encode(), "a.json") == json.loads(text)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("[" * 100_000 + "]" * 100_000, f"a.json: nested more than {MAX_DEPTH} deep"),
        ('{"a":' * 100_000 + "1" + "}" * 100_000, f"nested more than {MAX_DEPTH} deep"),
        ("[" * (MAX_DEPTH + 1) + "]" * (MAX_DEPTH + 1), f"nested more than {MAX_DEPTH} deep"),
        ("[" + "[]," * MAX_VALUES + "0]", "values, where at most"),
        (" " * (MAX_BYTES + 1), "bytes, where at most"),
        ("1" * 100_000, "a number of 100,000 digits"),
        ("-" + "1" * 5_000, "a number of 5,001 digits"),
        ("1e999999", "1e999999, which is none"),
        ("[NaN]", "NaN, which is no JSON"),
        ("-Infinity", "-Infinity, which is no JSON"),
        (b"\xff\xfe", "not UTF-8 at byte 0"),
        ("{", "a.json: Expecting"),
        ("", "a.json: Expecting"),
    ],
)
def test_out_of_bounds(text: str | bytes, found: str) -> None:
    with pytest.raises(ValueError, match=found):
        parse_json(text, "a.json")


def test_the_deepest_that_is_read() -> None:
    text = "[" * MAX_DEPTH + "]" * MAX_DEPTH
    assert json.dumps(parse_json(text, "a.json")) == text


def test_python_s_own_infinities_where_they_are_asked_for() -> None:
    assert parse_json('{"mask_value": Infinity, "limit": 1e999}', "a.json", finite=False)["limit"] == float("inf")


def test_surrogates_and_a_mark_of_utf_8() -> None:
    assert parse_json(rb'"\ud800"', "a.json") == "\ud800"
    assert parse_json("\ufeff1".encode(), "a.json") == 1


def test_no_more_of_a_file_is_read_than_tells_its_size() -> None:
    with pytest.raises(ValueError, match="zero: more than the 8,388,608 bytes"):
        read_json_file("/dev/zero")


def test_other_readers_use_it(tmp_path: Path) -> None:
    sidecar_path(tmp_path / "a.plan").write_text("[" * 100_000)
    with pytest.raises(ProjectError, match=r"Expected JSON in .*a\.json.*nested more than.*rebuild it: "):
        read_sidecar(tmp_path / "a.plan")


def test_read_json_names_the_file(tmp_path: Path) -> None:
    path = tmp_path / "deep.json"
    path.write_text("[" * 100_000)
    with pytest.raises(ProjectError, match=r"Expected JSON in .*deep\.json.*nested more than .*Delete it"):
        read_json(path)
