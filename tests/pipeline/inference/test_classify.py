"""Which row gets which answer: each image its own, whatever its neighbours in a batch are; and how a run ends."""

from __future__ import annotations

import gc
import itertools
import os
import signal
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import pytest

from export.errors import OutOfMemoryError, ProjectError, RunnerError, notes
from pipeline.data.image_files import Budget
from pipeline.inference.classify import Settings, batch_size_of, classify
from pipeline.inference.items import Item
from pipeline.inference.pace import Pace
from pipeline.inference.rows import Row, Rows
from pipeline.runners.base import Top
from pipeline.runners.cpus import usable_cpus
from tests.fakes.inference import CARD, CLASSES, TextReader, TextRunner, items

MIXED = ("missing", "missing", 4, "!a folder", 0, 1, "~2", "memory", 3)


def answers(kinds: Iterable[int | str] | Iterable[Item], runner: Any = None, **settings: Any) -> Iterator[Rows]:
    given = Settings(**{"batch_size": 4, "top_k": 2, "decode_threads": 3} | settings)
    given_items = (kinds for kinds in kinds)
    first = next(given_items)
    rest = itertools.chain([first], given_items)
    source: Any = rest if isinstance(first, Item) else items(rest)  # type: ignore[arg-type]
    return classify(source, TextReader(), runner or TextRunner(), CARD, given, Pace())


def rows(kinds: Iterable[int | str] | Iterable[Item], runner: Any = None, **settings: Any) -> list[Row]:
    return [row for batch in answers(kinds, runner, **settings) for row in batch.rows]


def decoding_threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith(("decode-", "compute"))]


@pytest.fixture(autouse=True)
def no_thread_is_left() -> Iterator[None]:
    yield
    assert decoding_threads() == []


@pytest.mark.parametrize("threads", [1, 5])
@pytest.mark.parametrize("batch", [1, 2, 3, 4, 100])
@pytest.mark.parametrize(
    "kinds",
    [
        ("missing", 3, 1, 2),
        (3, "missing", 1, 2),
        (3, 1, 2, "missing"),
        MIXED,
        ("missing", "missing", "missing"),
        (4, 3, 2, 1, 0, 1, 2, 3, 4, 0, 1, 2, 3),
    ],
)
def test_an_image_without_an_answer_does_not_shift_its_neighbours(
    kinds: Sequence[int | str], batch: int, threads: int
) -> None:
    found = rows(kinds, batch_size=batch, decode_threads=threads)
    assert [row.path for row in found] == [f"{index}.jpg" for index in range(len(kinds))]
    for kind, row in zip(kinds, found, strict=True):
        if isinstance(kind, str):
            assert (row.classes, row.probabilities) == ((), ())
            continue
        assert (row.status, row.error, row.width, row.height) == ("ok", "", 7, 5)
        assert row.classes == (CLASSES[kind], CLASSES[(kind + 1) % 5])
        assert row.probabilities[0] - row.probabilities[1] == pytest.approx(0.1)


def test_each_cause_has_its_status_reason_and_size() -> None:
    found = rows(MIXED)
    assert [(row.status, row.error, row.width, row.height) for row in found if row.status != "ok"] == [
        ("missing", "No such file or directory", None, None),
        ("missing", "No such file or directory", None, None),
        ("not_a_file", "a folder", None, None),
        ("damaged", "cut short", 7, 5),
        ("too_large", "more than fits into the memory that is left", None, None),
    ]


def test_the_largest_file_is_told_to_the_decoder() -> None:
    assert [row.status for row in rows([1, 1], largest_file=0)] == ["too_large", "too_large"]


def test_the_largest_file_is_told_to_what_reads_it() -> None:
    class Reader(TextReader):
        def content(self, item: Item, largest: int) -> bytes:
            told.append(largest)
            return super().content(item, largest)

    told: list[int] = []
    list(classify(items([1, 2]), Reader(), TextRunner(), CARD, Settings(4, 1, largest_file=77), Pace()))
    assert told == [77, 77]


