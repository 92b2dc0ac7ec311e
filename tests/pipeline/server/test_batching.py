"""Requests that arrive together are computed together; nobody gets another's answer, or none."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest

from export.errors import RunnerError
from pipeline.runners.base import Outputs
from pipeline.server.batching import Batcher, Computed
from pipeline.server.errors import RequestError

SOON = 10.0
LONG = 5.0  # a delay that no test waits for


class Model:
    """Answers with the first value of each image; it computes when it is let, and remembers its batches."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.begun, self.go_on = threading.Semaphore(0), threading.Event()
        self.go_on.set()
        self.threads: set[int] = set()

    def __call__(self, pixels: np.ndarray) -> Outputs:
        values = pixels[:, 0, 0, 0]
        self.batches.append(values.tolist())
        self.threads.add(threading.get_ident())
        self.begun.release()
        assert self.go_on.wait(SOON)
        if 255 in values:
            raise RunnerError("Expected no 255. Received: one.")
        logits = values[:, None].astype(np.float32)
        return Outputs(logits, logits / 255)

    async def begins(self) -> None:
        """Wait until the next batch is computed."""
        assert await asyncio.to_thread(self.begun.acquire, timeout=SOON)


def images(*values: int) -> np.ndarray:
    return np.array(values, np.uint8)[:, None, None, None] * np.ones((1, 2, 2, 3), np.uint8)


def answers(computed: Computed) -> list[int]:
    assert len(computed.outputs.probabilities) == len(computed.outputs.logits)
    return [int(row[0]) for row in computed.outputs.logits]


@pytest.fixture
def model() -> Model:
    return Model()


@contextmanager
def batching(model: Model, **settings: Any) -> Iterator[Batcher]:
    with ThreadPoolExecutor(1) as thread:
        try:
            yield Batcher(model, thread, **{"max_batch": 4, "max_delay": 0.0, "capacity": 8} | settings)
        finally:
            model.go_on.set()


def run(test: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(test, SOON))


async def all_of(batcher: Batcher, *requests: tuple[int, ...]) -> list[Computed]:
    return await asyncio.gather(*(batcher.submit(images(*request)) for request in requests))


async def busy_with(batcher: Batcher, model: Model) -> asyncio.Task[Computed]:
    """Return a request that is being computed, until the model goes on."""
    model.go_on.clear()
    first = asyncio.create_task(batcher.submit(images(99)))
    await model.begins()
    return first


def test_what_arrives_together_is_one_batch_and_each_gets_its_own_rows(model: Model) -> None:
    async def test() -> None:
        async with batcher:
            computed = await all_of(batcher, (1,), (2, 3), (4,))
        assert [answers(each) for each in computed] == [[1], [2, 3], [4]]
        assert {each.batch for each in computed} == {4}
        assert model.batches == [[1, 2, 3, 4]]

    with batching(model, max_delay=LONG) as batcher:
        began = time.perf_counter()
        run(test())
        assert time.perf_counter() - began < LONG, "a full batch waits for nobody"


def test_the_first_image_waits_as_long_as_the_delay_and_no_longer(model: Model) -> None:
    async def test() -> None:
        async with batcher:
            began = time.perf_counter()
            first = asyncio.create_task(batcher.submit(images(1)))
            await asyncio.sleep(0.05)
            second = asyncio.create_task(batcher.submit(images(2)))
            computed = await first
            assert 0.1 <= computed.queued <= time.perf_counter() - began < 2
            assert (await second).batch == 2, "the second came while the first waited, and does not wait anew"
            assert (await second).queued < computed.queued

    with batching(model, max_delay=0.1) as batcher:
        run(test())


def test_one_image_is_computed_at_once_while_no_other_is_on_its_way(model: Model) -> None:
    on_their_way = [True]

    async def test() -> None:
        async with batcher:
            waiting = asyncio.create_task(batcher.submit(images(1)))
            await asyncio.sleep(0.02)
            assert not waiting.done()
            on_their_way[0] = False
            assert (await batcher.submit(images(2))).batch == 2
            assert (await waiting).batch == 2
            assert (await batcher.submit(images(3))).queued < LONG / 2

    with batching(model, max_delay=LONG, expected=lambda: on_their_way[0]) as batcher:
        run(test())


