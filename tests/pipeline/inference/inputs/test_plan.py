"""The plan's file: every item comes back, from any row on; a damaged file is one clear error."""

from __future__ import annotations

import os
import pickle
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import get_args

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from export.errors import DataError, ImageStatus
from pipeline.inference.inputs.found import BESIDE_PLAN, Found
from pipeline.inference.inputs.plan import STEP, Plan, PlanWriter, read_plan
from pipeline.inference.items import Item, Kind
from tests.pipeline.inference.inputs.parts import plan, touch

TEXTS = st.binary(max_size=40).map(os.fsdecode)
SIZES = st.integers(-1, 2**63 - 1)
FACTS = {"left_out": {}, "notes": [], "archives": {}}


def written(found: list[Found], file: str = "plan") -> Plan:
    with PlanWriter(Path(file)) as writer:
        for one in found:
            writer.add(one)
        return writer.finish(FACTS)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(
        st.builds(
            Found,
            TEXTS.filter(bool),
            st.sampled_from(get_args(Kind)),
            TEXTS.filter(lambda place: not place.startswith(BESIDE_PLAN)),
            st.integers(0, 2**63 - 1),
            SIZES,
            st.integers(-(2**63), 2**64 - 1),
            st.sampled_from(get_args(ImageStatus)),
        ),
        min_size=1,
        max_size=8,
        unique_by=lambda found: os.path.abspath(found.path.replace("\0", "0").replace("..", "")),
    )
)
def test_items_of_any_names_come_back(found: list[Found]) -> None:
    expected = [
        Item(row, one.path, one.kind, one.place or one.path, one.start, one.size, one.status)
        for row, one in enumerate(found)
    ]
    assert list(written(found).items()) == expected
    assert list(read_plan(Path("plan")).items()) == expected


@pytest.fixture(scope="module")
def long(tmp_path_factory: pytest.TempPathFactory) -> Plan:
    return written([Found(f"{n}.jpg", "file") for n in range(3 * STEP + 5)], str(tmp_path_factory.mktemp("p") / "plan"))


@pytest.mark.parametrize("start", [0, 1, STEP - 1, STEP, STEP + 1, 2 * STEP, 3 * STEP, 3 * STEP + 4])
def test_a_range_of_rows(long: Plan, start: int) -> None:
    assert len(long) == 3 * STEP + 5
    expected = [(row, f"{row}.jpg") for row in range(start, 3 * STEP + 5)]
    assert [(item.row, item.path) for item in long.items(start)] == expected
    assert [(item.row, item.path) for item in long.items(start, start + 3)] == expected[:3]
    assert list(long.items(start, start)) == list(long.items(start, start - 1)) == []


def test_ranges_outside_of_the_plan(long: Plan) -> None:
    assert list(long.items(3 * STEP + 5)) == list(long.items(10**9)) == []
    assert len(list(long.items(3 * STEP, 10**9))) == 5
    with pytest.raises(ValueError, match="-1"):
        next(long.items(-1))


def test_threads_and_processes_read_it_at_once(long: Plan) -> None:
    with ThreadPoolExecutor(4) as pool:
        parts = pool.map(lambda start: [item.row for item in long.items(start, start + STEP)], range(0, 4 * STEP, STEP))
        assert [row for part in parts for row in part] == list(range(3 * STEP + 5))
    assert list(pickle.loads(pickle.dumps(long)).items(3 * STEP)) == list(long.items(3 * STEP))


def test_rows_count_on_where_repeats_are_left_out() -> None:
    made = written([Found(f"{n // 2}.jpg", "file") for n in range(4 * STEP)])
    assert len(made) == 2 * STEP
    for start in (STEP - 1, STEP, 2 * STEP - 3):
        expected = [f"{row}.jpg" for row in range(start, start + 3)]
        assert [item.path for item in made.items(start, start + 3)] == expected


def test_the_digest_changes_with_what_is_there() -> None:
    touch("p/a.jpg", "p/b.jpg")
    Path("list").write_text("p/a.jpg\np/b.jpg\n")
    digests = [plan("p").digest, plan(lists=["list"]).digest]
    assert digests[0] == digests[1] == plan("p", file="elsewhere/plan").digest == read_plan(Path(".run/plan")).digest
    os.utime("p/b.jpg", ns=(1, 1))
    digests.append(plan("p").digest)
    Path("p/b.jpg").write_bytes(b"x")
    os.utime("p/b.jpg", ns=(1, 1))
    digests.append(plan("p").digest)
    digests.append(plan("p/b.jpg", "p").digest)
    os.rename("p/b.jpg", "p/c.jpg")
    digests.append(plan("p").digest)
    os.remove("p/c.jpg")
    os.mkfifo("p/c.jpg")
    digests.append(plan("p").digest)
    assert len(set(digests)) == 6


def test_times_before_1970_and_after_2262() -> None:
    touch("a.jpg", "b.jpg")
    os.utime("a.jpg", ns=(-(10**18), -(10**18)))
    os.utime("b.jpg", (2**34 - 1, 2**34 - 1))
    assert len(plan("a.jpg", "b.jpg")) == 2


@pytest.mark.parametrize("place", [0, 5, 30, 200, -1, -20, -50, -70, -100, -130])
def test_a_changed_byte_is_found(place: int) -> None:
    touch(*(f"p/{n}.jpg" for n in range(9)))
    file = plan("p").file
    content = bytearray(file.read_bytes())
    content[place] ^= 1
    file.write_bytes(content)
    with pytest.raises(
        DataError, match=r"^Expected the whole list of inputs in \.run/plan\. Received: one that cannot be"
    ):
        read_plan(file)


@pytest.mark.parametrize("left", [0, 1, 50, 100, 200, -1, -40, -89])
def test_a_cut_file_is_found(left: int) -> None:
    touch(*(f"p/{n}.jpg" for n in range(9)))
    file = plan("p").file
    file.write_bytes(file.read_bytes()[:left])
    with pytest.raises(DataError, match="Remove its folder, and start the run again"):
        read_plan(file)


def test_a_file_that_goes_while_it_is_read() -> None:
    with pytest.raises(DataError, match="No such file or directory"):
        read_plan(Path("plan"))
    made = written([Found(f"{n}.jpg", "file") for n in range(20_000)])
    items = made.items()
    next(items)
    os.truncate("plan", 400_000)
    with pytest.raises(DataError, match="cannot be read"):
        list(items)
    os.remove("plan")
    with pytest.raises(DataError, match="No such file"):
        next(made.items())


def test_a_plan_that_is_not_finished_leaves_nothing() -> None:
    touch("p/.x")
    old = written([Found("a.jpg", "file")])
    with pytest.raises(AttributeError), PlanWriter(Path("plan")) as writer:
        [writer.add(one) for one in (Found("b.jpg", "file"), None)]
    assert [item.path for item in read_plan(old.file).items()] == ["a.jpg"]
    assert sorted(os.listdir()) == ["p", "plan"]


def test_a_full_disk_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(OSError) as told, PlanWriter(Path("plan")):
        raise OSError(28, "No space left on device")
    assert told.value.filename == "plan"


def test_many_messages_are_cut() -> None:
    touch(*(f"p{n:02}/x.txt" for n in range(30)), "a.jpg")
    lines = plan("a.jpg", *(f"p{n:02}" for n in range(30))).lines()
    assert lines[19:] == ["left out below p19: 1 .txt", "10 more messages of this kind"]
    assert len(plan("a.jpg", *(f"p{n:02}" for n in range(21))).lines()) == 21