def test_damaged_images_are_answered_where_they_are_kept() -> None:
    (row,) = rows(["~2"], keep_damaged=True)
    assert (row.status, row.classes[0], row.error, row.width) == ("damaged", "two", "cut short", 7)


@pytest.mark.parametrize("bad", range(8))
def test_answers_are_bit_identical_beside_a_bad_image(bad: int) -> None:
    whole: list[int | str] = [4, 3, 2, 1, 0, 1, 2, 3]
    expected = rows(whole)
    damaged = [*whole[:bad], "missing", *whole[bad + 1 :]]
    found = rows(damaged)
    assert found[bad].status == "missing"
    del expected[bad], found[bad]
    assert found == expected


def test_the_slot_of_a_bad_image_is_zero_although_its_buffer_was_used_before() -> None:
    runner = TextRunner()
    rows([4, 4, 4, 4] * 8 + ["missing", 3, "~3", "memory"], runner)
    assert runner.batches[-1] == [0, 3, 0, 0]


def test_nothing_is_computed_for_a_batch_without_an_image() -> None:
    runner = TextRunner()
    rows(["missing"] * 4 + [1], runner)
    assert runner.batches == [[1]]


def test_batches_are_full_in_order_and_no_larger_than_the_runner_takes() -> None:
    kinds = [n % 5 for n in range(11)]
    runner = TextRunner(max_batch=4)
    assert batch_size_of(runner, Settings(100, 1)) == 4
    rows(kinds, runner, batch_size=100)
    assert runner.batches == [[0, 1, 2, 3], [4, 0, 1, 2], [3, 4, 0]]
    runner = TextRunner(max_batch=4)
    rows(kinds, runner, batch_size=3)
    assert [len(batch) for batch in runner.batches] == [3, 3, 3, 2]


@pytest.mark.parametrize("start", [0, 4, 8])
def test_a_run_that_goes_on_forms_the_batches_of_an_uninterrupted_one(start: int) -> None:
    kinds = [n % 5 for n in range(11)]
    assert rows(items(kinds[start:], start)) == rows(kinds)[start:]


def test_batches_end_at_multiples_of_their_size_wherever_a_run_begins() -> None:
    runner = TextRunner()
    rows(items([1, 2, 3, 4, 0, 1, 2], 6), runner)
    assert runner.batches == [[1, 2], [3, 4, 0, 1], [2]]


