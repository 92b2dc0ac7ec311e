"""What the code asks of TensorRT, against the names that each version has, by the table in the repository."""

import importlib.util

import pytest

from export.capabilities import TensorRT
from export.versions import CHECKED, is_checked
from tests.contract import check, names
from tests.contract.bindings import ALL, ROOT, read_installed
from tests.contract.capability_table import CAPABILITIES
from tests.contract.flow import analyse, read_sources
from tests.contract.values import Result

TABLE = names.read_table()
LIBRARIES = {one.version: one for one in TABLE.libraries}
PROPERTIES = sorted(name for name, value in vars(TensorRT).items() if isinstance(value, property))
every_version = pytest.mark.parametrize("library", TABLE.libraries, ids=lambda one: one.version)


@pytest.fixture(scope="module")
def wanted() -> Result:
    return analyse(read_sources(ROOT), TABLE.returns)


def test_the_table_has_every_version_and_every_name(wanted: Result) -> None:
    assert list(LIBRARIES) == [one.version for one in ALL]
    where = {use.name: str(use.site) for use in wanted.uses}
    where |= {name: str(min(sites, key=str)) for name, sites in wanted.asked.items()}
    new = check.names_needed(wanted) - set(TABLE.libraries[0].names)
    rows = [f"{name} ({where.get(name, 'capability_table.py')})" for name in sorted(new)]
    assert not new, f"not in tests/contract/names.txt, write it anew with `make contract`: {', '.join(rows)}"


def test_the_table_knows_every_answer() -> None:
    """But of 8.6.0, whose download is large: 8.6.1 answers for it."""
    unread = {one.version: name for one in TABLE.libraries for name, has in one.names.items() if has is None}
    assert set(unread) <= {"8.6.0"}, f"`make contract` could not read these versions, and said why: {unread}"


@every_version
def test_the_code_uses_what_this_version_has(wanted: Result, library: names.Library) -> None:
    assert check.wrong_uses(wanted, library) == []


@every_version
def test_capabilities_are_where_the_table_says(library: names.Library) -> None:
    assert check.wrong_capabilities(library) == []
    answers = {name: library.capability(name) for name in PROPERTIES}
    assert check.wrong_answers(library.version, answers, PROPERTIES) == []


def test_the_capability_table_names_versions_that_exist() -> None:
    assert {version for row in CAPABILITIES.values() for version in row.versions} <= set(LIBRARIES)


def test_versions_count_as_checked_if_they_are_in_the_table() -> None:
    """What `doctor` says of a version rests on it."""
    said = {
        version: is_checked("rtx" if "rtx" in version else "tensorrt", f"{version.removeprefix('rtx')}.0")
        for version in LIBRARIES
    }
    assert all(said.values()), said
    minors = [(row[0][0], minor) for row in CHECKED["tensorrt"] for minor in range(row[0][1], row[1][1])]
    assert {f"{major}.{minor}" for major, minor in minors} == {
        ".".join(version.split(".")[:2]) for version in LIBRARIES if "rtx" not in version
    }


def test_the_installed_rtx_is_as_the_table_says(wanted: Result) -> None:
    if importlib.util.find_spec("tensorrt_rtx_bindings") is None:
        pytest.skip("tensorrt_rtx_bindings is not installed")
    found = read_installed("tensorrt_rtx_bindings")
    if not found["version"].startswith("1.7.1."):
        pytest.skip(f"the table is about TensorRT-RTX 1.7.1, {found['version']} is installed")
    column = LIBRARIES["rtx1.7.1"]
    [library] = names.table_of({"rtx1.7.1": found["api"]}).libraries
    assert {name: library.has(name) for name in column.names} == column.names
    assert check.wrong_uses(wanted, library) == []
    assert check.wrong_answers("rtx1.7.1", found["capabilities"], PROPERTIES) == []


def test_a_column_that_was_not_read_stays_as_it_was(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(names, "TABLE", tmp_path / "names.txt")
    old = names.Table([names.Library("8.6.0", {"Builder": True})], {})
    new = names.table_of({"11.0": {"Builder": {"build": ["ICudaEngine"]}}})
    names.write_table(new, ["Builder", "Builder.build", "Builder.biuld"], old)
    read = names.read_table()
    assert [one.version for one in read.libraries] == ["8.6.0", "11.0"]
    assert read.libraries[0].names == {"Builder": True, "Builder.build": None, "Builder.biuld": None}
    assert read.libraries[1].names == {"Builder": True, "Builder.build": True, "Builder.biuld": False}
    assert read.returns["Builder.build"] == ["ICudaEngine"]
