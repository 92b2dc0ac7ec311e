"""Records: what a file holds is compared with the types of the fields, by file and key."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from export.errors import ProjectError
from export.records import from_json, read_record, to_json, without_none


@dataclass(frozen=True)
class Inner:
    sizes: tuple[int, int]
    share: float | None = None


@dataclass(frozen=True)
class Outer:
    name: str
    kind: Literal["a", "b"]
    inner: Inner
    many: tuple[Inner, ...]
    by_name: Mapping[str, float]
    free: Any
    either: int | str
    on: bool = False
    schema: int = 3

    def __post_init__(self) -> None:
        if self.name == "bad":
            raise ValueError("no such name")


WHOLE: dict[str, Any] = {
    "name": "n", "kind": "a", "inner": {"sizes": [1, 2], "share": 0.5}, "many": [{"sizes": [3, 4], "share": None}],
    "by_name": {"x": 1, "y": 2.5}, "free": {"anything": [1]}, "either": "text", "on": True, "schema": 3,
}  # fmt: skip


def read(tree: Any) -> Outer:
    return from_json(Outer, tree, "file.json", remedy="Make it again.")


def test_what_is_written_is_read_again() -> None:
    record = read(WHOLE)
    assert record.inner == Inner((1, 2), 0.5)
    assert record.many == (Inner((3, 4)),)
    assert record.by_name == {"x": 1.0, "y": 2.5}
    assert to_json(record) == WHOLE
    assert read(json.loads(json.dumps(to_json(record)))) == record


def test_numbers_that_json_does_not_have_are_not_hidden() -> None:
    assert to_json(Inner((1, 2), math.inf))["share"] == math.inf
    with pytest.raises(ProjectError, match=r"'inner\.share' of type a finite number"):
        read(WHOLE | {"inner": {"sizes": [1, 2], "share": math.inf}})


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"name": None}, "'name' of type text in file.json. Received: None. Make it again."),
        ({"name": "\ud800"}, "'name' of type text that can be written as UTF-8"),
        ({"name": "bad"}, "a consistent Outer in file.json. Received: no such name"),
        ({"kind": "c"}, "'kind' of type 'a' or 'b' in file.json. Received: 'c'"),
        ({"inner": []}, "'inner' of type an object in file.json. Received: a list"),
        ({"inner": {"sizes": [1]}}, "'inner.sizes' of type a list of 2 in file.json. Received: 1 entry"),
        ({"inner": {"sizes": [1, True]}}, r"'inner.sizes\[1\]' of type a whole number in file.json. Received: True"),
        ({"inner": {"sizes": [1, 2.0]}}, "a whole number in file.json. Received: 2.0"),
        ({"inner": {"sizes": [1, 2], "share": "x"}}, "'inner.share' of type a number in file.json. Received: 'x'"),
        ({"inner": {"sizes": [1, 2], "share": 10**400}}, "'inner.share' of type a number"),
        ({"inner": {"sizes": [1, 2], "more": 1}}, "keys of share, sizes as 'inner' in file.json.*unknown key 'more'"),
        ({"many": [{"sizes": [1, 2]}, 7]}, r"'many\[1\]' of type an object in file.json. Received: 7"),
        ({"by_name": {"x": []}}, "'by_name.x' of type a number in file.json. Received: a list"),
        ({"either": 1.5}, "'either' of type a whole number or text"),
        ({"on": 1}, "'on' of type true or false"),
        ({"extra": 1}, "the unknown key 'extra'. Make it again."),
        ({"schema": 2}, "the record of schema 3 in file.json. Received: schema 2"),
        ({"schema": True}, "schema 3"),
    ],
)
def test_a_difference_is_named_by_file_and_key(change: dict[str, Any], words: str) -> None:
    with pytest.raises(ProjectError, match=words):
        read(WHOLE | change)


@pytest.mark.parametrize("key", [key for key in WHOLE if key not in ("on", "schema")])
def test_a_missing_key_is_named(key: str) -> None:
    with pytest.raises(ProjectError, match=rf"'{key}' of type .* in file\.json\. Received: nothing"):
        read({name: value for name, value in WHOLE.items() if name != key})


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "Expected the thing .*r.json. Received: No such file"),
        (b"", "Expected JSON in .*r.json"),
        (b'{"name": NaN}', "NaN"),
        (b"[" * 100_000, "r.json"),
        (b"\xff", "not UTF-8"),
        (b"[]", "schema 3 .*Received: a list"),
    ],
)
def test_files_that_hold_no_record(tmp_path: Path, content: bytes | None, words: str) -> None:
    path = tmp_path / "r.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ProjectError, match=words):
        read_record(Outer, path, remedy="Make it again.", what="thing")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=150, deadline=None)
@given(st.dictionaries(st.sampled_from(list(WHOLE)), JSON, max_size=4))
def test_any_json_is_a_record_or_one_error(change: dict[str, Any]) -> None:
    message = "file.json: Make it again."
    try:
        record = read(WHOLE | change)
        assert read(to_json(record)) == record
    except ProjectError as error:
        message = str(error)
    assert re.search(r"file\.json.*Make it again\.$", message)


@dataclass(frozen=True)
class Sparse:
    """Written without what it need not say."""

    name: str
    note: str | None = None
    more: object = None

    def to_dict(self) -> dict[str, object]:
        return without_none(self)


@pytest.mark.parametrize(
    ("record", "tree"),
    [(Sparse("a"), {"name": "a"}), (Sparse("a", "b", {"c": [1]}), {"name": "a", "note": "b", "more": {"c": [1]}})],
)
def test_what_is_left_out_is_read_as_its_default(record: Sparse, tree: dict[str, object]) -> None:
    assert to_json(record) == tree
    assert from_json(Sparse, tree, "x.json", remedy="Make it again.") == record