def test_pixels_stay_as_they_are_until_they_are_computed() -> None:
    class Slow(TextRunner):
        def top(self, pixels: np.ndarray, k: int) -> Top:
            time.sleep(0.005)  # threads that decode would fill the buffer again
            return super().top(pixels, k)

    kinds = [n // 4 % 5 for n in range(160)]
    assert rows(kinds, Slow()) == rows(kinds)
    runner = Slow()
    rows(kinds, runner)
    assert [value for batch in runner.batches for value in batch] == kinds


def test_a_jump_of_the_numbers_begins_a_batch() -> None:
    runner = TextRunner()
    given = itertools.chain(items([1, 2, 3, 4, 0], 0), items([1, 2, 3, 4], 12), items([3], 40), items([2], 20))
    found = list(answers(given, runner))
    assert runner.batches == [[1, 2, 3, 4], [0], [1, 2, 3, 4], [3], [2]]
    assert [(batch.first, len(batch.rows)) for batch in found] == [(0, 4), (4, 1), (12, 4), (40, 1), (20, 1)]


@pytest.mark.parametrize("start", [0, 6])
def test_rows_of_one_batch_are_consecutive(start: int) -> None:
    runner = TextRunner()
    given = itertools.chain(items([1, 2], start), items([3, 4], start + 9), items([0, 1], start + 12))
    found = list(answers(given, runner, batch_size=100))
    assert runner.batches == [[1, 2], [3, 4], [0, 1]]
    assert [batch.first - start for batch in found] == [0, 9, 12]


@pytest.mark.parametrize("slow", range(6))
def test_a_batch_waits_for_its_slowest_image(slow: int) -> None:
    kinds = [1] * 6
    assert rows([*kinds[:slow], "slow", *kinds[slow + 1 :]]) == rows([*kinds[:slow], 2, *kinds[slow + 1 :]])


def test_no_item_is_no_row() -> None:
    assert list(classify(iter([]), TextReader(), TextRunner(), CARD, Settings(4, 1), Pace())) == []


def test_more_classes_than_there_are() -> None:
    (row,) = rows([2], top_k=9)
    assert row.classes == ("two", "three", "four", "zero", "one")


def test_classes_below_the_threshold_are_left_out() -> None:
    (row,) = rows([0], top_k=4, threshold=0.75)
    assert row.classes == ("zero", "one")
    (row,) = rows([0], threshold=0.95)
    assert (row.status, row.classes, row.probabilities) == ("ok", (), ())


def test_a_class_that_just_reaches_the_threshold_is_there() -> None:
    (row,) = rows([0])
    (other,) = rows([0], threshold=row.probabilities[1])
    assert other == row


def test_a_probability_that_is_no_number_is_shown() -> None:
    class Broken(TextRunner):
        def top(self, pixels: np.ndarray, k: int) -> Top:
            return Top(np.full((len(pixels), k), np.nan, np.float32), np.zeros((len(pixels), k), np.int32))

    (row,) = rows([2], Broken(), top_k=1)
    assert row.classes == ("zero",)
    assert np.isnan(row.probabilities[0])


def test_a_model_of_another_number_of_classes_answers_nothing() -> None:
    runner = TextRunner()
    runner.classes = 4  # type: ignore[misc]
    with pytest.raises(ProjectError, match="Expected 4 class names"):
        rows([2], runner)
    assert runner.batches == []


def test_embeddings_of_an_engine_are_refused() -> None:
    runner = TextRunner()
    runner.backend = "tensorrt"  # type: ignore[misc]
    with pytest.raises(RunnerError, match=r"model of tensorrt\. --embeddings needs the ONNX file: --backend onnx"):
        rows([2], runner, embeddings=True)


@pytest.mark.parametrize("threads", [1, 4])
def test_items_are_taken_as_they_are_needed(threads: int) -> None:
    taken = itertools.count()
    last = -1

    def endless() -> Iterator[Item]:
        nonlocal last
        for item in items(itertools.repeat(1)):
            last = next(taken)
            yield item

    found = answers(endless(), batch_size=8, decode_threads=threads)
    for _ in range(50):
        batch = next(found)
        time.sleep(0.001)
        assert last < batch.first + 8 * 9, "more is held than a fixed number of batches"
    found.close()  # type: ignore[attr-defined]


def test_a_bug_is_raised_with_the_image_that_it_happened_with() -> None:
    with pytest.raises(ZeroDivisionError) as caught:
        rows([1, 2, 3, "bug", *[1] * 100])
    assert notes(caught.value) == ("It happened with 3.jpg.",)


def test_a_failure_of_the_runner_comes_after_the_rows_before_it() -> None:
    def compute(values: list[int]) -> None:
        if values[0] == 3:
            raise OutOfMemoryError("full")

    found = answers([1, 1, 2, 2, 3, 3, 4, 4], TextRunner(compute=compute), batch_size=2)
    assert [next(found).first, next(found).first] == [0, 2]
    with pytest.raises(OutOfMemoryError, match="full"):
        next(found)


def test_a_failure_of_the_list_of_items_is_raised() -> None:
    def broken() -> Iterator[Item]:
        yield from items([1] * 7)
        raise OSError("the plan is gone")

    found = answers(broken(), batch_size=2)
    with pytest.raises(OSError, match="the plan is gone"):
        list(found)


@pytest.mark.parametrize("error", [KeyboardInterrupt, BrokenPipeError])
def test_threads_end_when_the_reader_of_the_rows_does(error: type[BaseException]) -> None:
    def consume() -> None:
        found = answers(itertools.repeat(1), decode_threads=4)
        try:
            next(found)
            assert len(decoding_threads()) == 5
            raise error
        finally:
            found.close()  # type: ignore[attr-defined]

    with pytest.raises(error):
        consume()


def test_threads_end_although_the_runner_is_waited_for_and_buffers_are_full() -> None:
    began = threading.Event()

    def slow(values: list[int]) -> None:
        began.set()
        time.sleep(0.05)

    found = answers(itertools.repeat(1), TextRunner(compute=slow), batch_size=1)
    next(found)
    time.sleep(0.3)  # every buffer is full, and answers wait
    assert began.is_set()
    before = time.monotonic()
    found.close()  # type: ignore[attr-defined]
    assert time.monotonic() - before < 0.2


def test_pixels_lie_in_memory_of_the_runner_where_it_offers_some() -> None:
    class Pinned(TextRunner):
        memory: np.ndarray

        def pinned_pixels(self, count: int) -> np.ndarray:
            self.memory = np.empty((count, 4, 4, 3), np.uint8)
            return self.memory

        def top(self, pixels: np.ndarray, k: int) -> Top:
            assert np.shares_memory(pixels, self.memory)
            assert pixels.flags.c_contiguous
            return super().top(pixels, k)

    runner = Pinned()
    assert [row.status for row in rows([1, 2, 3] * 10, runner)] == ["ok"] * 30
    assert len(runner.memory) % 4 == 0


def test_as_many_threads_decode_as_there_are_cpus() -> None:
    assert Settings(1, 1).threads == usable_cpus()
    assert Settings(1, 1, decode_threads=3).threads == 3


def test_ctrl_c_is_noticed_while_answers_are_waited_for() -> None:
    computing = threading.Event()

    def slow(values: list[int]) -> None:
        computing.set()
        time.sleep(0.3)

    def interrupt() -> None:
        computing.wait()
        time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=interrupt).start()
    with pytest.raises(KeyboardInterrupt):
        list(answers(itertools.repeat(1), TextRunner(compute=slow)))


