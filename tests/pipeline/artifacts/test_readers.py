"""Every record that travels as JSON: any damage is one error that names the file, never something else."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from export.errors import ProjectError
from export.tensorrt.sidecar import read_sidecar
from pipeline.artifacts.benchmark_report import read_benchmark
from pipeline.artifacts.manifest import read_manifest
from pipeline.artifacts.parity_report import read_parity
from pipeline.artifacts.stage_files import read_calibration, read_placement
from pipeline.training.checkpoint import read_history
from tests.pipeline.report_artifacts import Artifacts

PLAN = "build/rtx/int8.plan"
READERS: dict[str, Callable[[Path], object]] = {
    "verify/parity.json": read_parity,
    "benchmark/benchmark.json": read_benchmark,
    "quantize/calibration.json": read_calibration,
    "quantize/placement.json": read_placement,
    "train/history.json": read_history,
    "build/rtx/int8.json": read_sidecar,
    "verify/manifest.json": lambda path: read_manifest(path.parent),
}
JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=3)
    | st.just("\ud800"),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
    max_leaves=4,
)


@dataclass(frozen=True)
class Hand:
    root: Path
    texts: dict[str, str]


@pytest.fixture
def hand(artifacts: Artifacts) -> Hand:
    artifacts.plans = [PLAN]
    artifacts.write()
    return Hand(artifacts.root, {name: (artifacts.root / name).read_text() for name in READERS})


def places(tree: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    found = [path]
    for key, item in tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ():
        found += places(item, (*path, key))
    return found


def attempt(path: Path, read: Callable[[Path], object]) -> None:
    """Read it: a record, or one error with the file's name."""
    message = path.name
    try:
        read(path)
    except ProjectError as error:
        message = str(error)
    assert path.name in message


@pytest.mark.parametrize("name", READERS)
def test_what_the_stages_write_is_read(hand: Hand, name: str) -> None:
    assert READERS[name](hand.root / name)


@pytest.mark.parametrize("name", READERS)
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_value_of_any_kind_in_any_place(hand: Hand, name: str, data: st.DataObject) -> None:
    tree = json.loads(hand.texts[name])
    path = data.draw(st.sampled_from(places(tree)))
    value = data.draw(JSON)
    if not path:
        tree = value
    else:
        node = tree
        for key in path[:-1]:
            node = node[key]
        if data.draw(st.booleans()):
            node[path[-1]] = value
        else:
            del node[path[-1]]
    (hand.root / name).write_text(json.dumps(tree))
    attempt(hand.root / name, READERS[name])


@pytest.mark.parametrize("name", READERS)
@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_bytes_that_were_cut_or_changed(hand: Hand, name: str, data: st.DataObject) -> None:
    content = bytearray(hand.texts[name].encode())
    place = data.draw(st.integers(0, len(content) - 1))
    if data.draw(st.booleans()):
        content = content[:place]
    else:
        content[place] = data.draw(st.integers(0, 255))
    (hand.root / name).write_bytes(content)
    attempt(hand.root / name, READERS[name])


@pytest.mark.parametrize("name", READERS)
@pytest.mark.parametrize("schema", [0, 99, None])
def test_another_schema_is_refused_with_both_numbers(
    hand: Hand, caplog: pytest.LogCaptureFixture, name: str, schema: int | None
) -> None:
    tree = json.loads(hand.texts[name])
    expected = tree.pop("schema")
    (hand.root / name).write_text(json.dumps(tree if schema is None else tree | {"schema": schema}))
    try:
        assert READERS[name](hand.root / name) is None, "a manifest is warned of, and does not count"
        message = caplog.text
    except ProjectError as error:
        message = str(error)
    received = "an object without the key 'schema'" if schema is None else f"schema {schema}"
    assert f"of schema {expected} in " in message
    assert f"Received: {received}." in message


def test_a_list_as_earlier_versions_wrote_it_is_refused(hand: Hand) -> None:
    (hand.root / "quantize/placement.json").write_text(json.dumps([]))
    with pytest.raises(ProjectError, match=r"of schema 1 .*Received: a list\. Run the quantize stage again\."):
        read_placement(hand.root / "quantize/placement.json")