def test_without_a_delay_one_image_is_computed_at_once(model: Model) -> None:
    async def test() -> None:
        async with batcher:
            assert (await batcher.submit(images(1))).batch == 1
            assert (await batcher.submit(images(2))).batch == 1

    with batching(model) as batcher:
        run(test())


def test_batches_grow_while_another_is_computed_up_to_the_most(model: Model) -> None:
    async def test() -> None:
        async with batcher:
            first = await busy_with(batcher, model)
            others = asyncio.gather(*(batcher.submit(images(value)) for value in range(6)))
            await asyncio.sleep(0)
            model.go_on.set()
            await first
            assert [answers(each) for each in await others] == [[value] for value in range(6)]
        assert model.batches == [[99], [0, 1, 2, 3], [4, 5]]
        assert len(model.threads) == 1, "a runner belongs to its thread"

    with batching(model) as batcher:
        run(test())


def test_a_request_within_a_batch_is_never_split_and_one_with_more_is_several(model: Model) -> None:
    async def test() -> None:
        async with batcher:
            first = await busy_with(batcher, model)
            others = asyncio.gather(all_of(batcher, (1, 2), (3, 4, 5), (6,), (7, 8)), return_exceptions=True)
            await asyncio.sleep(0)
            model.go_on.set()
            await first
            (computed,) = await others
            assert not isinstance(computed, BaseException)
            assert [answers(each) for each in computed] == [[1, 2], [3, 4, 5], [6], [7, 8]]
        async with Batcher(model, batcher._thread, max_batch=2, max_delay=0, capacity=8) as small:
            assert [answers(each) for each in await all_of(small, (1, 2, 3, 4, 5), (6,))] == [[1, 2, 3, 4, 5], [6]]
        assert model.batches == [[99], [1, 2], [3, 4, 5, 6], [7, 8], [1, 2], [3, 4], [5, 6]]

    with batching(model) as batcher:
        run(test())


@pytest.mark.parametrize("end", ["cancelled", "failed"])
def test_what_is_left_of_a_large_request_is_not_computed_for_nobody(model: Model, end: str) -> None:
    async def test() -> None:
        async with batcher:
            first = await busy_with(batcher, model)
            values = (1, 2, 3, 4) if end == "cancelled" else (255, 2, 3, 4)
            large = asyncio.create_task(batcher.submit(images(*values)))
            await asyncio.sleep(0)
            assert batcher.waiting == 4
            if end == "cancelled":
                large.cancel()
            model.go_on.set()
            await first
            with pytest.raises(asyncio.CancelledError if end == "cancelled" else RunnerError):
                await large
            assert answers(await batcher.submit(images(6))) == [6]
            assert batcher.waiting == 0
        computed = {value for batch in model.batches for value in batch}
        assert not computed & {1, 3, 4}, "2 may have begun before it is told"

    with batching(model, max_batch=1) as batcher:
        run(test())


def test_a_full_queue_refuses_at_once_and_loses_none(model: Model) -> None:
    async def test() -> None:
        async with batcher:
            first = await busy_with(batcher, model)
            waiting = [asyncio.create_task(batcher.submit(images(value))) for value in range(8)]
            await asyncio.sleep(0)
            assert batcher.waiting == 8
            with pytest.raises(RequestError, match="8 of 8 places taken") as refused:
                await batcher.submit(images(200))
            assert (refused.value.code, refused.value.headers()) == (503, {"Retry-After": "1"})
            model.go_on.set()
            assert answers(await first) == [99]
            assert [answers(await task) for task in waiting] == [[value] for value in range(8)]
            assert batcher.waiting == 0
            assert answers(await batcher.submit(images(7))) == [7], "there is room again"

    with batching(model) as batcher:
        run(test())


def test_more_images_than_ever_have_room_are_no_matter_of_asking_again(model: Model) -> None:
    async def test() -> None:
        async with batcher:
            with pytest.raises(RequestError, match="at most 8 images") as refused:
                await batcher.submit(images(*range(9)))
            assert (refused.value.code, refused.value.headers()) == (413, {})

    with batching(model) as batcher:
        run(test())


