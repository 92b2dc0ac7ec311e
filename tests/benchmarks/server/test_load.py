"""Requests are counted as what they are: right, wrong, lost, refused; and each has its time."""

from __future__ import annotations

import time
from typing import Any

import pytest

from benchmarks.server.client import NoAnswerError
from benchmarks.server.load import Plan, Tally, ask_alone, get, run_load
from tests.benchmarks.server.asked import PICTURES, PLAIN, ask_all_alone
from tests.benchmarks.server.stub import Stub, running


def load(requests: int = 200, concurrency: int = 8, more: dict[str, Any] | None = None, **faults: Any) -> Tally:
    """Ask a server with faults about pictures that it answered alone, without any."""
    tally = Tally()
    with running(Stub(honest=len(PICTURES), **faults)) as port:
        run_load(
            port, PLAIN, ask_all_alone(port), Plan(requests, concurrency, **{"patience": 5.0} | (more or {})), tally
        )
    assert tally.done == requests
    assert len(tally.milliseconds) + tally.lost.total() == requests, "each is answered or lost"
    return tally


def test_right_answers_are_right() -> None:
    tally = load()
    assert (tally.wrong, tally.refused, tally.lost) == (0, 0, {})
    assert 0 < min(tally.milliseconds) <= max(tally.milliseconds) < 1000 * tally.seconds + 1
    assert tally.server_milliseconds == {"decode": 200.0, "total": 400.0}
    assert 0 < tally.client_seconds < 5


@pytest.mark.parametrize("fault", ["wrong_every", "shift_every"])
def test_wrong_answers_are_found(fault: str) -> None:
    tally = load(**{fault: 10})
    assert (tally.wrong, tally.lost) == (20, {})


def test_lost_ones_are_found_with_their_reason() -> None:
    assert load(drop_every=10).lost == {"connection closed": 20}
    assert load(fail_every=50).lost == {"status 500: internal": 4}
    assert load(hang_every=100, more={"patience": 0.3}).lost == {"no answer within 0.3 s": 2}


def test_after_a_lost_one_the_others_are_answered() -> None:
    assert load(requests=20, concurrency=1, drop_every=2).wrong == 0


def test_a_refused_one_is_sent_again_and_counted() -> None:
    tally = load(refuse_every=3, concurrency=1, requests=20)
    assert tally.lost == {}
    assert tally.refused == 9, "every third of 29"
    assert load(refuse_every=1, requests=3).lost == {"status 503: busy": 3}, "not for ever"


def test_a_refused_one_waits_as_long_as_it_is_told() -> None:
    tally = load(refuse_every=3, concurrency=1, requests=3, retry_after="0.4")
    assert tally.refused == 1
    slow = [milliseconds for milliseconds in tally.milliseconds if milliseconds > 390]
    assert len(slow) == 1, "the wait is in its time"


def test_no_more_than_asked_for_are_under_way() -> None:
    stub = Stub(seconds=0.002)
    with running(stub) as port:
        questions = ask_all_alone(port)
        assert stub.most_together == 1, "alone is alone"
        run_load(port, PLAIN, questions, Plan(100, 6), Tally())
    assert stub.most_together == 6


def test_an_open_loop_keeps_its_rate() -> None:
    tally = load(requests=100, more={"rate": 400.0})
    assert 0.15 < tally.seconds < 2
    assert tally.lost == {}


def test_in_an_open_loop_a_slow_server_shows_in_the_times() -> None:
    """Two at a time, 20 ms each: 100 a second are answered of the 400 that arrive, so the last waits about 0.4 s."""
    tally = load(requests=50, concurrency=2, seconds=0.02, more={"rate": 400.0})
    assert max(tally.milliseconds) > 250
    closed = load(requests=50, concurrency=2, seconds=0.02)
    assert sorted(closed.milliseconds)[25] < 100, "which a closed loop does not show"


def test_what_was_not_sent_in_time_is_lost() -> None:
    start = time.monotonic()
    tally = load(requests=1000, concurrency=1, seconds=0.01, more={"most_seconds": 0.2})
    assert tally.lost["not sent within 0.2 s"] > 900
    assert time.monotonic() - start < 5


def test_a_picture_without_an_answer_is_named() -> None:
    with running(Stub(fail_every=3)) as port, pytest.raises(NoAnswerError, match=r"500: internal, for picture 3 of 7"):
        ask_alone(port, PLAIN, PICTURES, 5)


def test_nobody_there_is_lost_too() -> None:
    with running(Stub()) as port:
        questions = ask_all_alone(port)
    tally = Tally()
    with pytest.raises(NoAnswerError, match="no connection"):
        get(port, "/metrics", 1)
    run_load(port, PLAIN, questions, Plan(5, 2), tally)
    assert tally.lost.total() == tally.done == 5
