"""What the code makes of each TensorRT, by the names that its bindings have: the table in the repository."""

import importlib.util

import pytest

from export.tensorrt.driver import CHECKED, is_checked
from export.tensorrt.library import TensorRT
from tests.contract.bindings import ALL, read_installed
from tests.contract.capability_table import CAPABILITIES, names_needed, wrong_answers, wrong_capabilities
from tests.contract.names import read_table
from tests.contract.versions import every_version, gpu_of

TABLE = read_table()
PROPERTIES = sorted(name for name, value in vars(TensorRT).items() if isinstance(value, property))


def test_the_table_has_every_version_and_every_name() -> None:
    assert list(TABLE) == [one.version for one in ALL]
    assert set(TABLE["11.4"]) == names_needed(), "write tests/contract/names.txt again: make contract"


def test_the_table_knows_every_answer() -> None:
    """But of 8.6.0, whose download is large: 8.6.1 answers for it."""
    unread = {version for version, names in TABLE.items() if None in names.values()}
    assert unread <= {"8.6.0"}, "`make contract` could not read these versions, and said why"


def test_every_name_is_one_of_some_version() -> None:
    assert [name for name in TABLE["11.4"] if not any(names[name] for names in TABLE.values())] == []


@every_version
def test_capabilities_are_where_the_table_says(version: str) -> None:
    assert wrong_capabilities(version, TABLE[version]) == []
    trt = gpu_of(version).trt
    assert wrong_answers(version, {name: getattr(trt, name) for name in PROPERTIES}, PROPERTIES) == []


def test_a_capability_that_lies_is_seen() -> None:
    [fault] = wrong_capabilities("11.0", {**TABLE["11.0"], "BuilderFlag.STRIP_PLAN": False})
    assert "11.0 with strips_weights" in fault
    assert "no BuilderFlag.STRIP_PLAN" in fault
    [fault] = wrong_answers("11.0", {"strongly_typed": False, "new": True}, ["strongly_typed"])
    assert "trt.strongly_typed to be True" in fault
    assert "no row" in wrong_answers("11.0", {"new": True}, ["new"])[0]


def test_the_capability_table_names_versions_that_exist() -> None:
    assert {version for row in CAPABILITIES.values() for version in row.versions} <= set(TABLE)


def test_versions_count_as_checked_if_they_are_in_the_table() -> None:
    """What `doctor` says of a version rests on it."""
    said = {
        version: is_checked("rtx" if "rtx" in version else "tensorrt", f"{version.removeprefix('rtx')}.0")
        for version in TABLE
    }
    assert all(said.values()), said
    minors = [(row[0][0], minor) for row in CHECKED["tensorrt"] for minor in range(row[0][1], row[1][1])]
    assert {f"{major}.{minor}" for major, minor in minors} == {
        ".".join(version.split(".")[:2]) for version in TABLE if "rtx" not in version
    }


def test_the_installed_rtx_is_as_the_table_says() -> None:
    if importlib.util.find_spec("tensorrt_rtx_bindings") is None:
        pytest.skip("tensorrt_rtx_bindings is not installed")
    found = read_installed("tensorrt_rtx_bindings")
    if not found["version"].startswith("1.7.1."):
        pytest.skip(f"the table is about TensorRT-RTX 1.7.1, {found['version']} is installed")
    names = set(found["names"])
    assert {name: name in names for name in TABLE["rtx1.7.1"]} == TABLE["rtx1.7.1"]
    assert wrong_answers("rtx1.7.1", found["capabilities"], PROPERTIES) == []