def test_the_bytes_of_a_bad_image_are_not_kept() -> None:
    alive = 0

    class Content(bytes):
        def __del__(self) -> None:
            nonlocal alive
            alive -= 1

    class Reader(TextReader):
        def content(self, item: Item, largest: int) -> bytes:
            nonlocal alive
            alive += 1
            return Content(item.place.encode())

    gc.disable()
    try:
        settings = Settings(4, 1, decode_threads=2)
        found = list(classify(items(["~1", "missing"] * 50), Reader(), TextRunner(), CARD, settings, Pace()))
        assert [row.status for batch in found for row in batch.rows] == ["damaged", "missing"] * 50
        assert alive == 0
    finally:
        gc.enable()


def test_members_of_archives_wait_for_memory_as_files_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.inference.classify.FILE_BYTES", Budget(100))
    lock, open_now, most = threading.Lock(), 0, 0

    class Reader(TextReader):
        def content(self, item: Item, largest: int) -> bytes:
            nonlocal open_now, most
            with lock:
                open_now += item.size
                most = max(most, open_now)
            time.sleep(0.005)
            with lock:
                open_now -= item.size
            return item.place.encode()

    members = [item._replace(kind="tar", size=60 if item.row < 4 else 30) for item in items([1] * 12)]
    settings = Settings(4, 1, decode_threads=4)
    rows = [row for batch in classify(members, Reader(), TextRunner(), CARD, settings, Pace()) for row in batch.rows]
    assert [row.status for row in rows] == ["ok"] * 12
    assert 60 <= most <= 100
