"""Send requests, many at a time, and count: right, wrong, lost and refused answers, and how long each took.

Closed loop: a fixed number of requests is under way, each followed by the next. Open loop: requests arrive at times of
their own (a Poisson process), as from many people who know nothing of each other; a request counts from the time it was
due, so that one that waits for a slow server waits in the numbers too.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field

from benchmarks.server.client import Connection, NoAnswerError, connect, request_bytes
from benchmarks.server.routes import Answer, Route, is_same, read_answer

MOST_REFUSALS = 20  # of one request
LONGEST_WAIT = 5.0  # seconds before a refused request is sent again, whatever the server asks for
REFUSED = 503


@dataclass(frozen=True)
class Question:
    """A request that is sent again and again.

    Attributes:
        request: its bytes.
        reference: the answer when nothing else was asked.
    """

    request: bytes
    reference: Answer


@dataclass(frozen=True)
class Plan:
    """How requests are sent.

    Attributes:
        requests: number of requests.
        concurrency: requests at a time, at most; in an open loop those beyond wait for a connection.
        rate: requests a second that arrive in an open loop. Defaults to None: a closed loop.
        patience: seconds that one request waits for its answer. Defaults to 120.
        most_seconds: after them nothing is sent any more; what was not sent is lost. Defaults to 1800.
    """

    requests: int
    concurrency: int
    rate: float | None = None
    patience: float = 120.0
    most_seconds: float = 1800.0


@dataclass
class Tally:
    """What came of the requests, up to now.

    Attributes:
        done: number of requests that are finished, whatever came of them.
        milliseconds: of each request that was answered, with its refusals, in the order of the answers.
        wrong: number of answers that are not those of the picture alone.
        refused: number of times that the server was too busy; such a request is sent again.
        lost: number of requests without an answer, by reason.
        server_milliseconds: sum over the answers, by part, where answers state it.
        seconds: from the first request to the last answer.
        client_seconds: of a CPU that this process took.
    """

    done: int = 0
    milliseconds: list[float] = field(default_factory=list)
    wrong: int = 0
    refused: int = 0
    lost: Counter[str] = field(default_factory=Counter)
    server_milliseconds: defaultdict[str, float] = field(default_factory=lambda: defaultdict(float))
    seconds: float = 0.0
    client_seconds: float = 0.0


_Queue = asyncio.Queue[tuple[int, float | None] | None]


def ask_alone(port: int, route: Route, pictures: Sequence[bytes], patience: float) -> tuple[list[Answer], list[float]]:
    """Ask about each picture while nothing else is asked.

    Args:
        port: of the server.
        route: how it is asked.
        pictures: the image files.
        patience: seconds for each.

    Returns:
        The answers, and the milliseconds that each took.

    Raises:
        NoAnswerError: a picture has no answer; the message has its place among the pictures.
    """

    async def ask() -> tuple[list[Answer], list[float]]:
        answers, milliseconds = [], []
        connection: Connection | None = None
        try:
            for picture in pictures:
                connection = connection if connection and connection.is_open else await connect(port)
                start = time.perf_counter()
                reply = await connection.ask(route.request(picture), patience)
                answers.append(read_answer(route, reply))
                milliseconds.append(1000 * (reply.received - start))
        except NoAnswerError as error:
            raise NoAnswerError(f"{error}, for picture {len(answers) + 1:,} of {len(pictures):,}") from None
        finally:
            if connection is not None:
                connection.close()
        return answers, milliseconds

    return asyncio.run(ask())


def get(port: int, path: str, patience: float) -> str:
    """Return what the server says under a path.

    Raises:
        NoAnswerError: nothing, or not with status 200.
    """

    async def ask() -> str:
        connection = await connect(port)
        reply = await connection.ask(request_bytes("GET", path), patience)
        connection.close()
        if reply.status != 200:
            raise NoAnswerError(f"status {reply.status} of {path}")
        return reply.body.decode("utf-8", "replace")

    return asyncio.run(ask())


def run_load(port: int, route: Route, questions: Sequence[Question], plan: Plan, tally: Tally) -> None:
    """Send the requests of a plan, in a random order that is the same in every run.

    Args:
        port: of the server.
        route: how it is asked.
        questions: that are asked in turns.
        plan: how many, and how.
        tally: counts; others may look at it meanwhile.
    """
    asyncio.run(_run(port, route, questions, plan, tally))


async def _run(port: int, route: Route, questions: Sequence[Question], plan: Plan, tally: Tally) -> None:
    drawn = random.Random(0)
    queue: _Queue = asyncio.Queue()
    start, cpu = time.perf_counter(), time.process_time()
    end = start + plan.most_seconds
    workers = [
        asyncio.create_task(_work(port, route, questions, plan, tally, queue, end)) for _ in range(plan.concurrency)
    ]
    await _arrive(queue, drawn, len(questions), plan, end)
    for _ in workers:
        queue.put_nowait(None)
    await asyncio.gather(*workers)
    tally.seconds, tally.client_seconds = time.perf_counter() - start, time.process_time() - cpu


async def _arrive(queue: _Queue, drawn: random.Random, pictures: int, plan: Plan, end: float) -> None:
    """Put each request into the queue when it is due; those of a closed loop at once."""
    order: list[int] = []
    due = time.perf_counter()
    for _ in range(plan.requests):
        order = order or drawn.sample(range(pictures), pictures)
        if plan.rate is None:
            queue.put_nowait((order.pop(), None))
            continue
        due += drawn.expovariate(plan.rate)
        await asyncio.sleep(max(0.0, min(due, end) - time.perf_counter()))
        queue.put_nowait((order.pop(), due))


async def _work(
    port: int, route: Route, questions: Sequence[Question], plan: Plan, tally: Tally, queue: _Queue, end: float
) -> None:
    """Send one request after the other over one connection, which is opened again where it was closed."""
    connection: Connection | None = None
    while (job := await queue.get()) is not None:
        place, due = job
        try:
            start = time.perf_counter()
            if start > end:
                raise NoAnswerError(f"not sent within {plan.most_seconds:g} s")
            question = questions[place]
            for _ in range(MOST_REFUSALS):
                connection = connection if connection and connection.is_open else await connect(port)
                reply = await connection.ask(question.request, plan.patience)
                if reply.status != REFUSED:
                    break
                tally.refused += 1
                await asyncio.sleep(_wait(reply.headers.get("retry-after", "")))
            answer = read_answer(route, reply)
        except NoAnswerError as error:
            tally.lost[str(error)] += 1
        else:
            tally.milliseconds.append(1000 * (reply.received - (start if due is None else due)))
            tally.wrong += not is_same(answer, question.reference)
            for part, milliseconds in answer.milliseconds.items():
                tally.server_milliseconds[part] += milliseconds
        tally.done += 1
    if connection is not None:
        connection.close()


def _wait(retry_after: str) -> float:
    """Return the seconds that a server asks to wait, within bounds; 1 where it does not say."""
    try:
        return min(max(float(retry_after), 0.0), LONGEST_WAIT)
    except ValueError:
        return 1.0