def test_what_nobody_waits_for_is_not_computed_and_frees_its_place(model: Model) -> None:
    async def test() -> None:
        async with batcher:
            first = await busy_with(batcher, model)
            waiting = [asyncio.create_task(batcher.submit(images(value))) for value in range(8)]
            await asyncio.sleep(0)
            for task in waiting[::2]:
                task.cancel()
            model.go_on.set()
            await first
            assert [answers(await task) for task in waiting[1::2]] == [[1], [3], [5], [7]]
            assert batcher.waiting == 0
        assert model.batches == [[99], [1, 3, 5, 7]]

    with batching(model) as batcher:
        run(test())


def test_one_that_goes_away_while_it_is_computed_leaves_the_others_their_rows(model: Model) -> None:
    async def test() -> None:
        async with batcher:
            model.go_on.clear()
            tasks = [asyncio.create_task(batcher.submit(images(value, value))) for value in (1, 2)]
            await model.begins()
            tasks[0].cancel()
            model.go_on.set()
            assert answers(await tasks[1]) == [2, 2]
        assert model.batches == [[1, 1, 2, 2]]

    with batching(model) as batcher:
        run(test())


def test_where_all_went_away_nothing_is_computed(model: Model) -> None:
    async def test() -> None:
        async with batcher:
            first = await busy_with(batcher, model)
            gone = asyncio.create_task(batcher.submit(images(1)))
            await asyncio.sleep(0)
            gone.cancel()
            model.go_on.set()
            await first
            assert answers(await batcher.submit(images(2))) == [2]
        assert model.batches == [[99], [2]]

    with batching(model) as batcher:
        run(test())


def test_an_error_of_the_runner_is_that_of_its_batch_alone(model: Model) -> None:
    async def test() -> None:
        async with batcher:
            first = await busy_with(batcher, model)
            bad = asyncio.gather(*(batcher.submit(images(v)) for v in (255, 1, 2, 3)), return_exceptions=True)
            await asyncio.sleep(0)
            good = asyncio.create_task(batcher.submit(images(4)))
            model.go_on.set()
            await first
            assert all(isinstance(error, RunnerError) for error in await bad)
            assert answers(await good) == [4]
        assert seen == [1, 1], "a batch that failed is no batch"

    seen: list[int] = []
    with batching(model, on_batch=seen.append) as batcher:
        run(test())


def test_an_error_of_who_counts_is_that_of_its_batch_alone(model: Model) -> None:
    async def test() -> None:
        async with batcher:
            with pytest.raises(ZeroDivisionError):
                await batcher.submit(images(1))
            assert answers(await batcher.submit(images(2, 3))) == [2, 3]

    with batching(model, on_batch=lambda number: 1 // (number - 1)) as batcher:
        run(test())


def test_a_stop_computes_what_waits_without_its_delay_and_takes_no_more(model: Model) -> None:
    async def test() -> None:
        async with batcher:
            waiting = [asyncio.create_task(batcher.submit(images(value))) for value in (1, 2)]
            await asyncio.sleep(0)
        assert [answers(await task) for task in waiting] == [[1], [2]]
        with pytest.raises(RequestError) as refused:
            await batcher.submit(images(3))
        assert refused.value.code == 503

    with batching(model, max_delay=LONG) as batcher:
        began = time.perf_counter()
        run(test())
        assert time.perf_counter() - began < LONG


def test_many_at_a_time_with_some_that_go_away_get_their_own_answers(model: Model) -> None:
    async def one(batcher: Batcher, value: int) -> None:
        request = (value % 200, value % 7)
        task = asyncio.create_task(batcher.submit(images(*request)))
        await asyncio.sleep(value % 3 / 2000)
        if value % 5:
            assert answers(await task) == list(request)
        else:
            task.cancel()

    async def test() -> None:
        async with batcher:
            for turn in range(5):
                await asyncio.gather(*(one(batcher, turn * 100 + value) for value in range(100)))
        assert batcher.waiting == 0

    with batching(model, capacity=1000, max_delay=0.0005) as batcher:
        run(test())
